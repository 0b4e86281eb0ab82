"""What several synthesisers say, as one set of clips: beeps in place of words."""

from functools import partial

import numpy as np
import pytest

from metajax.data import cache, synthesisers
from metajax.data.corpora.files import tabulate
from metajax.data.corpus import Recordings
from metajax.data.features import FeatureSettings
from metajax.data.synthesisers import columns_of, joined, listened, made_from_speakers, once, told
from metajax.errors import InputError

SETTINGS = FeatureSettings(seconds=0.1)


def says(name, rows):
    """A corpus of (label, speaker): each label another tone."""
    columns, names = tabulate({c: [row[i] for row in rows] for i, c in enumerate(("label", "speaker"))})

    def read(indices, rate):
        return [np.sin(np.arange(rate // 10) * (columns["label"][i] + 1) / 5).astype(np.float32) for i in indices]

    return Recordings(name, tuple(map(str, rows)), columns, names, None, lambda: name, read)


def test_the_clips_of_all_are_one_set_whose_voices_of_real_speakers_are_marked():
    plain = says("espeak", [("de:eins", "m1"), ("de:zwei", "f1"), ("en:1", "m1")])
    real = says("pico", [("de:eins", "pico de"), ("de:zwei", "pico de")])
    heard = joined([listened([plain], SETTINGS, None), listened([real], SETTINGS, None)])
    assert heard.x.dtype == np.float16 and len(heard.x) == 5
    assert len(joined([heard, listened([], SETTINGS, None)]).x) == 5
    assert told(heard) == "3 by 2 voices of espeak, 2 by 1 voices of pico"
    columns = columns_of(heard, ["en:1"])
    assert columns["label"].tolist() == [0, 1, -1, 0, 1] and columns["real"].tolist() == [0, 0, 0, 1, 1]
    assert len(set(columns["speaker"].tolist())) == 3
    np.testing.assert_array_equal(heard.x[:2], heard.x[3:])  # either corpus has the same two tones
    assert (heard.x[0] != heard.x[1]).any()


def test_what_was_heard_is_kept_for_a_machine_that_cannot_hear_it(tmp_path):
    path, corpus = tmp_path / "kept", says("pico", [("de:eins", "a"), ("de:zwei", "b")])
    hear, never = lambda: listened([corpus], SETTINGS, None), lambda: pytest.fail("nothing is to be heard again")
    heard, again = once(path, "--more 1", hear), once(path, "--more 1", never)
    for a, b in zip(heard, again, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(once(None, "", hear).x, heard.x)
    with pytest.raises(InputError, match=r"kept was made with --more 1, expected --more 2\."):
        once(path, "--more 2", never)
    with pytest.raises(InputError, match="none is not there and nothing speaks"):
        once(tmp_path / "none", "", lambda: listened([], SETTINGS, None))
    assert not (tmp_path / "none").exists() and len(once(None, "", lambda: listened([], SETTINGS, None)).x) == 0
    cache.write(tmp_path / "other", {"features": np.zeros(3)})
    with pytest.raises(InputError, match="other holds features, expected what synthesisers said"):
        once(tmp_path / "other", "", never)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="kept is damaged"):
        once(path, "--more 1", never)


def test_each_says_the_words_that_it_is_to_say(monkeypatch, tmp_path):
    asked = {}

    def ask(name, words, *of, **how):
        asked[name] = words, of, how
        return plain[0]

    for name in ("festival", "pico", "kokoro"):
        engine = getattr(synthesisers, name)
        monkeypatch.setattr(engine, "read", partial(ask, name))
    plain = [says("espeak", [("de:eins", "m1"), ("de:eins", "f1")]), says("espeak", [("it:uno", "m1")])]
    assert made_from_speakers(plain, installed=False) == [] and not asked
    assert len(made_from_speakers(plain, installed=True, model=tmp_path, seed=3)) == 3
    assert asked["festival"][0] == ("it:uno",) and asked["pico"][0] == ["de:eins", "it:uno"]
    assert asked["kokoro"] == (plain[0], (tmp_path,), {"seed": 3})
