"""Two clips of each word, each of which is its own number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.errors import InputError
from metajax.tasks.pairs import word_pairs

CLIPS = jnp.arange(24.0)[:, None, None]


@pytest.mark.parametrize(("one", "both"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_two_clips_of_a_word_are_by_any_voices_or_one_or_both_by_real_ones(one, both):
    label, real = np.repeat(np.arange(6), 4), np.tile([0, 0, 1, 1], 6)
    columns = {"label": label, "real": real, "speaker": np.arange(24)}
    sample = jax.jit(word_pairs(CLIPS, **columns, ways=4, mixed=one, alike=both))
    found = set()
    for i in range(24):
        episode = sample(jax.random.key(i))
        first, second = (np.asarray(of.x[:, 0, 0]).astype(int) for of in (episode.support, episode.query))
        np.testing.assert_array_equal(label[first], label[second])
        assert (first != second).all()
        found |= set((real[first] + real[second]).tolist())
    assert found == {(1.0, 0.0): {1}, (0.0, 1.0): {2}, (0.0, 0.0): {0, 1, 2}, (0.5, 0.5): {1, 2}}[one, both]


def test_what_is_not_asked_for_needs_no_words():
    label, real = np.repeat(np.arange(6), 4), np.tile([0, 0, 1, 1], 6)
    columns = {"label": label, "real": np.where(label > 1, 0, real), "speaker": np.arange(24)}
    word_pairs(CLIPS, **columns, ways=4, mixed=0.0, alike=0.0)
    for name in ("mixed", "alike"):
        share = {"mixed": 0.0, "alike": 0.0} | {name: 0.5}
        with pytest.raises(InputError, match=rf"voices \({name}\): 2 of"):
            word_pairs(CLIPS, **columns, ways=4, **share)
