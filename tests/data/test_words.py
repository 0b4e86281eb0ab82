"""From a corpus by name to episodes of its words."""

import jax
import numpy as np
import pytest
import soundfile

from metajax import InputError
from metajax.data import corpora
from metajax.data.augment import normalize
from metajax.data.features import FeatureSettings
from metajax.data.words import clips, embedded, leave_out, load_words, names_of, sampler
from metajax.tasks.episodes import mixture
from tests.conftest import write_tones

SETTINGS = FeatureSettings(seconds=0.5)
SIZES = {"ways": 2, "shots": 1, "queries": 2}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = write_tones(tmp_path_factory.mktemp("tones"), words=7, speakers=7, takes=2)
    return load_words("manifest", path, ways=2, settings=SETTINGS)


def row_of(words, clips):
    """Which clip of the corpus each normalised example is."""
    table = np.asarray(jax.jit(jax.vmap(lambda x: normalize(x, "mean_variance")))(words.corpus.features))
    return [int(np.abs(table - clip).max((1, 2)).argmin()) for clip in np.asarray(clips)]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_episodes_of_a_split_are_its_normalised_clips(words, split):
    episode = jax.jit(sampler(words, split, **SIZES))(jax.random.key(0))
    for batch in episode:
        np.testing.assert_allclose(np.asarray(batch.x).std((1, 2)), 1, atol=1e-3)
        rows = row_of(words, batch.x)
        assert getattr(words.splits, split)[rows].all()
        assert {words.corpus.names["label"][i] for i in words.corpus.columns["label"][rows]} <= set(
            names_of(words, split, "label")
        )


def test_clips_are_what_episodes_hold(words, tmp_path):
    path = write_tones(tmp_path, words=2, speakers=1, takes=1)
    x, corpus = clips("manifest", path, settings=SETTINGS)
    assert [corpus.names["label"][i] for i in corpus.columns["label"]] == ["w0", "w1"]
    np.testing.assert_allclose(x, jax.vmap(lambda x: normalize(x, "mean_variance"))(corpus.features), atol=1e-6)


def test_splits_share_no_name(words):
    for column in ("label", "speaker"):
        parts = [names_of(words, split, column) for split in words.splits._fields]
        assert sum(map(len, parts)) == len({name for part in parts for name in part}) == 7
    assert words.data.startswith("tones: 98 clips, 7 labels, 7 speakers, 0 skipped, digest ")


@pytest.mark.slow
def test_augmentation_changes_the_clips_by_the_key(words):
    plain, changed = (jax.jit(sampler(words, "train", **SIZES, augmentation=a)) for a in (0.0, 0.5))
    key = jax.random.key(1)
    assert np.abs(plain(key).query.x - changed(key).query.x).max() > 0.1
    np.testing.assert_array_equal(plain(key).query.y.corpus, changed(key).query.y.corpus)
    mixed = jax.jit(mixture(plain, changed, 0.5))(key)
    assert mixed.support.x.shape == (2, SETTINGS.num_frames, SETTINGS.num_mels)


def test_what_is_tested_on_is_left_out_by_name(words):
    with pytest.warns(UserWarning, match="are tested on and left out of training"):
        left = leave_out(words._replace(splits=words.splits._replace(train=np.ones(98, bool))), words)
    for column in ("label", "speaker"):
        assert not {*names_of(left, "train", column)} & {*names_of(words, "test", column)}
    assert names_of(left, "train", "label")


def test_recorded_noise_is_read_where_the_corpus_has_it(tmp_path, words):
    assert words.noise is None
    noise = np.random.default_rng(0).normal(size=16000)
    (tmp_path / "background_noise").mkdir()
    soundfile.write(tmp_path / "background_noise" / "a.wav", 0.1 * noise, 16000)
    rows = ["file,class,speaker"]
    for i in range(20):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * noise[i * 100 :][:8000], 16000)
        rows.append(f"{i}.wav,w{i % 4},s{i // 4}")
    (tmp_path / "train.csv").write_text("\n".join(rows))
    (tmp_path / "val.csv").write_text("\n".join(rows[:1]))
    found = load_words("arabic", tmp_path, ways=2, settings=SETTINGS, noise=True)
    assert found.noise.shape == (98, 40) and found.data.endswith(", 98 frames of noise")
    (tmp_path / "background_noise" / "a.wav").unlink()
    with pytest.raises(InputError, match="no recordings of noise"):
        load_words("arabic", tmp_path, ways=2, settings=SETTINGS, noise=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("klingon",), "The corpus is 'klingon', expected one of espeak, fsdd, arabic, speech_commands, manifest"),
        (("espeak", "folder"), "espeak is made on the spot and reads no folder, found root = folder"),
        (("fsdd",), "The corpus fsdd needs a root"),
    ],
)
def test_corpora_are_read_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        corpora.read(*arguments)


def test_a_split_that_is_none_is_refused(words):
    with pytest.raises(InputError, match="split is 'dev', expected one of train, validation, test"):
        sampler(words, "dev", **SIZES)


def test_clips_embedded_once_are_those_of_the_split(words):
    table = np.asarray(words.corpus.features[:, 0, :5])
    batches = embedded(words, "test", lambda x: 2 * x[:, 0, :5])(**SIZES)(jax.random.key(0))
    rows = [[int(np.abs(table - z / 2).max(1).argmin()) for z in np.asarray(batch.x)] for batch in batches]
    for batch, chosen in zip(batches, rows, strict=True):
        np.testing.assert_allclose(np.asarray(batch.x) / 2, table[chosen], rtol=1e-5)
        assert words.splits.test[chosen].all()
    label, speaker = (words.corpus.columns[name] for name in ("label", "speaker"))
    assert label[rows[1]].tolist() == np.repeat(label[rows[0]], 2).tolist()
    assert not {*speaker[rows[0]]} & {*speaker[rows[1]]}
