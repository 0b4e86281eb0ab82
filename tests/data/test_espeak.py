"""The synthetic corpus: that it is the same however it is read, and that its splits share nothing."""

import hashlib
import importlib.metadata
import importlib.util
import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from metajax.data.corpora import espeak
from metajax.errors import InputError
from metajax.tasks.episodes import index_tables

SPEC = importlib.util.find_spec("espeakng_loader")
needs_engine = pytest.mark.skipif(SPEC is None, reason="espeakng-loader is not installed")
MEASURED_WITH = "0.2.4"  # of espeakng-loader
# f2 has noise, klatt and max none; the klatt synthesiser keeps the most state from one utterance to the next
SMALL = {"languages": ("de", "fr", "ru", "sw", "tr"), "numbers": (1, 7, 17), "clips_per_label": 2}
SMALL |= {"voices": ("f2", "klatt", "max", "Annie", "paul", "m3")}


@pytest.fixture(scope="module")
def small():
    return espeak.read(**SMALL)


@pytest.fixture(scope="module")
def waves(small):
    return small.read(range(len(small.clip_names)), 16000)


@pytest.fixture(scope="module")
def default():
    return espeak.read()


def fingerprint(waves) -> str:
    return hashlib.sha256(b"".join(wave.tobytes() for wave in waves)).hexdigest()


def sets(recordings, column: str) -> list[set]:
    """Return what occurs of a column in each split."""
    names, values, split = recordings.names[column], recordings.columns[column], recordings.columns["split"]
    return [{names[value] for value in values[split == number]} for number in range(3)]


@needs_engine
def test_clips_do_not_depend_on_the_order_of_reading(small, waves):
    order = random.Random(0).sample(range(len(waves)), len(waves))
    for clip, wave in zip(order, small.read(order, 16000), strict=True):
        np.testing.assert_array_equal(wave, waves[clip], err_msg=small.clip_names[clip])
    for clip in order[:8]:
        np.testing.assert_array_equal(small.read([clip], 16000)[0], waves[clip], err_msg=small.clip_names[clip])


