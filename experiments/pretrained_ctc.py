"""Does a meta-learned start of low-rank matrices adapt a pretrained encoder to a speaker better than one of zeros?

    python experiments/pretrained_ctc.py --root DIR --encoder FOLDER
    python experiments/pretrained_ctc.py --root manifest.csv

An encoder that Transformers has saved, frozen, with a CTC head of characters, its own if it has one, and low-rank
changes of its attention. A task is a speaker: a few sentences with their text to adapt to, others to recognise. From
one head, every arm takes as many outer steps: the head alone (LoRA then starts at zero, plain fine-tuning), the head
and LoRA's start jointly, or by MAML or Meta-SGD, whose outer steps run through the adaptation. For every arm and number
of steps, validation speakers choose the inner rate. Character error by greedy decoding, on speakers never heard. What
lies below the first low-rank matrix is computed once for the whole corpus. Without `--encoder` a tiny random one is
made: it knows nothing of speech, and its errors tell that the script runs, no more. The same command goes on where it
was stopped. With the random encoder about an hour on a CPU core for three seeds, estimated from two.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mj
from metajax import recipes, recognition, report, runs
from metajax.core import Params, Theta
from metajax.data.corpora import read
from metajax.data.speech import Speech, held_out, load_encoded, speakers
from metajax.data.text import Vocabulary, read_vocabulary
from metajax.losses import ctc
from metajax.losses.ctc import blank_after
from metajax.models import pretrained
from metajax.models.pretrained.layers import linear
from metajax.parallel import use_all_cores

STEPS = (0, 1, 2, 5, 10)  # after which the error is told
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)  # inner rates to choose from
ARMS = ("zero start", "joint start", "MAML", "Meta-SGD")
NOTHING = {
    "model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"], "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 96, "conv_dim": [32] * 7, "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    root: Path  # folder or list of a corpus with texts and speakers
    corpus: str = "auto"  # a name of `metajax.data.corpora`
    encoder: Path | None = None  # folder that Transformers has saved; None for a tiny random one that knows nothing
    patterns: tuple[str, ...] = ("*.q_proj", "*.v_proj")  # of the matrices that adapt
    layers: int | None = None  # only those of so many last layers; None for all
    rank: int = 4  # of their changes
    seeds: tuple[int, ...] = (0, 1, 2)  # of the division of the speakers, parameters and tasks
    longest: float = 10.0  # seconds of a sentence; longer ones are left out
    shots: int = 3  # sentences to adapt to
    queries: int = 3  # sentences to recognise
    num_steps: int = 3  # inner steps while training
    rate: float = 0.1  # inner rate while training, from which learned rates start
    head_steps: int = 200  # outer steps of the head, before all arms
    outer_steps: int = 100  # of every arm after that
    outer_rate: float = 2e-3  # peak outer learning rate
    tasks: int = 2  # speakers per outer step
    episodes: int = 24  # tasks to test on; half as many to choose on
    out: Path = Path("runs/pretrained_ctc")  # folder of the results; the same command goes on there


class Encoder(NamedTuple):
    """A frozen encoder in two, and what its own head says, if it has one."""

    lower: Callable[[Any], Any]
    upper: pretrained.Pretrained
    params: Params
    head: Params | None
    vocabulary: Vocabulary | None
    patterns: tuple[str, ...]  # of the matrices that adapt


def opened(s: Settings) -> Encoder:
    """The encoder of the settings, split below the first layer that adapts."""
    if s.encoder is None:
        model, known, head = pretrained.random(NOTHING), None, None
        params = jax.jit(lambda key: model.init(key, ()))(jax.random.key(0))
    else:
        model, params, _ = pretrained.load(s.encoder)
        head, known = params.get("lm_head"), None
        if head is not None:
            known = read_vocabulary(s.encoder / "vocab.json", "letters")
            if any(len(token) == 1 and token.isupper() for token in known.tokens):
                known = known._replace(normalizer="upper_letters")
            head = {name: leaf[..., np.array(known.ids)] for name, leaf in head.items()}  # the blank at 0
    count = len(params["encoder"]["layers"])
    last = s.layers or count
    patterns = tuple(f"{a}.{b}" for a in pretrained.last_layers(params, last) for b in s.patterns)
    return Encoder(*pretrained.split(model, params, count - last), params, head, known, patterns)


def bench(s: Settings, encoder: Encoder, speech: Speech, seed: int) -> Callable[[str], dict[str, Any]]:
    """Train the head for a seed, or read what was; how an arm is then trained, chosen on validation and tested."""
    key, who = jax.random.key(seed), len(np.unique(speech.corpus.columns["speaker"]))
    parts = held_out(speech, "speaker", (max(who // 6, 1), max(who // 4, 1)), seed)
    episodes = partial(speakers, speech, shots=s.shots, queries=s.queries, normalization="none")
    many = speakers(speech, shots=1, queries=s.shots + s.queries - 1, values=parts[0], normalization="none")
    width, tokens = speech.corpus.features.shape[2], len(speech.vocabulary.tokens)
    drawn = {"kernel": jax.random.normal(key, (width, tokens)) / width**0.5, "bias": jnp.zeros(tokens)}
    part = {True: mj.frozen(mj.lora(s.rank, *encoder.patterns), encoder.params)}
    part[False] = mj.frozen(mj.nothing(), encoder.params)

    def apply(params: Params, x: Any, key: Any = None) -> jax.Array:
        output, _, lengths = encoder.upper.encode(params, x)
        return blank_after(linear(params["head"], output), lengths)

    def train(title: str, objective: Any, theta: Theta, joint: bool, steps: int) -> Theta:
        sample = many if joint else episodes(values=parts[0])
        how: dict[str, Any] = {"optimizer": recipes.adamw(s.outer_rate), "num_tasks": s.tasks, "chunk": 1}
        path = s.out / f"seed{seed}" / title
        return recipes.trained_once(path, [(1.0, objective)], theta, sample, key, steps, title=title, **how)[0]

    def method(adapts: bool, steps: int, rule: mj.Rule) -> mj.Algorithm:
        return mj.maml(apply, ctc, optax.sgd(s.rate), steps, part=part[adapts], rule=rule)

    alone = method(False, 0, mj.plain())
    start = train("head", alone.objective, {"params": {"head": encoder.head or drawn}}, True, s.head_steps)

    def trained(arm: str) -> Theta:
        if arm == "zero start":
            theta = train(arm, alone.objective, start, True, s.outer_steps)
            return theta | part[True].init(theta["params"], key)
        rule, joint = mj.rates() if arm == "Meta-SGD" else mj.plain(), arm == "joint start"
        made = method(True, 0 if joint else s.num_steps, rule)
        return train(arm, made.objective, made.learner.init(start["params"], key), joint, s.outer_steps)

    @cache  # arms share a program
    def scorer(rule: Callable[[], mj.Rule], split: int) -> Callable[..., recognition.Errors]:
        num = s.episodes if split == 2 else max(s.episodes // 2, 2)
        how: dict[str, Any] = {"part": part[True], "rule": rule(), "first_order": True}
        return recognition.adapted_errors(
            speech.vocabulary, lambda rate: mj.descent(apply, ctc, optax.sgd(rate), **how),
            lambda _: episodes(values=parts[split]), jax.random.fold_in(key, split), num, STEPS,
        )  # fmt: skip

    def cell(arm: str) -> dict[str, Any]:
        theta, rule = trained(arm), mj.rates if arm == "Meta-SGD" else mj.plain
        validation = {rate: scorer(rule, 1)(theta, rate, ()) for rate in RATES}
        found = recognition.chosen(validation, lambda rate: scorer(rule, 2)(theta, rate, ()), STEPS)
        return found | {"speakers": parts}

    return cell


def run(s: Settings) -> None:
    """Every cell that is missing, then the table and the picture."""
    least = dict.fromkeys(("rank", "shots", "queries", "num_steps", "head_steps", "outer_steps", "tasks", "layers"), 1)
    runs.check(s, ("plot",), longest=1, seeds=0, episodes=4, **least)
    use_all_cores()
    config = runs.config(s, ("out", "seeds"))
    runs.check_folder(s.out, config, resume=(s.out / "config.json").exists())
    encoder = opened(s)
    told = f"the encoder {s.encoder}" if s.encoder else "a RANDOM encoder, which knows nothing of speech"
    print(f"Adapting {told}.", flush=True)
    known = {"known": encoder.vocabulary, "normalizer": "letters", "longest": s.longest, "on_error": "skip"}
    speech = load_encoded(read(s.corpus, s.root), encoder.lower, **known)
    by_arm = runs.compare(s.out, config, s.seeds, ARMS, partial(bench, s, encoder, speech))
    rows = {arm: recognition.summary(cells, by_arm["zero start"], STEPS) for arm, cells in by_arm.items()}
    split = [*map(len, by_arm["zero start"][0]["speakers"])]
    title = f"{speech.corpus.name}, {told}; {s.shots} sentences to adapt to; {split} speakers to train, choose and "
    title += f"test on, {s.episodes} test tasks a seed, seeds {s.seeds},\ncharacter error (%), greedy decoding, "
    title += f"normaliser {speech.vocabulary.normalizer}, 95 % intervals over tasks"
    skipped = speech.corpus.skipped
    runs.save_results(s.out, {"title": title, "config": config, "seeds": s.seeds, "rows": rows, "skipped": skipped})
    curves = {arm: row["character"] for arm, row in rows.items()}
    print("", title, report.table(curves, None, STEPS), f"Results and picture are in {s.out}.", sep="\n\n")
    report.plot_panels({"": curves}, title, s.out / "curve.png", x="step", label="steps", what="character error (%)")


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
