"""Recordings to features: lengths, the cache, clips that cannot be used."""

import warnings
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from metajax.data import corpus as corpus_module
from metajax.data.audio import read_audio
from metajax.data.corpora.files import from_files, index
from metajax.data.corpus import FORMAT, Recordings, load, summary
from metajax.data.features import FLOOR, FeatureSettings, log_mel, loudest
from metajax.errors import InputError

SETTINGS = FeatureSettings()
SHORT = FeatureSettings(seconds=0.5)
compiled_log_mel = jax.jit(log_mel, static_argnums=1)


def tone(seconds: float, hertz: float = 440.0, rate: int = 16000) -> np.ndarray:
    noise = np.random.default_rng(int(hertz)).normal(size=int(seconds * rate))
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate) + 0.01 * noise


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Six WAV and FLAC files of 0.3 s to 0.8 s, at 16 and 8 kHz."""
    files = []
    for number in range(6):
        path = tmp_path / "audio" / f"{number}.{'wav' if number % 2 else 'flac'}"
        path.parent.mkdir(exist_ok=True)
        rate = 8000 if number == 3 else 16000
        soundfile.write(path, tone(0.3 + 0.1 * number, 200.0 + 100 * number, rate), rate)
        files.append(path)
    return files


def recordings_of(paths: list[Path]) -> Recordings:
    label, labels = index("ab"[number % 2] for number in range(len(paths)))
    speaker, speakers = index(f"s{number // 2}" for number in range(len(paths)))
    return from_files("made", paths, {"label": label, "speaker": speaker}, {"label": labels, "speaker": speakers})


def unread(recordings: Recordings) -> Recordings:
    """The same recordings, of which nothing can be read: what loads comes from the cache."""

    def read(clips, sample_rate):
        raise AssertionError("read although cached")

    return recordings._replace(read=read)


def assert_same(a, b) -> None:
    assert a.features.dtype == b.features.dtype == np.float32
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    assert a.columns.keys() == b.columns.keys() and a.names == b.names and a.skipped == b.skipped
    for name in a.columns:
        np.testing.assert_array_equal(a.columns[name], b.columns[name])


def test_features_are_log_mel_of_each_centred_clip(paths, monkeypatch):
    monkeypatch.setattr(corpus_module, "_BATCH", 4)  # the second batch is not full
    corpus = load(recordings_of(paths), SETTINGS, cache=None, progress=False)
    assert isinstance(corpus.features, jax.Array)
    assert corpus.features.shape == (6, SETTINGS.num_frames, SETTINGS.num_mels)
    for path, features in zip(paths, np.asarray(corpus.features), strict=True):
        wave = read_audio(path, 16000)
        padded = np.zeros(16000, np.float32)
        start = (16000 - len(wave)) // 2
        padded[start : start + len(wave)] = wave
        np.testing.assert_allclose(features, compiled_log_mel(padded, SETTINGS), atol=2e-4)


def test_lengths_count_the_frames_that_see_signal(paths):
    corpus = load(recordings_of(paths), SETTINGS, cache=None, progress=False)
    silence = np.log(1e-10)
    heard = np.asarray((corpus.features > silence + 1e-3).any(-1).sum(-1))
    assert np.all(np.abs(heard - np.asarray(corpus.lengths)) <= 2)  # windows taper: their edges see next to nothing
    assert np.all(np.diff(np.asarray(corpus.lengths)) >= 9)  # every clip is 10 frames longer than the last


def test_all_batches_compile_once(paths, monkeypatch):
    monkeypatch.setattr(corpus_module, "_BATCH", 4)
    corpus_module._features.clear_cache()
    load(recordings_of(paths), SETTINGS, cache=None, progress=False)
    assert corpus_module._features._cache_size() == 1


def test_of_a_long_clip_the_loudest_part_is_kept(paths):
    with pytest.warns(UserWarning, match="are cropped"):
        corpus = load(recordings_of(paths), SHORT, cache=None, progress=False)
    for path, features in zip(paths[3:], np.asarray(corpus.features)[3:], strict=True):
        whole = np.asarray(compiled_log_mel(read_audio(path, 16000), SHORT))
        np.testing.assert_allclose(features, loudest(whole, SHORT), atol=2e-4)


def test_whole_clips_are_padded_at_the_end_to_the_longest(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_PIECES", 2)
    soundfile.write(paths[0], tone(2.77), 16000)  # 6 pieces of 0.5 s
    recordings = recordings_of(paths)._replace(texts=tuple("abcdef"))
    options = {"cache": tmp_path / "cache", "longest": 3.0, "progress": False}
    corpus = load(recordings, SHORT, **options)
    for i in (0, 3, 5):
        features, length = np.asarray(corpus.features)[i], int(corpus.lengths[i])
        expected = compiled_log_mel(read_audio(paths[i], 16000), SHORT)
        assert length == len(expected)
        np.testing.assert_allclose(features[:length], expected, atol=2e-4)
        assert (features[length:] == np.float32(np.log(FLOOR))).all()
    assert corpus.features.shape[1] == 275 == max(corpus.lengths)
    assert corpus.texts == recordings.texts
    assert_same(corpus, load(unread(recordings), SHORT, **options))
    with pytest.raises(AssertionError, match="read although cached"):  # words are others
        load(unread(recordings), SHORT, cache=tmp_path / "cache", progress=False)
    with pytest.raises(InputError, match=r"0\.flac lasts 2\.77 s, expected at most 2 s"):
        load(recordings, SHORT, cache=None, longest=2.0, progress=False)
    with pytest.warns(UserWarning, match="1 of 6 clips are left out"):
        corpus = load(recordings, SHORT, cache=None, longest=2.0, on_error="skip", progress=False)
    assert corpus.texts == tuple("bcdef") and corpus.features.shape[:2] == (5, 78)


def test_what_is_not_kept_is_not_held(monkeypatch):
    """Waves are let go one by one: a few of each of three batches are held at a time, of 60."""
    monkeypatch.setattr(corpus_module, "_BATCH", 20)
    held, most = set(), 0

    def read(clips, sample_rate):
        nonlocal most
        for clip in clips:
            wave = tone(1.0).astype(np.float32)
            held.add(clip)
            most = max(most, len(held))
            weakref.finalize(wave, held.discard, clip)
            yield wave
            del wave

    label = np.zeros(60, np.int32)
    columns, names = {"label": label, "speaker": label}, {"label": ("a",), "speaker": ("s",)}
    recordings = Recordings("made", tuple(map(str, range(60))), columns, names, None, lambda: "", read)
    with pytest.warns(UserWarning, match="60 of 60 clips are longer"):
        load(recordings, SHORT, cache=None, progress=False)
    assert most < 15


def test_cropped_clips_are_counted_also_from_the_cache(paths, tmp_path):
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"made: 3 of 6 clips are longer than 0\.5 s"):
            corpus = load(recordings_of(paths), SHORT, cache=tmp_path / "cache", progress=False)
    assert np.all(np.asarray(corpus.lengths)[3:] == SHORT.num_frames)


def test_cache_gives_the_same_bits_without_reading(paths, tmp_path):
    recordings = recordings_of(paths)
    fresh = load(recordings, SETTINGS, cache=None, progress=False)
    assert not (tmp_path / "cache").exists()
    first = load(recordings, SETTINGS, cache=tmp_path / "cache", progress=False)
    again = load(unread(recordings), SETTINGS, cache=tmp_path / "cache", progress=False)
    assert_same(fresh, first)
    assert_same(first, again)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".features"]


def test_cache_holds_no_labels(paths, tmp_path):
    recordings = recordings_of(paths)
    load(recordings, SETTINGS, cache=tmp_path, progress=False)
    label = 1 - recordings.columns["label"]
    relabelled = unread(recordings._replace(columns=recordings.columns | {"label": label}))
    np.testing.assert_array_equal(load(relabelled, SETTINGS, cache=tmp_path, progress=False).columns["label"], label)


@pytest.mark.parametrize("change", ["content", "name", "order", "segment", "settings", "longest", "format"])
def test_cache_key_follows_what_determines_the_features(paths, tmp_path, monkeypatch, change):
    cache = tmp_path / "cache"
    load(recordings_of(paths), SETTINGS, cache=cache, progress=False)
    settings, recordings, longest = SETTINGS, recordings_of(paths), None
    if change == "content":
        soundfile.write(paths[1], tone(0.4, 1000), 16000)
    elif change == "name":
        recordings = recordings_of([*paths[:5], paths[5].rename(paths[5].with_name("other.wav"))])
    elif change == "order":
        recordings = recordings_of(paths[::-1])
    elif change == "segment":
        recordings = from_files("made", paths, recordings.columns, recordings.names, starts=[0.0] * 5 + [0.1])
    elif change == "settings":
        settings = SETTINGS._replace(low=80.0)
    elif change == "longest":
        longest = 2.0
    else:
        monkeypatch.setattr(corpus_module, "FORMAT", FORMAT + 1)
    with pytest.raises(AssertionError, match="read although cached"):
        load(unread(recordings), settings, cache=cache, longest=longest, progress=False)
    load(recordings, settings, cache=cache, longest=longest, progress=False)
    assert len(list(cache.iterdir())) == 2


def test_format_is_raised_with_every_change_of_the_features(tmp_path):
    """Features that changed while FORMAT did not would let an old cache pass for a new one."""
    time = np.arange(4000) / 8000
    soundfile.write(tmp_path / "chirp.wav", 0.5 * np.sin(2 * np.pi * (200 + 3000 * time) * time), 8000)
    corpus = load(recordings_of([tmp_path / "chirp.wav"]), SETTINGS, cache=None, progress=False)
    expected = [[-4.653, -13.286, -16.167], [-15.613, -11.480, 1.689]]  # of FORMAT 1
    found = np.asarray(corpus.features)[0, 40:55:5][:, [12, 21]].T
    np.testing.assert_allclose(found, expected, atol=0.02, err_msg=f"raise FORMAT, now {FORMAT}, and put in new values")


def test_digest_stays_when_the_folder_moves(paths, tmp_path):
    before = recordings_of(paths).digest()
    moved = (tmp_path / "audio").rename(tmp_path / "moved")
    assert recordings_of([moved / path.name for path in paths]).digest() == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "checksum", "other"])
def test_damaged_cache_is_told_and_rebuilt(paths, tmp_path, damage):
    recordings, cache = recordings_of(paths), tmp_path / "cache"
    good = load(recordings, SETTINGS, cache=cache, progress=False)
    (file,) = cache.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        del data[-1000:]
    elif damage == "empty":
        data.clear()
    elif damage == "bit":
        data[len(data) // 2] ^= 4
    elif damage == "checksum":
        data[3] ^= 1
    else:  # a sound file of another corpus under this one's name
        load(recordings_of(paths[:4]), SETTINGS, cache=tmp_path / "second", progress=False)
        data = bytearray(next((tmp_path / "second").iterdir()).read_bytes())
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=file.name):
        rebuilt = load(recordings, SETTINGS, cache=cache, progress=False)
    assert_same(good, rebuilt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(good, load(unread(recordings), SETTINGS, cache=cache, progress=False))
    assert list(cache.iterdir()) == [file]


def test_cache_that_cannot_be_written_costs_no_features(paths, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be cached"):
        corpus = load(recordings_of(paths), SETTINGS, cache=tmp_path / "cache", progress=False)
    assert len(corpus.features) == 6


def test_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        corpus_module.disk.write(tmp_path / "x.features", {"good": np.ones(3), "bad": np.array([object()])})
    assert not list(tmp_path.iterdir())


def spoil(paths: list[Path]) -> None:
    """Make three of six clips unusable: silent, too short, not audio."""
    soundfile.write(paths[1], np.zeros(8000), 16000)
    soundfile.write(paths[2], tone(0.02), 16000)
    paths[4].write_bytes(b"not audio at all")


def test_bad_clip_raises_and_names_the_file(paths, tmp_path):
    spoil(paths)
    with pytest.raises(InputError, match="1.wav"):
        load(recordings_of(paths), SETTINGS, cache=tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def part(corpus, rows):
    """A corpus of those clips alone."""
    rows = np.array(rows)
    columns = {name: column[rows] for name, column in corpus.columns.items()}
    return corpus._replace(features=corpus.features[rows], lengths=corpus.lengths[rows], columns=columns)


def test_bad_clips_are_skipped_counted_and_listed(paths, tmp_path):
    recordings, cache = recordings_of(paths)._replace(texts=tuple("abcdef")), tmp_path / "cache"
    whole = load(recordings, SETTINGS, cache=None, progress=False)
    spoil(paths)
    with pytest.warns(UserWarning, match="made: 3 of 6 clips are left out"):
        corpus = load(recordings, SETTINGS, cache=cache, on_error="skip", progress=False)
    expected = part(whole, [0, 3, 5])
    assert_same(corpus._replace(skipped=()), expected)
    assert len(corpus.skipped) == 3
    assert corpus.texts == ("a", "d", "f")
    for path, sentence in zip([paths[1], paths[2], paths[4]], corpus.skipped, strict=True):
        assert str(path) in sentence
    with pytest.warns(UserWarning, match="3 of 6"):
        assert_same(corpus, load(unread(recordings), SETTINGS, cache=cache, on_error="skip", progress=False))
    with pytest.raises(InputError, match="1.wav"):
        load(unread(recordings), SETTINGS, cache=cache, progress=False)


def test_no_usable_clip_is_an_error(paths):
    for path in paths:
        soundfile.write(path, np.zeros(8000), 16000)
    with pytest.raises(InputError, match="none of the 6 clips can be used.*0.flac"):
        load(recordings_of(paths), SETTINGS, cache=None, on_error="skip", progress=False)


def test_segments_are_clips(paths):
    label, labels = index(["a", "b"])
    columns, names = {"label": label, "speaker": label}, {"label": labels, "speaker": labels}
    recordings = from_files("made", [paths[5]] * 2, columns, names, starts=[0.0, 0.25], durations=[0.25, None])
    whole = read_audio(paths[5], 16000)
    first, second = recordings.read(range(2), 16000)
    np.testing.assert_array_equal(first, whole[:4000])
    np.testing.assert_array_equal(second, whole[4000:])
    assert len(set(recordings.clip_names)) == 2


def test_inconsistent_recordings_are_refused(paths):
    good = recordings_of(paths)
    no_speaker = good._replace(columns={"label": good.columns["label"]})
    short = good._replace(columns=good.columns | {"label": good.columns["label"][:5]})
    beyond = good._replace(columns=good.columns | {"label": good.columns["label"] + 1})
    for bad, message in ((no_speaker, "speaker"), (short, "label"), (beyond, "label")):
        with pytest.raises(InputError, match=message):
            load(bad, SETTINGS, cache=None, progress=False)
    with pytest.raises(InputError, match="window"):
        load(good, SETTINGS._replace(window=1000), cache=None, progress=False)
    with pytest.raises(InputError, match="made has 2 texts for 6 clips"):
        load(good._replace(texts=("a", "b")), SETTINGS, cache=None, progress=False)
    with pytest.raises(InputError, match="longest is 0.0, expected seconds, at least one window of 400"):
        load(good, SETTINGS, cache=None, longest=0.0, progress=False)
    with pytest.raises(InputError, match="no clips"):
        load(good._replace(clip_names=()), SETTINGS, cache=None, progress=False)


def test_the_summary_counts_what_occurs(paths):
    recordings = recordings_of(paths)
    corpus = load(recordings, SETTINGS, cache=None, progress=False)
    assert summary(recordings) == {"name": "made", "clips": 6, "labels": 2, "speakers": 3}
    counts = summary(part(corpus, [2, 3]))
    hours = counts.pop("hours")
    assert counts == {"name": "made", "clips": 2, "labels": 2, "speakers": 1, "skipped": 0}
    assert hours == pytest.approx((0.5 + 0.6) / 3600, rel=0.1)


def test_progress_goes_to_stderr_and_can_be_off(paths, capsys):
    load(recordings_of(paths), SETTINGS, cache=None, progress=False)
    assert capsys.readouterr() == ("", "")
    load(recordings_of(paths), SETTINGS, cache=None)
    out, err = capsys.readouterr()
    assert out == "" and "6/6" in err and "clip/s" in err
