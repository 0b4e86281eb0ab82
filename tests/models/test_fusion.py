"""Fusion of modalities: what is absent has no influence, whatever stands there, and every example stands alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError
from metajax.models import fusion
from metajax.models.fusion import MODALITIES

KEY = jax.random.key(0)
N = 7  # examples: every set of modalities but none
HERE = jnp.array([[bool(i & 1), bool(i & 2), bool(i & 4)] for i in range(1, 8)])
KINDS = ("concat", "gated", "bottleneck", "experts", "apart")


def inputs(dtype=None):
    keys = jax.random.split(KEY, 3)
    audio, image = jax.random.normal(keys[0], (N, 16, 5), dtype), jax.random.uniform(keys[1], (N, 8, 8), dtype)
    return {"audio": audio, "image": image, "text": jax.random.randint(keys[2], (N, 5), 0, 9), "present": HERE}


def garbage(x):
    """The same where a modality is present, and what nobody should look at where it is not."""
    spoilt = dict(x)
    for own, name in zip(HERE.T, MODALITIES, strict=True):
        wrong = 7 if name == "text" else jnp.nan
        spoilt[name] = jnp.where(own.reshape(-1, *[1] * (x[name].ndim - 1)), x[name], wrong)
    return spoilt


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_absent_has_exactly_no_influence_and_no_gradient(x64, kind):
    x = inputs(jnp.float64)
    model = fusion(None if kind == "apart" else 4, kind=kind, width=8, symbols=9)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), jax.jit(model.init)(KEY, x))

    @jax.jit
    def run(params, seen):
        def value(params, floats):
            out = model.apply(params, seen | floats)
            return jnp.square(out).sum(), out

        floats = {name: seen[name] for name in ("audio", "image")}
        return jax.value_and_grad(value, (0, 1), has_aux=True)(params, floats)

    (_, out), (slopes, by_x) = run(params, x)
    (_, spoilt_out), (spoilt_slopes, spoilt_by_x) = run(params, garbage(x))
    assert out.dtype == jnp.float64
    for a, b in zip(
        jax.tree.leaves((out, slopes, by_x)), jax.tree.leaves((spoilt_out, spoilt_slopes, spoilt_by_x)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    for i, name in enumerate(("audio", "image")):
        slope = np.abs(by_x[name]).reshape(N, -1).max(1)
        assert (slope[~HERE[:, i]] == 0).all() and (slope[HERE[:, i]] > 0).all()
    # nobody has audio: its encoder learns nothing; and the first example, alone, is what it was among others
    silent = x | {"present": HERE.at[:, 0].set(False).at[0, 1].set(True)}
    _, (slopes, _) = run(params, silent)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes["audio"]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(slopes["image"]))
    alone = x | {"present": jnp.where(jnp.arange(N)[:, None] == 2, HERE, jnp.roll(HERE, 1, 0))}
    np.testing.assert_allclose(run(params, alone)[0][1][2], out[2], rtol=0, atol=1e-12)


def test_the_fused_vector_is_what_the_formulas_say():
    """Gates are shares of what is present; a product of experts by hand; without `present` all are there."""
    x = inputs()
    z, encoders = {}, {}
    for kind in ("apart", "gated", "experts"):
        model = fusion(None, kind=kind, width=8, symbols=9)
        params = jax.jit(model.init)(KEY, x) | encoders
        encoders = {name: leaf for name, leaf in params.items() if name in MODALITIES or name.endswith("vector")}
        z[kind] = np.asarray(jax.jit(model.apply)(params, x))
        if kind == "apart":
            assert (z["apart"][~HERE] == 0).all()
            every = jax.jit(model.apply)(params, {name: x[name] for name in MODALITIES})
            np.testing.assert_allclose(every[HERE], z["apart"][HERE], atol=1e-6)
            continue
        for i, (own, here) in enumerate(zip(z["apart"], np.asarray(HERE), strict=True)):
            if kind == "gated":
                told = np.concatenate([own.ravel(), here]) @ params["gate"]["kernel"] + params["gate"]["bias"]
                share = np.where(here, np.exp(told), 0)
                expected = share / share.sum() @ own
            else:
                sure = [own[m] @ params[f"{name}_sure"]["kernel"] for m, name in enumerate(MODALITIES)]
                precision = np.log1p(np.exp(sure)) * here[:, None]
                expected = (precision * own).sum(0) / (1 + precision.sum(0))
            np.testing.assert_allclose(z[kind][i], expected, atol=1e-5)


def test_padding_of_text_changes_nothing_and_a_traced_example_of_nothing_is_nan():
    x = inputs() | {"present": jnp.ones((N, 3), bool)}
    model = fusion(3, kind="bottleneck", width=8, symbols=9)
    params = jax.jit(model.init)(KEY, x)
    text = jnp.where(jnp.arange(5) < 3, jnp.maximum(x["text"], 1), 0)
    apply = jax.jit(model.apply)
    shorter = jax.jit(model.apply)(params, x | {"text": text[:, :3]})
    np.testing.assert_allclose(apply(params, x | {"text": text}), shorter, atol=1e-5)
    out = apply(params, x | {"present": HERE.at[3].set(False)})
    assert np.isnan(out[3]).all() and np.isfinite(np.delete(out, 3, 0)).all()


def test_bad_input_is_told(unchecked):
    x = inputs()
    model = fusion(2, width=8, symbols=9)
    params = jax.eval_shape(model.init, KEY, x)
    for wrong, told in (
        ({"present": HERE.at[3].set(False)}, "Example 3 has no modality at all"),
        ({"image": x["image"][1:]}, "found: audio 7, image 6, text 7"),
        ({"present": HERE[:, :2]}, r"present has shape \(7, 2\), expected \(7, 3\)"),
    ):
        with pytest.raises(InputError, match=told):
            model.apply(params, x | wrong)
    with pytest.raises(InputError, match="x lacks 'text'"):
        model.apply(params, {name: x[name] for name in ("audio", "image")})
    for options, told in (
        ({"kind": "late"}, "kind is 'late'"),
        ({"modalities": ("smell",)}, "expected one or more of audio, image, text"),
        ({"width": 6}, "width is 6"),
        ({"kind": "apart"}, "num_outputs is 2, expected None"),
        ({"normalization": "transductive"}, "normalization is 'transductive'"),
    ):
        with pytest.raises(InputError, match=told):
            fusion(2, **options)
