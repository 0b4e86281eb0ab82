"""Words as waves of one length."""

import numpy as np
import pytest

from metajax import InputError
from metajax.data.corpus import Recordings
from metajax.data.waves import word_waves


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
    np.testing.assert_array_equal(found[0], np.pad(tone[9000:17000].astype(np.float16), 2000))
    np.testing.assert_array_equal(found[1], np.pad(tone[:501].astype(np.float16), (5749, 5750)))


def test_a_clip_that_cannot_be_used_is_an_error():
    tone = np.sin(np.arange(900) / 3).astype(np.float32)
    with pytest.raises(InputError, match="b is no sound"):
        word_waves(recordings([tone, InputError("b is no sound.")]))
    with pytest.raises(InputError, match="1 is silent"):
        word_waves(recordings([tone, np.zeros(900, np.float32)]))
