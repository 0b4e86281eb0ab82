"""Words as waves of one length."""

import numpy as np
import pytest

from metajax import InputError
from metajax.data.corpus import Recordings
from metajax.data.waves import placed, word_waves
from tests.conftest import LOW


def recordings(waves):
    """A corpus of these waves."""
    column = np.zeros(len(waves), int)
    columns = {"label": column, "speaker": column}
    names = {"label": ("a",), "speaker": ("s",)}
    clip_names = tuple(map(str, range(len(waves))))
    read = lambda clips, rate: [waves[i] for i in clips]  # noqa: E731
    return Recordings("made", clip_names, columns, names, None, lambda: "0", read)


def test_a_clip_is_its_loudest_part_in_the_middle_of_silence():
    tone = np.sin(np.arange(20000) / 3).astype(np.float32)
    long = np.where((np.arange(20000) >= 9000) & (np.arange(20000) < 17000), tone, 0.01 * tone)
    found = word_waves(recordings([long, tone[:501]]), seconds=0.5, silence=0.125)
    start = 8936 + next(
        i for i in range(128) if (found[0][2000:2100] == long[8936 + i :][:100].astype(np.float16)).all()
    )
    np.testing.assert_array_equal(found[0], np.pad(long[start : start + 8000].astype(np.float16), 2000))
    np.testing.assert_array_equal(found[1], np.pad(tone[:501].astype(np.float16), (5749, 5750)))


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("low", LOW)
def test_the_loudest_part_holds_the_word_whatever_lies_below_it(low, rate):
    time = np.arange(3 * rate) / rate
    word = np.where(abs(time - 2) < 0.25, 0.1 * np.sin(2 * np.pi * 300 * time) * np.sin(np.pi * (time - 1.75) / 0.5), 0)
    wave = word + 1e-4 * np.random.default_rng(0).normal(size=3 * rate) + LOW[low](time)
    kept = placed(wave, rate, 0, sample_rate=rate)
    start = next(i for i in range(len(wave)) if wave[i] == kept[0] and wave[i + 1] == kept[1])
    assert 1.25 <= start / rate <= 1.75  # the second holds 1.75 s to 2.25 s
    np.testing.assert_array_equal(kept, wave[start : start + rate])


def test_a_clip_that_cannot_be_used_is_an_error():
    tone = np.sin(np.arange(900) / 3).astype(np.float32)
    with pytest.raises(InputError, match="b is no sound"):
        word_waves(recordings([tone, InputError("b is no sound.")]))
    with pytest.raises(InputError, match="1 is silent"):
        word_waves(recordings([tone, np.zeros(900, np.float32)]))
