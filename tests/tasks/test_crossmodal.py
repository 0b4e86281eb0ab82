"""Episodes of several modalities, and matching across them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax as mj
from metajax import Batch, Episode, InputError, Labels
from metajax.losses import classify
from metajax.tasks.crossmodal import Items, choices, dropped, only, paired, side_by_side
from metajax.tasks.episodes import episodes
from tests.conftest import words

KEYS = jax.random.split(jax.random.key(0), 50)
LABEL, SPEAKER = words(8, 6, 2)  # classes 0..3 are the digits 0..3 of a language, 4..7 those of another
CLIPS = np.arange(len(LABEL))
IMAGES = np.repeat(np.arange(5), 7)  # class 4 belongs to no clip
SIZES = {"ways": 3, "shots": 1, "queries": 2}


def items(wanted, label=IMAGES):
    return {"image": Items(np.arange(len(label)), label, wanted)}


def drawn(sample):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sample))(KEYS))


def test_every_example_has_an_image_of_its_class_and_no_image_is_twice_in_an_episode():
    wanted = np.where(LABEL % 4 == 3, -1, LABEL % 4)  # the digit 3 has no image
    sample = paired({"audio": CLIPS}, LABEL, SPEAKER, items(wanted), **SIZES, within=LABEL // 4)
    support, query = drawn(sample)
    for batch in (support, query):
        clip, image, (audio, there) = batch.x["audio"], batch.x["image"], np.moveaxis(batch.x["present"], 2, 0)
        assert audio.all() and (there == (LABEL[clip] % 4 != 3)).all() and there.any() and not there.all()
        assert (IMAGES[image][there] == LABEL[clip][there] % 4).all()
    clips = np.concatenate([support.x["audio"], query.x["audio"]], 1)
    assert (LABEL[clips] // 4 == LABEL[clips[:, :1]] // 4).all() and len(set((LABEL[clips[:, 0]] // 4).tolist())) == 2
    for image, there in zip(
        np.concatenate([support.x["image"], query.x["image"]], 1),
        np.concatenate([support.x["present"], query.x["present"]], 1)[..., 1],
        strict=True,
    ):
        assert len(set(image[there].tolist())) == there.sum()
    heard = [set(part) for part in (SPEAKER[support.x["audio"]][0], SPEAKER[query.x["audio"]][0])]
    assert not heard[0] & heard[1]
    assert len(np.unique(query.x["image"])) >= 20  # of 21 that belong to a digit


def test_bad_input_is_told():
    wanted = LABEL % 4
    for wrong, told in (
        (items(np.where(wanted == 2, 6, wanted)), "corpus, image: class 6 has no items, expected 6 or more"),
        (items(wanted, IMAGES[:-10]), "class 3 has 4 items, expected 6 or more"),
        ({"audio": items(wanted)["image"]}, "'audio' is among x and items"),
        (items(wanted[1:]), "label 96, image.wanted 95"),
    ):
        with pytest.raises(InputError, match=told):
            paired({"audio": CLIPS}, LABEL, SPEAKER, wrong, **SIZES)
    how = {"ways": 5, "shots": 1, "queries": 1, "across": "none"}
    with pytest.raises(InputError, match="no group of within has 5 classes; the largest has 4"):
        episodes(CLIPS, LABEL, SPEAKER, **how, within=LABEL // 4)
    with pytest.raises(InputError, match="class 0 is of groups"):
        episodes(CLIPS, LABEL, SPEAKER, **how, within=SPEAKER)
    one, other = (episodes(CLIPS, LABEL, SPEAKER, ways=3, shots=1, queries=n) for n in (1, 2))
    with pytest.raises(InputError, match="x of audio 3, x of image 6"):
        side_by_side({"audio": one, "image": other})(KEYS[0])
    with pytest.raises(InputError, match="modality is 'smell', expected one of audio, present"):
        choices(side_by_side({"audio": one}), "smell")(KEYS[0])
    with pytest.raises(InputError, match="query keeps no modality at all"):
        only(one, np.array([True]), np.array([False]))
    with pytest.raises(InputError, match="rate is 2.0"):
        dropped(jnp.ones((2, 2), bool), KEYS[0], 2.0)


def test_choices_tell_where_the_right_item_is():
    samples = {name: episodes(CLIPS, LABEL, SPEAKER, ways=4, shots=1, queries=1) for name in ("audio", "image")}
    together = side_by_side(samples)
    support, query = drawn(choices(together, "image"))
    given, wanted = (np.take_along_axis(LABEL[query.x[m]], at, 1) for m, at in (
        ("audio", np.broadcast_to(np.arange(4), (50, 4))), ("image", query.y.episode)))  # fmt: skip
    pairs = [LABEL[support.x[m]] for m in ("audio", "image")]
    np.testing.assert_array_equal(given, pairs[0])
    np.testing.assert_array_equal(wanted, pairs[1])  # the pair that the support set has tied
    assert (pairs[0] != pairs[1]).any()  # whatever the words and images are
    assert len(np.unique(query.y.episode[:, 0])) == 4


def test_matching_is_two_hops_of_neighbours():
    """Against loops; a pair that lacks a modality ties nothing; perfect vectors are matched perfectly."""
    draw = np.random.default_rng(0)
    z, asked = draw.normal(size=(4, 2, 5)).astype(np.float32), draw.normal(size=(3, 2, 5)).astype(np.float32)
    z[3, 1] = 0  # absent
    learner = mj.crossmodal(lambda p, x, key: x, classify, given=0, wanted=1, temperature=0.5).learner
    phi = learner.step({"params": ()}, (), Batch(jnp.asarray(z), ()), KEYS[0])
    found = np.asarray(learner.predict({"params": ()}, phi, jnp.asarray(asked), None))

    def cosines(a, b):
        return (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T

    first = np.exp(cosines(asked[:, 0], z[:3, 0]) / 0.5)
    second = np.exp(cosines(z[:3, 1], asked[:, 1]) / 0.5)
    expected = (first / first.sum(1, keepdims=True)) @ (second / second.sum(1, keepdims=True))
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-6)


@pytest.mark.slow
def test_only_and_dropped_leave_what_they_should():
    one = episodes(CLIPS, LABEL, SPEAKER, ways=3, shots=1, queries=1)
    sample = only(side_by_side({"audio": one, "image": one}), np.array([True, False]), np.array([False, True]))
    support, query = drawn(sample)
    assert (support.x["present"] == [True, False]).all() and (query.x["present"] == [False, True]).all()
    assert isinstance(support.y, Labels) and isinstance(sample(KEYS[0]), Episode)
    there = jnp.array([[True, True, False]] * 4000 + [[False, True, False]] * 9)
    left = np.asarray(jax.jit(dropped, static_argnums=2)(there, KEYS[0], 0.4))
    assert left.any(1).all() and not (left & ~np.asarray(there)).any()
    # both stay with 0.36, none would with 0.16 and then keeps one, so that each stays with 0.6 + 0.16 / 2
    np.testing.assert_allclose(left[:4000, :2].mean(0), 0.68, atol=0.03)
    assert dropped(there, KEYS[0], 1.0).sum(1).tolist() == [1] * 4009
