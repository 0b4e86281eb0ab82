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
HERE = np.array([[bool(i & 1), bool(i & 2), bool(i & 4)] for i in range(1, 8)])
FEW = MODALITIES[1:]  # without audio, whose encoder takes longest to compile


def inputs(dtype=np.float32):
    draw = np.random.default_rng(0)
    audio, image = draw.normal(size=(N, 16, 5)).astype(dtype), draw.uniform(size=(N, 8, 8)).astype(dtype)
    return {"audio": audio, "image": image, "text": draw.integers(0, 9, (N, 5)), "present": HERE}


def few():
    """Images and text; the first example, which has neither, gets text."""
    x, here = inputs(), HERE[:, 1:].copy()
    here[0, 1] = True
    return {name: x[name] for name in FEW} | {"present": here}


def some_params(model, x, dtype=np.float32):
    """Random parameters without `init`, which takes long to compile."""
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda s: draw.normal(size=s.shape, scale=0.3).astype(dtype), jax.eval_shape(model.init, KEY, x)
    )


@pytest.mark.parametrize(
    "kind", ["gated", *(pytest.param(k, marks=pytest.mark.slow) for k in ("apart", "concat", "bottleneck", "experts"))]
)
def test_what_is_absent_has_exactly_no_influence_and_no_gradient(x64, kind):
    """NaN in its place changes no bit of outputs and slopes; its encoder learns nothing; others stay as they were."""
    names = MODALITIES if kind == "apart" else FEW
    x = {name: leaf for name, leaf in inputs(np.float64).items() if name in names}
    here = HERE if kind == "apart" else few()["present"]
    model = fusion(None, kind=kind, modalities=names, width=8, symbols=9)
    params = some_params(model, x, np.float64)
    floats = [name for name in names if name != "text"]

    @jax.jit
    def run(params, seen, here):
        def value(params, given):
            out = model.apply(params, seen | given | {"present": here})
            return jnp.square(out).sum(), out

        return jax.value_and_grad(value, (0, 1), has_aux=True)(params, {name: seen[name] for name in floats})

    spoilt = dict(x)
    for own, name in zip(here.T, names, strict=True):
        wrong = 7 if name == "text" else np.nan
        spoilt[name] = np.where(own.reshape(-1, *[1] * (x[name].ndim - 1)), x[name], wrong)
    (_, out), (slopes, by_x) = run(params, x, here)
    assert out.dtype == jnp.float64
    other = run(params, spoilt, here)
    for a, b in zip(jax.tree.leaves((out, slopes, by_x)), jax.tree.leaves((other[0][1], other[1])), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    for name, slope in by_x.items():
        own, size = here[:, names.index(name)], np.abs(slope).reshape(N, -1).max(1)
        assert (size[~own] == 0).all() and (size[own] > 0).all()
    fewer = np.roll(here, 1, 0)
    fewer[:, 0], fewer[:, 1], fewer[2] = False, True, here[2]
    none = fewer.copy()
    none[2, 0], none[2, 1] = False, True
    _, (slopes, _) = run(params, x, none)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes[names[0]]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(slopes[names[1]]))
    np.testing.assert_allclose(run(params, x, fewer)[0][1][2], out[2], rtol=0, atol=1e-12)


def test_the_fused_vector_is_what_the_formulas_say():
    """Gates are shares of what is present; a product of experts by hand; without `present` all are there."""
    x, draw = few(), np.random.default_rng(0)
    here = x["present"]
    models = {
        kind: fusion(None, kind=kind, modalities=FEW, width=8, symbols=9) for kind in ("apart", "gated", "experts")
    }
    params = some_params(models["apart"], x)
    params |= {"gate": {"kernel": draw.normal(size=(18, 2)).astype(np.float32), "bias": np.float32([0.5, 0])}}
    params |= {f"{m}_sure": {"kernel": draw.normal(size=(8, 8)).astype(np.float32), "bias": np.zeros(8)} for m in FEW}

    @jax.jit
    def all_of(params, x):
        every = models["apart"].apply(params, {name: x[name] for name in FEW})
        return {kind: model.apply(params, x) for kind, model in models.items()}, every

    z, every = jax.tree.map(np.asarray, all_of(params, x))
    assert (z["apart"][~here] == 0).all()
    np.testing.assert_allclose(every[here], z["apart"][here], atol=1e-6)
    for kind in ("gated", "experts"):
        for own, there, found in zip(z["apart"], here, z[kind], strict=True):
            if kind == "gated":
                told = np.concatenate([own.ravel(), there]) @ params["gate"]["kernel"] + params["gate"]["bias"]
                share = np.where(there, np.exp(told), 0)
                expected = share / share.sum() @ own
            else:
                sure = [own[m] @ params[f"{name}_sure"]["kernel"] for m, name in enumerate(FEW)]
                precision = np.log1p(np.exp(sure)) * there[:, None]
                expected = (precision * own).sum(0) / (1 + precision.sum(0))
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_of_text_changes_nothing_and_a_traced_example_of_nothing_is_nan():
    x = {"text": np.where(np.arange(5) < 3, np.maximum(inputs()["text"], 1), 0), "present": np.ones((N, 1), bool)}
    model = fusion(3, kind="bottleneck", modalities=("text",), width=8, symbols=9)
    params, apply = some_params(model, x), jax.jit(model.apply)
    out = apply(params, x)
    np.testing.assert_allclose(out, apply(params, x | {"text": x["text"][:, :3]}), atol=1e-5)
    none = apply(params, x | {"present": np.arange(N)[:, None] != 3})
    assert np.isnan(none[3]).all()
    np.testing.assert_array_equal(np.delete(none, 3, 0), np.delete(out, 3, 0))
    beyond = apply(params, x | {"text": np.where(np.arange(N)[:, None] == 2, 9, x["text"])})  # of characters 0 to 8
    assert np.isnan(beyond[2]).all() and not np.isnan(np.delete(beyond, 2, 0)).any()


def test_bad_input_is_told(unchecked):
    x = inputs()
    model = fusion(2, width=8, symbols=9)
    params = jax.eval_shape(model.init, KEY, x)
    for wrong, told in (
        ({"present": HERE & (np.arange(N)[:, None] != 3)}, "Example 3 has no modality at all"),
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
