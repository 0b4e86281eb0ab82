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
FEW = MODALITIES[1:]  # without audio, whose encoder takes longest to compile


def inputs(dtype=None):
    keys = jax.random.split(KEY, 3)
    audio, image = jax.random.normal(keys[0], (N, 16, 5), dtype), jax.random.uniform(keys[1], (N, 8, 8), dtype)
    return {"audio": audio, "image": image, "text": jax.random.randint(keys[2], (N, 5), 0, 9), "present": HERE}


def few():
    """Images and text; the first example, which has neither, gets text."""
    x = inputs()
    return {name: x[name] for name in FEW} | {"present": HERE[:, 1:].at[0, 1].set(True)}


@pytest.mark.parametrize(
    "kind", ["gated", *(pytest.param(k, marks=pytest.mark.slow) for k in ("apart", "concat", "bottleneck", "experts"))]
)
def test_what_is_absent_has_exactly_no_influence_and_no_gradient(x64, kind):
    """NaN in its place changes no bit of outputs and slopes; its encoder learns nothing; others stay as they were."""
    names = MODALITIES if kind == "apart" else FEW
    x = {name: leaf for name, leaf in inputs(jnp.float64).items() if name in names}
    here = HERE if kind == "apart" else few()["present"]
    model = fusion(None, kind=kind, modalities=names, width=8, symbols=9)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), jax.jit(model.init)(KEY, x))
    floats = [name for name in names if name != "text"]

    @jax.jit
    def run(params, seen, here):
        def value(params, given):
            out = model.apply(params, seen | given | {"present": here})
            return jnp.square(out).sum(), out

        return jax.value_and_grad(value, (0, 1), has_aux=True)(params, {name: seen[name] for name in floats})

    spoilt = dict(x)
    for own, name in zip(here.T, names, strict=True):
        wrong = 7 if name == "text" else jnp.nan
        spoilt[name] = jnp.where(own.reshape(-1, *[1] * (x[name].ndim - 1)), x[name], wrong)
    (_, out), (slopes, by_x) = run(params, x, here)
    assert out.dtype == jnp.float64
    other = run(params, spoilt, here)
    for a, b in zip(jax.tree.leaves((out, slopes, by_x)), jax.tree.leaves((other[0][1], other[1])), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    for name, slope in by_x.items():
        own, size = here[:, names.index(name)], np.abs(slope).reshape(N, -1).max(1)
        assert (size[~own] == 0).all() and (size[own] > 0).all()
    fewer = jnp.roll(here, 1, 0).at[:, 0].set(False).at[:, 1].set(True).at[2].set(here[2])
    _, (slopes, _) = run(params, x, fewer.at[2, 0].set(False).at[2, 1].set(True))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes[names[0]]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(slopes[names[1]]))
    np.testing.assert_allclose(run(params, x, fewer)[0][1][2], out[2], rtol=0, atol=1e-12)


def test_the_fused_vector_is_what_the_formulas_say():
    """Gates are shares of what is present; a product of experts by hand; without `present` all are there."""
    x, z = few(), {}
    here, draw = np.asarray(x["present"]), np.random.default_rng(0)
    params = jax.jit(fusion(None, kind="apart", modalities=FEW, width=8, symbols=9).init)(KEY, x)
    params |= {"gate": {"kernel": draw.normal(size=(18, 2)).astype(np.float32), "bias": np.float32([0.5, 0])}}
    params |= {f"{m}_sure": {"kernel": draw.normal(size=(8, 8)).astype(np.float32), "bias": np.zeros(8)} for m in FEW}
    for kind in ("apart", "gated", "experts"):
        apply = jax.jit(fusion(None, kind=kind, modalities=FEW, width=8, symbols=9).apply)
        z[kind] = np.asarray(apply(params, x))
        if kind == "apart":
            assert (z["apart"][~here] == 0).all()
            every = apply(params, {name: x[name] for name in FEW})
            np.testing.assert_allclose(every[here], z["apart"][here], atol=1e-6)
            continue
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
    x = {"text": jnp.where(jnp.arange(5) < 3, jnp.maximum(inputs()["text"], 1), 0), "present": jnp.ones((N, 1), bool)}
    model = fusion(3, kind="bottleneck", modalities=("text",), width=8, symbols=9)
    params, apply = jax.jit(model.init)(KEY, x), jax.jit(model.apply)
    out = apply(params, x)
    np.testing.assert_allclose(out, apply(params, x | {"text": x["text"][:, :3]}), atol=1e-5)
    none = apply(params, x | {"present": x["present"].at[3].set(False)})
    assert np.isnan(none[3]).all()
    np.testing.assert_array_equal(np.delete(none, 3, 0), np.delete(out, 3, 0))


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
