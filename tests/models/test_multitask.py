"""Models of several tasks and their losses: against numpy, what masks and absent tasks change, and bad input."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import Batch, Episode, InputError, joint
from metajax.losses import multitask_error, multitask_losses
from metajax.losses.multitask import total
from metajax.models import embedding_heads, image_encoder, mlp, multitask, tcresnet8
from tests.conftest import assert_close, differs, normal

KEY = jax.random.key(0)
HEADS = {"speech": 4, "image": 3}
TABLE = embedding_heads(HEADS, num_tokens=7, width=5)
TOKENS = {"speech": jnp.array([[0, 6, 6, 2], [3, 1, -1, -1]]), "image": jnp.array([[5, 5], [4, -1], [0, 1]])}
LABELS = {"speech": jnp.array([3, 1]), "image": jnp.array([0, 2, 1])}
# two tasks share an encoder, the third has its own; image comes before speech in the alphabet, but not here
SHARED = multitask(
    {"audio": mlp(hidden=(6,)), "image": mlp(hidden=(5,))},
    {"words": 4, "image": 3, "speakers": 2},
    modality={"words": "audio", "speakers": "audio"},
    width=8,
    depth=1,
)


def batch_of(x, y):
    return {task: Batch(x[task], y[task]) for task in x}


@pytest.fixture(scope="module")
def table():
    return jax.jit(TABLE.init)(KEY, TOKENS)


@pytest.fixture(scope="module")
def several():
    """Parameters of SHARED and a batch of all its tasks."""
    x = np.asarray(normal(3, 5, 6))
    x = {"words": x[0], "image": x[1, :3], "speakers": x[2, :4]}
    y = {"words": np.array([0, 1, 2, 3, 0]), "image": np.array([2, 0, 1]), "speakers": np.array([1, 0, 0, 1])}
    return jax.jit(SHARED.init)(KEY, x), batch_of(x, y)


@jax.jit
def measure(params, batch):
    """Losses, presence and metrics of SHARED, and the gradient of each loss, stacked."""
    losses_fn = multitask_losses(SHARED.apply, SHARED.heads, normalize=True)
    return losses_fn(params, batch), jax.jacrev(lambda params: losses_fn(params, batch)[0])(params)


embed_of_table, embed_of_several = (jax.jit(model.embed, static_argnums=1) for model in (TABLE, SHARED))


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)])


@pytest.mark.slow
def test_the_reference_model_against_its_definition(table):
    """One embedding per token, their mean over what is not padding, a linear head per task, the sum of the losses."""
    apply, wanted = jax.jit(TABLE.apply), []
    for task, classes in HEADS.items():
        kernel, bias = (np.asarray(table["heads"][task][name]) for name in ("kernel", "bias"))
        assert kernel.shape == (5, classes) and bias.shape == (classes,)
        embedding = np.asarray(table["shared"]["embedding"])
        pooled = np.stack([embedding[[t for t in row if t >= 0]].mean(0) for row in TOKENS[task].tolist()])
        np.testing.assert_allclose(embed_of_table(table, task, TOKENS[task]), pooled, rtol=1e-5, atol=1e-6)
        logits = apply(table, {task: TOKENS[task]})
        assert list(logits) == [task]
        np.testing.assert_allclose(logits[task], pooled @ kernel + bias, rtol=1e-5, atol=1e-6)
        wanted.append(cross_entropy(pooled @ kernel + bias, LABELS[task]))
    batch = batch_of(TOKENS, LABELS)
    losses, present, metrics = jax.jit(multitask_losses(TABLE.apply, HEADS))(table, batch)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert present.tolist() == [True, True]
    np.testing.assert_allclose(metrics["loss"], sum(wanted), rtol=1e-5)
    np.testing.assert_allclose([metrics["speech_loss"], metrics["image_loss"]], wanted, rtol=1e-5)
    logits = apply(table, TOKENS)
    hits = [(np.argmax(logits[task], 1) == LABELS[task]).mean() for task in HEADS]
    np.testing.assert_allclose([metrics["speech_accuracy"], metrics["image_accuracy"]], hits)
    scaled, _, more = jax.jit(multitask_losses(TABLE.apply, HEADS, normalize=True))(table, batch)
    np.testing.assert_allclose(scaled, [wanted[0] / math.log(4), wanted[1] / math.log(3)], rtol=1e-5)
    np.testing.assert_allclose(more["loss"], scaled.sum(), rtol=1e-6)
    np.testing.assert_allclose(more["speech_loss"], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(total(losses, [0.5, 3.0]), 0.5 * wanted[0] + 3 * wanted[1], rtol=1e-5)
    np.testing.assert_allclose(total(losses), sum(wanted), rtol=1e-5)


def test_the_reference_model_has_the_sizes_of_the_reference():
    shapes = jax.eval_shape(embedding_heads().init, KEY, TOKENS)
    assert jax.tree.map(lambda s: s.shape, shapes) == {
        "shared": {"embedding": (1000, 128)},
        "heads": {"speech": {"kernel": (128, 30), "bias": (30,)}, "image": {"kernel": (128, 10), "bias": (10,)}},
    }


def test_the_gradient_of_the_table_is_that_of_looking_tokens_up(table, x64):
    params = jax.tree.map(lambda a: a.astype(jnp.float64), table)

    def looked_up(table, x):
        rows = [table[np.array([t for t in row if t >= 0])].mean(0) for row in x.tolist()]
        return jnp.square(jnp.stack(rows)).sum()

    def product(table, x):
        return jnp.square(TABLE.embed({"shared": {"embedding": table}}, "speech", x)).sum()

    for x in TOKENS.values():
        a, b = (jax.jit(jax.grad(partial(f, x=x)))(params["shared"]["embedding"]) for f in (product, looked_up))
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_padding_and_order_change_nothing_and_only_padding_is_nothing(table):
    x = TOKENS["speech"]
    z = embed_of_table(table, "speech", x)
    longer = np.pad(x, ((0, 0), (1, 2)), constant_values=-1)
    np.testing.assert_allclose(embed_of_table(table, "speech", longer), z, rtol=1e-6)
    longer[:, 0] = -9
    np.testing.assert_allclose(embed_of_table(table, "speech", longer), z, rtol=1e-6)
    np.testing.assert_allclose(embed_of_table(table, "image", x[:, ::-1]), z, rtol=1e-5)
    assert not embed_of_table(table, "speech", np.full((1, 3), -1)).any()
    assert not embed_of_table(table, "speech", np.zeros((1, 0), np.int32)).any()


@pytest.mark.slow
def test_masked_examples_change_nothing(several):
    """Value and gradient are those of a batch without them."""
    params, batch = several
    kept = {task: np.arange(len(y)) % 2 == 0 for task, (_, y) in batch.items()}
    mask = {task: Batch(x, np.where(kept[task], y, -1)) for task, (x, y) in batch.items()}
    without = {task: Batch(x[kept[task]], y[kept[task]]) for task, (x, y) in batch.items()}
    (masked, present, _), grads = found = jax.tree.map(np.asarray, measure(params, mask))
    assert present.all() and masked.all()
    assert_close(found, measure(params, without), 1e-6)
    assert differs(grads, measure(params, batch)[1], 1e-3)
    # what a masked example holds is of no account either
    other = {task: Batch(np.where(kept[task][:, None], x, 7 * x + 1), y) for task, (x, y) in mask.items()}
    assert_close(measure(params, other), found, 1e-6)


@pytest.mark.parametrize("how", ["absent", "masked"])
def test_an_absent_task_has_no_loss_and_no_gradient(several, how):
    params, batch = several
    rest = {task: examples for task, examples in batch.items() if task != "words"}
    if how == "masked":
        rest["words"] = Batch(batch["words"].x, np.full(5, -1))
    (losses, present, metrics), grads = jax.tree.map(np.asarray, measure(params, rest))
    (_, all_present, all_metrics), all_grads = jax.tree.map(np.asarray, measure(params, batch))
    assert present.tolist() == [False, True, True] and losses[0] == 0
    assert all_present.all() and all_metrics.keys() == metrics.keys()
    assert np.isnan(metrics["words_loss"]) and np.isnan(metrics["words_accuracy"])
    np.testing.assert_allclose(metrics["loss"], losses[1] + losses[2], rtol=1e-6)
    np.testing.assert_allclose(metrics["image_loss"], all_metrics["image_loss"], rtol=1e-6)
    assert all(
        not leaf[0].any() and all_leaf[0].any()
        for leaf, all_leaf in zip(*map(jax.tree.leaves, (grads["shared"], all_grads["shared"])), strict=True)
    )
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads["heads"]["words"]))
    assert_close(jax.tree.map(lambda a: a[1:], grads), jax.tree.map(lambda a: a[1:], all_grads), 1e-6)


def test_tasks_may_share_an_encoder_and_all_share_the_trunk(several):
    params, batch = several
    assert set(params) == {"encoders", "shared", "heads"}
    assert set(params["encoders"]) == {"audio", "image"} and set(params["heads"]) == {"words", "image", "speakers"}
    x = batch["words"].x
    np.testing.assert_array_equal(*(embed_of_several(params, task, x) for task in ("words", "speakers")))
    logits = jax.jit(SHARED.apply)(params, {task: examples.x for task, examples in batch.items()})
    for task, (x, _) in batch.items():
        z, head = (jax.tree.map(np.asarray, a) for a in (embed_of_several(params, task, x), params["heads"][task]))
        assert z.shape == (len(x), 8)
        np.testing.assert_allclose(logits[task], z @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)
    # which task's loss reaches what, in the order of the heads
    grads = jax.tree.map(np.asarray, measure(params, batch)[1])
    reached = {
        name: [any(leaf[task].any() for leaf in jax.tree.leaves(part)) for task in range(3)]
        for name, part in (
            {f"to {task}": head for task, head in grads["heads"].items()}
            | grads["encoders"]
            | {"shared": grads["shared"]}
        ).items()
    }
    assert reached == {
        "to words": [True, False, False],
        "to image": [False, True, False],
        "to speakers": [False, False, True],
        "audio": [True, False, True],
        "image": [False, True, False],
        "shared": [True, True, True],
    }


def test_the_trunk_against_its_definition(several):
    params, batch = several
    p, part = (jax.tree.map(np.asarray, tree) for tree in (params["shared"], params["encoders"]["audio"]))

    def norm(z, q):
        return (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5) * q["scale"] + q["bias"]

    x = batch["words"].x
    body, projection = part["body"]["dense0"], part["projection"]
    z = np.maximum(np.asarray(x) @ body["kernel"] + body["bias"], 0) @ projection["kernel"] + projection["bias"]
    y = np.maximum(norm(z, p["norm0"]) @ p["dense0a"]["kernel"] + p["dense0a"]["bias"], 0)
    z = norm(z + y @ p["dense0b"]["kernel"] + p["dense0b"]["bias"], p["norm"])
    np.testing.assert_allclose(embed_of_several(params, "words", x), z, rtol=1e-4, atol=1e-5)


def test_a_speech_and_an_image_encoder_of_different_kinds():
    """What an experiment builds; a depth of 0 leaves projections and a norm."""
    encoders = {"speech": tcresnet8(normalization="group"), "image": image_encoder()}
    model = multitask(encoders, {"speech": 30, "image": 10}, depth=0)
    x = {"image": jnp.zeros((3, 28, 28)), "speech": jnp.zeros((2, 20, 8))}
    params = jax.eval_shape(model.init, KEY, x)
    assert params["encoders"]["speech"]["projection"]["kernel"].shape == (48, 64)
    assert params["encoders"]["image"]["projection"]["kernel"].shape == (4 * 4 * 64, 64)
    assert set(params["shared"]) == {"norm"}
    logits = jax.eval_shape(model.apply, params, x)
    assert {task: y.shape for task, y in logits.items()} == {"image": (3, 10), "speech": (2, 30)}


def test_the_image_encoder_sees_each_example_alone():
    model, x = image_encoder(5, width=2), np.random.default_rng(0).uniform(size=(3, 8, 8)).astype(np.float32)
    params = jax.jit(model.init)(KEY, x)
    apply = jax.jit(model.apply)
    y = np.asarray(apply(params, x))
    assert y.shape == (3, 5)
    np.testing.assert_allclose(apply(params, x * (np.arange(3) == 0)[:, None, None])[0], y[0], atol=1e-6)
    for row, column in ((0, 0), (3, 4), (7, 7)):
        other = x.copy()
        other[0, row, column] += 1
        assert np.abs(np.asarray(apply(params, other))[0] - y[0]).max() > 1e-4


@pytest.mark.slow
def test_the_error_is_the_weighted_sum_and_serves_joint_training(several):
    params, batch = several
    x, y = ({task: examples[i] for task, examples in batch.items()} for i in range(2))
    losses, _, wanted = jax.jit(multitask_losses(SHARED.apply, SHARED.heads))(params, batch)
    apply = jax.jit(SHARED.apply)
    weights = {"words": 1.0, "image": 0.5, "speakers": 2.0}
    loss, metrics = jax.jit(multitask_error(weights))(apply(params, x), y)
    np.testing.assert_allclose(loss, losses @ np.array([1, 0.5, 2]), rtol=1e-6)
    assert_close(metrics, wanted, 1e-6)
    learner, objective = joint(SHARED.apply, multitask_error())
    episode = Episode(Batch(x, y), Batch(x, y))
    value, _ = jax.jit(objective)(learner.init(params, KEY), episode, KEY)
    np.testing.assert_allclose(value, sum(losses), rtol=1e-5)
    with pytest.raises(InputError, match="outputs of image, speakers, words but labels of image"):
        multitask_error()(apply(params, x), {"image": y["image"]})
    with pytest.raises(InputError, match="weights hold nothing for task 'speakers'"):
        multitask_error({"words": 1.0, "image": 1.0})(apply(params, x), y)


def test_precision_is_that_of_the_parameters(table, x64):
    for dtype in (jnp.float32, jnp.float64):
        params = jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), table)
        only = {"image": Batch(TOKENS["image"], LABELS["image"])}
        losses, _, metrics = jax.jit(multitask_losses(TABLE.apply, HEADS, normalize=True))(params, only)
        assert {a.dtype for a in (losses, total(losses, [1.0, 2.0]), *metrics.values())} == {jnp.dtype(dtype)}


def test_models_refuse_tasks_without_heads_and_heads_without_tasks(table, several, unchecked):
    with pytest.raises(InputError, match=r"task 'video', but the model has heads for speech, image only"):
        TABLE.apply(table, TOKENS | {"video": TOKENS["image"]})
    with pytest.raises(InputError, match="task 'video', but there are heads for words, image, speakers only"):
        multitask_losses(SHARED.apply, SHARED.heads)(several[0], several[1] | {"video": several[1]["image"]})
    with pytest.raises(InputError, match=r"task 'video', but the model has heads for speech, image only"):
        TABLE.init(KEY, TOKENS | {"video": TOKENS["image"]})
    with pytest.raises(InputError, match="head 'image' has no task: init needs inputs of every task, found speech"):
        TABLE.init(KEY, {"speech": TOKENS["speech"]})
    with pytest.raises(InputError, match="head 'words' has no task: init needs inputs of every task, found none"):
        SHARED.init(KEY, {})
    encoder = mlp(hidden=(3,))
    with pytest.raises(InputError, match="head 'image' has no task to read: expected encoder 'image', found speech"):
        multitask({"speech": encoder}, HEADS)
    with pytest.raises(
        InputError, match="head 'image' has no task to read: expected encoder 'eye', found speech, image"
    ):
        multitask({"speech": encoder, "image": encoder}, HEADS, modality={"image": "eye"})
    with pytest.raises(InputError, match="encoder 'video' has no task: the tasks are speech, image"):
        multitask(dict.fromkeys(("speech", "video", "image"), encoder), HEADS)
    with pytest.raises(InputError, match="modality names task 'video' without a head, expected some of speech, image"):
        multitask({"speech": encoder, "image": encoder}, HEADS, modality={"video": "image"})
    for make in (embedding_heads, lambda heads: multitask({"image": encoder}, heads)):
        with pytest.raises(InputError, match="heads is empty"):
            make({})
        with pytest.raises(InputError, match="head of task 'image' has 1 classes, expected 2 or more"):
            make({"image": 1})


def test_tokens_beyond_the_table_are_refused(table):
    with pytest.raises(InputError, match="inputs of task 'image' hold token 7, expected at most 6"):
        TABLE.apply(table, {"image": jnp.array([[1, 7]])})
    traced = jax.jit(TABLE.apply)(table, {"image": jnp.array([[1, 7], [1, 6]])})["image"]
    assert np.isnan(traced[0]).all() and np.isfinite(traced[1]).all()
    fixed = jnp.array([[1, 7]])
    with pytest.raises(InputError, match="hold token 7"):
        jax.jit(lambda params: TABLE.apply(params, {"image": fixed}))(table)