@pytest.mark.slow
@needs_engine
def test_another_process_makes_the_same_clips(small, waves):
    program = f"""
import hashlib
from metajax.data.corpora import espeak
recordings = espeak.read(**{SMALL!r}, workers=1)
waves = recordings.read(range(len(recordings.clip_names)), 16000)
print(recordings.digest(), hashlib.sha256(b"".join(wave.tobytes() for wave in waves)).hexdigest())
"""
    root = Path(__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert child.stdout.split() == [small.digest(), fingerprint(waves)]
    assert child.stderr == ""


@needs_engine
def test_seed_and_settings_change_the_digest(small):
    assert espeak.read(**SMALL, seed=1).digest() != small.digest()
    assert espeak.read(**SMALL | {"clips_per_label": 1}).digest() != small.digest()


@needs_engine
def test_clips_are_trimmed_scaled_and_distinct(small, waves):
    assert len({fingerprint([wave]) for wave in waves}) == len(waves)
    for name, wave in zip(small.clip_names, waves, strict=True):
        assert wave.dtype == np.float32 and 0.1 * 16000 < len(wave) <= 16000, name
        assert np.abs(wave).max() == pytest.approx(0.7079, abs=1e-3), name
        assert min(np.abs(wave[:490]).max(), np.abs(wave[-490:]).max()) > 0.005, name  # 30 ms
    (half,) = small.read([3], 8000)
    assert len(half) == pytest.approx(len(waves[3]) / 2, abs=1)


@pytest.mark.slow
@needs_engine
def test_default_counts(default):
    names = {"languages": "language", "speakers": "speaker", "labels": "label"}
    counts = {what: len(default.names[column]) for what, column in names.items()} | {"clips": len(default.clip_names)}
    exact = importlib.metadata.version("espeakng-loader") == MEASURED_WITH
    assert counts == (espeak.COUNTS if exact else pytest.approx(espeak.COUNTS, rel=0.2))
    shares = [len(labels) / counts["labels"] for labels in sets(default, "label")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.05)
    shares = [len(speakers) / counts["speakers"] for speakers in sets(default, "speaker")]
    assert shares == pytest.approx([0.68, 0.16, 0.16], abs=0.05)


@needs_engine
def test_splits_share_no_word_language_or_speaker(default):
    for column in ("label", "language", "speaker"):
        train, validation, test = sets(default, column)
        assert train and validation and test
        assert not (train & validation or train & test or validation & test), column
    place = {language: number for number, part in enumerate(sets(default, "language")) for language in part}
    for kin in (("bs", "hr", "sr"), ("hi", "ur"), ("id", "ms"), ("nb", "sv"), ("cs", "sk"), ("eo", "io")):
        assert len({place[language] for language in kin}) == 1, kin


@needs_engine
def test_a_speaker_is_a_voice_whatever_its_pitch(default):
    """Else an episode across speakers has one voice on both sides."""
    voice = [re.fullmatch(r"espeak:.*\+(.*)-p\d+-r\d+-i\d+:.*", name)[1] for name in default.clip_names]
    speaker = [default.names["speaker"][i] for i in default.columns["speaker"]]
    assert [espeak.family(name) for name in voice] == speaker
    assert {espeak.family(name) for name in speaker} == set(speaker) and len(set(voice)) > len(set(speaker))


@needs_engine
@pytest.mark.parametrize(("ways", "shots", "queries"), [(5, 5, 5), (10, 1, 5)])
def test_every_split_has_speakers_enough_for_episodes_across_them(default, ways, shots, queries):
    for number in range(3):
        label = np.where(default.columns["split"] == number, default.columns["label"], -1)
        tables = index_tables(label, default.columns["speaker"], ways, shots, queries, "speaker", "espeak")
        assert len(tables.members) >= 10


@needs_engine
def test_labels_are_distinct_sounds_each_by_as_many_speakers_as_there_are(default):
    sounds, speakers = defaultdict(set), defaultdict(list)
    for label, speaker, text in zip(default.columns["label"], default.columns["speaker"], default.texts, strict=True):
        sounds[label].add(text)
        speakers[label].append(speaker)
    assert all(len(texts) == 1 for texts in sounds.values())
    assert len(set.union(*sounds.values())) == len(sounds)  # no two labels of one sound
    assert not any(mark in text for texts in sounds.values() for text in texts for mark in "ˈˌ( ")
    assert all(len(of_label) == 12 and len(set(of_label)) >= 10 for of_label in speakers.values())


@needs_engine
def test_semitic_languages_and_languages_without_numbers_are_left_out(default):
    languages = set(default.names["language"])
    assert not languages & {"ar", "mt", "he", "am", "ti", "fo", "grc", "ne", "chr", "en-us"}
    assert languages >= {"en", "de", "sw", "hi", "cmn"}


@needs_engine
def test_pseudowords_are_read_by_languages_with_latin_letters_only():
    recordings = espeak.read(languages=["de", "es", "hi"], numbers=[], pseudowords=6, clips_per_label=1)
    assert {label.split(":")[0] for label in recordings.names["label"]} == {"de", "es"}
    assert len(recordings.names["label"]) == 12


@needs_engine
def test_nothing_is_printed(capfd):
    recordings = espeak.read(
        **SMALL | {"languages": ("fo", "kaa", "sw"), "clips_per_label": 1}
    )  # two lack dictionaries
    recordings.read([0], 16000)
    assert recordings.names["language"] == ("sw",)
    assert capfd.readouterr() == ("", "")
    assert "espeakng_loader" not in sys.modules


@needs_engine
def test_engine_in_a_deep_folder(small, waves, tmp_path, monkeypatch):
    site = tmp_path / ("d" * 100) / ("e" * 100)
    site.mkdir(parents=True)
    (site / "espeakng_loader").symlink_to(SPEC.submodule_search_locations[0], target_is_directory=True)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    assert len(str(espeak._find_data())) > 200
    deep = espeak.read(**SMALL)
    assert deep.digest() == small.digest()
    np.testing.assert_array_equal(deep.read([4], 16000)[0], waves[4])


@needs_engine
def test_crash_costs_one_clip(small):
    clips = [("roa/fr+m3", "7", 50, 175, 50, 0), ("esx/kl", "0", 50, 150, 50, 0), ("roa/fr+m3", "7", 50, 175, 50, 0)]
    before, crash, after = espeak._speak_chunk(espeak._find_data(), clips)
    if not isinstance(crash, str):
        pytest.skip("this build of eSpeak NG can say 0 in Greenlandic")
    np.testing.assert_array_equal(before, after)
    error = espeak.finish(16000, crash, "espeak:kl:0")
    assert isinstance(error, InputError) and "esx/kl 0" in str(error) and "\n" not in str(error)


def test_versions_of_one_voice_are_a_family():
    families = [espeak.family(voice) for voice in ("adam", "edward2", "steph", "steph3", "Gene2", "gene", "m1", "m2")]
    assert families == ["edward", "edward", "steph", "steph", "gene", "gene", "m1", "m2"]


def test_last_words_of_a_dying_child(tmp_path, monkeypatch):
    package = tmp_path / "espeakng_loader"
    (package / "espeak-ng-data" / "voices" / "!v").mkdir(parents=True)
    (package / "__init__.py").write_text("import sys, os\nos.write(2, b'farewell')\nos._exit(7)")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(InputError, match=r"exit status 7.*farewell"):
        espeak.read()


@needs_engine
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ["frr"]}, "'frr' is no language of eSpeak NG, expected one such as fr"),
        ({"exclude": ["arr"]}, "'arr' is no language of eSpeak NG, expected one such as ar"),
        ({"languages": ["ar"]}, "no language is left"),
        ({"languages": ["en-us"], "exclude": ["en"]}, "no language is left"),
        ({"voices": ["Ann"]}, "'Ann' is no voice of eSpeak NG, expected one such as Annie"),
        ({"numbers": [3, -4]}, "numbers holds -4, expected at least 0"),
        ({"pseudowords": -1}, "pseudowords holds -1"),
        ({"clips_per_label": 0}, "clips_per_label holds 0, expected at least 1"),
        ({"workers": 0}, "workers holds 0"),
        ({"seconds": 0.0}, "seconds is 0.0, expected more than 0"),
        ({**SMALL, "voices": ["f2"]}, "the .* split has words, but none of the 1 speakers"),
        ({**SMALL, "seconds": 0.01}, "no word is left: .* last longer than 0.01 s"),
        ({**SMALL, "languages": ["fo"]}, "no word is left: 3 words not read in their language"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(InputError, match=message):
        espeak.read(**settings)


def test_engine_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed.*pip install 'metajax\[espeak\]'"):
        espeak.read()
