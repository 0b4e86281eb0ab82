"""A recogniser in a folder: what is read is what was written, and what does not belong together is told."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import InputError
from metajax.core import Batch, Utterances
from metajax.data.augment import normalized
from metajax.data.features import FeatureSettings
from metajax.data.speech import Pieces
from metajax.data.text import vocabulary, write_vocabulary
from metajax.losses.ctc import greedy
from metajax.models.saved import Saved, Way, adapting, judging, load_recogniser, ready, save_recogniser
from tests import tiny
from tests.conftest import assert_close, normal

NETWORK = {"width": 0.125, "num_layers": 1}
KNOWN, FEATURES = vocabulary(["één ab"]), FeatureSettings(num_mels=8)


def recogniser(**way):
    """One with a theta of random numbers, not drawn by its own rules, which takes long to compile."""
    saved = Saved({}, KNOWN, FEATURES, 2.5, NETWORK, Way(**way))
    model, draw, x = judging(NETWORK, KNOWN), np.random.default_rng(0), jnp.zeros((1, 8, 8))
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: adapting(saved).init(model.init(key, x), key))
    return saved._replace(theta=jax.tree.map(lambda s: jnp.asarray(draw.normal(size=s.shape), s.dtype), shapes))


@pytest.mark.parametrize(
    "way",
    [
        {"error": "learned", "part": "film", "rate": 0.3, "steps": 1, "learned_rates": True},
        pytest.param({"error": "suta", "part": "lora", "rate": 1e-3, "adam": True}, marks=pytest.mark.slow),
        pytest.param({"part": "context", "learned_rates": True}, marks=pytest.mark.slow),
        pytest.param({"part": "lhuc", "learned_rates": True}, marks=pytest.mark.slow),
        pytest.param({"part": "head"}, marks=pytest.mark.slow),
    ],
)
def test_a_recogniser_is_read_as_it_was_written(tmp_path, way):
    saved = recogniser(**way)
    save_recogniser(tmp_path / "deep" / "one", saved)
    found = load_recogniser(tmp_path / "deep" / "one")
    assert_close(found.theta, saved.theta, 0)
    assert ("rates" in found.theta) == way.get("learned_rates", False)
    assert found._replace(theta=None) == saved._replace(theta=None)
    listed = json.loads((tmp_path / "deep" / "one" / "vocab.json").read_text(encoding="utf-8"))
    assert listed == {token: i for i, token in enumerate(KNOWN.tokens)}  # as Transformers reads it
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["one"]


def test_saving_replaces_a_recogniser_whole_or_not_at_all_and_nothing_else(tmp_path, monkeypatch):
    saved, folder = recogniser(), tmp_path / "one"
    save_recogniser(folder, saved)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("metajax.models.saved.write_vocabulary", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        save_recogniser(folder, saved._replace(theta=jax.tree.map(jnp.negative, saved.theta), longest=9.0))
    assert_close(load_recogniser(folder).theta, saved.theta, 0)
    save_recogniser(folder, saved._replace(longest=9.0))
    assert load_recogniser(folder).longest == 9.0
    folder.rename(tmp_path / "one.new")  # as a crash between two renames leaves it
    assert load_recogniser(folder).longest == 9.0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(InputError, match="mine exists and holds no recogniser; choose another folder"):
        save_recogniser(tmp_path / "mine", saved)
    with pytest.raises(InputError, match="mine is no recogniser: there is no .*recogniser.json"):
        load_recogniser(tmp_path / "mine")
    save_recogniser(tmp_path / "run" / "recognisers" / "seed0" / "joint", saved)
    with pytest.raises(InputError, match="run is no recogniser, expected a folder such as .*/recognisers/seed0/joint"):
        load_recogniser(tmp_path / "run")
    save_recogniser(tmp_path / "run" / "recognisers" / "seed1" / "joint", saved)
    with pytest.raises(InputError, match=r"such as .*/recognisers/seed0/joint \(1 more there\)\.$"):
        load_recogniser(tmp_path / "run")


def test_its_own_labels_are_what_it_hears(monkeypatch):
    monkeypatch.setattr("metajax.models.saved.recogniser", tiny.recogniser)
    blind = recogniser(error="pseudo-labels", part="film", rate=0.1, steps=2, floor=1e-6)
    x = Utterances(normal(3, 40, 8), jnp.array([40, 33, 25]))
    told = blind._replace(way=blind.way._replace(error="text"))
    start = (learner := adapting(told)).start(blind.theta, Batch((), ()), jax.random.key(0))
    heard = greedy(learner.predict(blind.theta, start, normalized(x), None).logits)
    assert (heard.lengths > 0).all()
    one, other = ready(blind), ready(told)
    phi = one.adapt(x, ())
    assert_close(phi, other.adapt(x, heard), 1e-6)
    assert any((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, (phi, start)), strict=True))
    pieces = Pieces(x, (0.0, 1.0, 2.0), 3.0)
    assert one.hear(pieces).text == other.hear(pieces).text  # not adapted


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "one"
    save_recogniser(folder, recogniser())
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f | {"network": {"width": 0.25, "num_layers": 1}}, r"another network.*: params\..* is float32\["),
        (lambda f: f | {"network": {"width": 0.125, "num_layers": 2}}, r"layers\.1\..* is missing in the checkpoint"),
        (lambda f: f | {"network": {"wide": 1}}, "recogniser.json is damaged or of another version: .*'wide'"),
        (lambda f: f | {"features": f["features"] | {"num_mels": 9}}, "features.num_mels 8, but .*json tells 9"),
        (lambda f: f | {"features": f["features"] | {"hop": 80}}, "features.hop 160, but .*json tells 80"),
        (lambda f: f | {"features": f["features"] | {"hop": 0}}, "hop is 0, expected a whole number"),
        (lambda f: f | {"way": f["way"] | {"part": "film"}}, r"film.* is missing in the checkpoint"),
        (lambda f: f | {"way": f["way"] | {"error": "loud"}}, "error holds 'loud', expected some of text, suta"),
        (lambda f: {k: v for k, v in f.items() if k != "longest"}, "recogniser.json is damaged .*: 'longest'"),
    ],
)  # fmt: skip
def test_what_theta_was_not_trained_with_is_told(tmp_path, written, change, sentence):
    here = tmp_path / "one"
    here.mkdir()
    (here / "theta").symlink_to(written / "theta")
    (here / "vocab.json").symlink_to(written / "vocab.json")
    found = json.loads((written / "recogniser.json").read_text(encoding="utf-8"))
    (here / "recogniser.json").write_text(json.dumps(change(found)))
    with pytest.raises(InputError, match=sentence) as caught:
        load_recogniser(here)
    assert "\n" not in str(caught.value)


def test_a_theta_of_another_vocabulary_is_told(tmp_path, written):
    here = tmp_path / "one"
    here.mkdir()
    (here / "theta").symlink_to(written / "theta")
    found = json.loads((written / "recogniser.json").read_text(encoding="utf-8"))
    other = vocabulary(["één abc"])
    write_vocabulary(other, here / "vocab.json")
    (here / "recogniser.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="one: token 4 is 'c' in vocab.json but 'n' in recogniser.json, not the same"):
        load_recogniser(here)
    (here / "recogniser.json").write_text(json.dumps(found | {"vocabulary": other._asdict()}))
    with pytest.raises(InputError, match="theta was trained with vocabulary.tokens.4 'n', but .* tells 'c'"):
        load_recogniser(here)
    (here / "theta").unlink()
    shutil.copytree(written / "theta", here / "theta")
    (here / "theta" / "trained_with.json").unlink()  # as earlier versions wrote it
    with pytest.raises(InputError, match=r"another vocabulary.*head.bias is float32\[6\] in .*, expected float32\[7\]"):
        load_recogniser(here)
    same = vocabulary(["één ac"])  # of the same size: only what was kept with theta can tell
    save_recogniser(tmp_path / "other", recogniser()._replace(vocabulary=same))
    shutil.rmtree(here / "theta")
    (here / "theta").symlink_to(tmp_path / "other" / "theta")
    (here / "recogniser.json").write_text((written / "recogniser.json").read_text())
    (here / "vocab.json").write_text((written / "vocab.json").read_text())
    with pytest.raises(InputError, match="theta was trained with vocabulary.tokens.3 'c', but .* tells 'b'"):
        load_recogniser(here)
    (tmp_path / "other" / "theta" / "trained_with.json").write_text("[" * 10_000)
    with pytest.raises(InputError, match=r"trained_with.json is missing or damaged"):
        load_recogniser(here)
