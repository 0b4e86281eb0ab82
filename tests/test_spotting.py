"""The experiment on running speech: what counts as heard, and what as a false alarm."""

import numpy as np
import pytest
import spotting
from spotting import HOP, RATE, Settings, Speech, Words, tried

from metajax import InputError


@pytest.mark.parametrize("kind", spotting.KINDS)
def test_words_that_are_said_are_heard_and_their_doubles_are_alarms(kind):
    draw, size = np.random.default_rng(0), 6 * 96 + 4 * 128
    clips = draw.normal(size=(4, size))
    label, speaker = np.arange(4).repeat(2), np.tile([0, 1], 4)
    words = Words(clips[label], label, speaker)  # both say each alike
    windows = 0.1 * draw.normal(size=(400, size))
    places = np.arange(20, 380, 40)
    said = np.array([0, 1, 2, 3, 0, 1, 2, 3, -1])
    for place, one in zip(places, said, strict=True):
        windows[place] = clips[one]
    known = said >= 0  # the last is a double of word 3 that nobody said
    speech = Speech(windows, places[known], said[known], np.zeros(8, int) + np.tile([0, 1], 4))
    s = Settings(ways=4, sets=6)
    found = tried(s, kind, words, 1, speech=speech, faint=np.isin(label, [3]))
    # half of the words are by the voice that taught them, and are not asked
    assert len(found.heard) == 6 * 4
    np.testing.assert_allclose(found.heard, 1, atol=1e-6)
    assert found.hours == pytest.approx(6 * 400 * HOP / RATE / 3600)
    np.testing.assert_allclose(found.alarms[:6], 1, atol=1e-6)  # one for every set
    assert found.faint[:6].all() and found.alarms[6] < 0.9
    assert np.all(np.diff(found.alarms) <= 0)


def test_phrases_that_cannot_be_spoken_are_left_out_and_told(capsys):
    class Some:
        name = "phrases"

        @staticmethod
        def read(rows, rate):
            return [InputError("it crashed.") if row == 3 else np.full(2, row) for row in rows]

    found, kept = spotting.waves(Some, np.array([1, 3, 5]))
    assert [one.tolist() for one in found] == [[1, 1], [5, 5]] and kept.tolist() == [1, 5]
    assert "1 of 3 clips of phrases are left out" in capsys.readouterr().err
