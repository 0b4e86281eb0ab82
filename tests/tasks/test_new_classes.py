"""Task augmentation: which classes are new, and what their examples become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import Batch, Episode, InputError, Labels
from metajax.tasks.new_classes import changed_classes, mixed_classes

WAYS = 4
KEYS = jax.random.split(jax.random.key(0), 200)


def sample(key):
    """One shot and two queries of 4 classes that are rows of the identity, and 5 more than the class in the corpus."""

    def part(each):
        label = jnp.repeat(jnp.arange(WAYS), each)
        return Batch(jnp.eye(WAYS)[label], Labels(label, label + 5))

    return Episode(part(1), part(2))


def drawn(sample):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sample))(KEYS))


def test_all_examples_of_a_changed_class_have_the_same_change():
    """`change` adds a number of its draw: equal within a class of a task, and other elsewhere."""
    support, query = drawn(changed_classes(sample, lambda x, key: x + jax.random.uniform(key) + 1, WAYS, 0.25))
    added = [batch.x - np.eye(WAYS)[batch.y.episode] for batch in (support, query)]
    np.testing.assert_allclose(np.repeat(added[0], 2, 1), added[1], atol=1e-6)
    shift = added[0][..., 0]
    new = support.y.corpus == -1
    np.testing.assert_array_equal(new, np.abs(shift) > 0.5)
    np.testing.assert_array_equal(support.y.corpus[~new], (support.y.episode + 5)[~new])
    np.testing.assert_array_equal(np.repeat(new, 2, 1), query.y.corpus == -1)
    assert abs(new.mean() - 0.25) < 5 * (0.25 * 0.75 / new.size) ** 0.5
    assert len(np.unique(np.round(shift[new], 5))) > 0.99 * new.sum()


def test_a_mixed_class_lies_between_itself_and_the_next_at_one_place():
    support, query = drawn(mixed_classes(sample, WAYS, 0.5))
    own, after = np.eye(WAYS), np.roll(np.eye(WAYS), -1, 0)
    weight = np.einsum("tcf,cf->tc", support.x, own)
    np.testing.assert_allclose(support.x, weight[..., None] * own + (1 - weight)[..., None] * after, atol=1e-6)
    np.testing.assert_allclose(query.x, np.repeat(support.x, 2, 1), atol=1e-6)
    new = support.y.corpus == -1
    assert (weight[~new] == 1).all() and (weight[new] < 1).all()
    assert 0.4 < new.mean() < 0.6 and 0.4 < weight[new].mean() < 0.6
    np.testing.assert_array_equal(np.repeat(new, 2, 1), query.y.corpus == -1)


@pytest.mark.parametrize("make", [lambda share: changed_classes(sample, lambda x, key: x, WAYS, share),
                                  lambda share: mixed_classes(sample, WAYS, share)])  # fmt: skip
def test_a_share_is_a_probability_and_examples_are_of_all_ways(make):
    jax.tree.map(np.testing.assert_array_equal, make(0.0)(KEYS[0]), sample(KEYS[0]))
    assert (make(1.0)(KEYS[0]).query.y.corpus == -1).all()
    with pytest.raises(InputError, match="share is 1.5, expected a probability"):
        make(1.5)


def test_examples_that_are_no_multiple_of_the_ways_are_refused():
    with pytest.raises(InputError, match="4 examples, expected a multiple of 3 ways"):
        mixed_classes(sample, 3)(KEYS[0])
