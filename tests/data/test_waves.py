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
    read = lambda clips, rate: [waves[i] for i in clips]  # noqa: E731
    return Recordings("made", tuple(map(str, column)), columns, names, None, lambda: "0", read)


def test_a_clip_is_its_loudest_part_in_the_middle_of_silence():
    long = np.full(20000, 0.01, np.float32)
    long[9000:17000] = 1
    found = word_waves(recordings([long, np.ones(5, np.float32)]), seconds=0.5, silence=0.125)
    np.testing.assert_array_equal(found[0], np.pad(np.ones(8000), 2000))
    np.testing.assert_array_equal(found[1], np.pad(np.ones(5), (5997, 5998)))


def test_a_clip_that_cannot_be_used_is_an_error():
    with pytest.raises(InputError, match="b is no sound"):
        word_waves(recordings([np.ones(9, np.float32), InputError("b is no sound.")]))
