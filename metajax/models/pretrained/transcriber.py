"""Text from what Whisper's encoder heard: the decoder with its prompt, the best next token or a beam of texts."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metajax.core import Params, Transcripts
from metajax.data.checkpoints import document
from metajax.errors import InputError
from metajax.models.pretrained.layers import Encoded
from metajax.models.pretrained.layout import Settings
from metajax.models.pretrained.whisper import Cache, caches, checked, decode

# generation_config.json may ask for these; what they change is not written here
_UNREAD = {"do_sample": False, "return_timestamps": False, "num_beam_groups": 1, "repetition_penalty": 1.0,
           "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0}  # fmt: skip
_SPECIAL = re.compile(r"<\|.*\|>")  # tokens that stand for no text
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that a vocabulary writes as they are
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
_BYTES = {chr(byte): byte for byte in _PRINTED} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


class Transcriber(NamedTuple):
    """What Whisper's decoder does; parameters are those of the whole model."""

    prompt: tuple[int | None, ...]  # what a text begins with; None for the language, if it is heard in each utterance
    ends: tuple[int, ...]  # what a text ends with
    logits: Callable[[Params, Encoded, Array], Array]  # tokens [n, length] -> [n, length, vocabulary]: what comes next
    generate: Callable[[Params, Encoded], Transcripts]  # the best text found, without prompt and end; 0 is no blank
    text: Callable[[Transcripts], list[str]]  # as it is written


def transcriber(
    settings: Settings,
    *,
    language: str | None = None,
    task: str | None = None,
    max_tokens: int | None = None,
    num_beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | Literal["never"] | None = None,
) -> Transcriber:
    """Whisper's decoder, which writes what Transformers' does: argmax of p(token | tokens before, frames), or a beam.

    Of a beam the text of the largest log p(text) / tokens^length_penalty is given, the end counted as a token. Tokens
    are suppressed as generation_config.json says. To learn from texts, give `logits` the prompt, a text and its end but
    for the last of them, and compare with all but the first, -1 in place of what follows within the prompt.

    Args:
      settings: of the model, as `load` gave them; None below is for what its generation_config.json says.
      language: as `lang_to_id` there has it, "en" or "<|en|>"; where nothing says one, it is heard.
      task: as `task_to_id` there has it, "transcribe" or "translate".
      max_tokens: of a text; None also for as many as there are positions.
      num_beams: texts that are followed at a time; 1 follows the best next token.
      length_penalty: above 0 for longer texts, below for shorter.
      early_stopping: whether an utterance is done with as many texts as beams, True, or when it is likely (False) or
        certain ("never") that none that is followed becomes better than the worst of them.

    Raises:
      InputError: the checkpoint has no decoder, generation_config.json lacks a token or asks for what is not read, a
        language, task or number is not of it, the prompt leaves no position; when called, tokens have another shape.

    Reference: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", ICML 2023.

    Example: `said = transcriber(settings); said.text(said.generate(params, model.encode(params, x)))`.
    """
    if "decoder.embed_tokens.weight" not in settings.shapes:
        raise InputError("The checkpoint holds no decoder, expected one of Whisper's with tensors decoder.*.")
    c = checked(settings.config)
    options = {"language": language, "task": task, "num_beams": num_beams, "length_penalty": length_penalty,
               "early_stopping": early_stopping}  # fmt: skip
    g: dict[str, Any] = {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "lang_to_id": {}}
    for told in (document(settings.files, "generation_config.json") or c, options):
        g |= {name: value for name, value in told.items() if value is not None}
    for name, plain in _UNREAD.items():
        if g.get(name, plain) != plain:
            raise InputError(f"generation_config.json: {name} is {g[name]!r}, which is not read, expected {plain}.")
    prompt, positions = _prompt(g, c), c["max_target_positions"]
    ends = tuple(np.ravel(g["eos_token_id"]).tolist())
    for token in (*prompt, *ends, *g["lang_to_id"].values()):
        if token is not None and not 0 <= token < c["vocab_size"]:
            raise InputError(f"generation_config.json: {token} is no token of 0..{c['vocab_size'] - 1}.")
    if g["num_beams"] < 1:
        raise InputError(f"num_beams is {g['num_beams']}, expected 1 or more.")
    room = positions - len(prompt)
    usual = g.get("max_new_tokens") or min(g.get("max_length", room), room)
    most = usual if max_tokens is None else max_tokens
    if not 1 <= most <= room:
        raise InputError(
            f"The prompt has {len(prompt)} tokens and max_tokens is {most}, expected 1 or more and with the prompt no "
            f"more than max_target_positions = {positions}."
        )

    def logits(params: Params, encoded: Encoded, tokens: Int[Array, "n length"]) -> Float[Array, "n length vocabulary"]:
        if tokens.ndim != 2 or len(tokens) != len(encoded.output) or tokens.shape[1] > positions:
            wanted = f"[{len(encoded.output)}, length] of at most {positions}"
            raise InputError(f"tokens have shape {tokens.shape}, expected {wanted}.")
        return decode(c, params, tokens, 0, *caches(c, params, encoded.output, *tokens.shape))[0]

    generate = jax.jit(partial(_generate, c, g, prompt, ends, len(prompt) + most))
    return Transcriber(prompt, ends, logits, generate, _writer(settings))


def _prompt(g: dict[str, Any], config: dict[str, Any]) -> tuple[int | None, ...]:
    """The start, language, task, and that there are no timestamps; or what is forced, where neither is asked for."""
    for name in ("decoder_start_token_id", "eos_token_id"):
        if name not in g:
            raise InputError(f"generation_config.json lacks {name}, which a text needs.")
    language, task = g.get("language"), g.get("task")
    found: list[int | None] = [g["decoder_start_token_id"]]
    languages, tasks = g["lang_to_id"], g.get("task_to_id", {})
    if language is None and task is None:
        forced = g.get("forced_decoder_ids", config.get("forced_decoder_ids")) or []
        if [place for place, _ in forced] != [*range(1, len(forced) + 1)]:
            raise InputError(f"generation_config.json: forced_decoder_ids is {forced}, expected places from 1 on.")
        found += [token for _, token in forced]
    if language is not None:
        found.append(_known(f"<|{language.strip('<|>').lower()}|>", languages, "language", language))
    elif languages and found[1:2] in ([], [None]):
        found[1:2] = [None]
    else:
        found = [token for token in found if token is not None]
    if task is not None or (language is not None and tasks):
        found.append(_known(task or "transcribe", tasks, "task", task))
    silent = g.get("no_timestamps_token_id", found[-1])
    return (*found,) if found[-1] == silent else (*found, silent)


def _known(name: str, numbers: dict[str, int], argument: str, value: str | None) -> int:
    if name not in numbers:
        known = ", ".join(numbers) or "None, as generation_config.json names none"
        raise InputError(f"{argument} is {value!r}, expected {known}.")
    return numbers[name]


def _generate(
    c: dict[str, Any],
    g: dict[str, Any],
    prompt: tuple[int | None, ...],
    ends: tuple[int, ...],
    size: int,
    params: Params,
    encoded: Encoded,
) -> Transcripts:
    """The prompt and what follows it, token by token, for as many rows as utterances times beams."""
    n, beams, free = len(encoded.output), g["num_beams"], len(prompt) - 1  # the place that chooses the first free token
    heard, cache = caches(c, params, encoded.output, n * beams, size)
    tokens = np.arange(c["vocab_size"])
    given = jnp.array([*(-1 if token is None else token for token in prompt[1:]), 0])
    spoken = np.isin(tokens, [*g["lang_to_id"].values()])
    always, first = (np.isin(tokens, g.get(f"{when}suppress_tokens", [])) for when in ("", "begin_"))

    def scored(texts: Array, at: Array, cache: Cache) -> tuple[Array, Cache]:
        """Scores of what follows place `at`; 0 for what the prompt has there, -inf for all else and the suppressed."""
        scores, cache = decode(c, params, texts[:, at, None], at, heard, cache)
        scores = scores[:, 0].astype(jnp.promote_types(scores.dtype, jnp.float32))
        scores = scores if beams == 1 else jax.nn.log_softmax(scores)
        chosen = (tokens == given[at]) | (spoken & (given[at] < 0))
        scores = jnp.where(jnp.where(at < free, chosen, ~(always | (first & (at == free)))), scores, -jnp.inf)
        sure = jnp.where(tokens == scores.argmax(-1, keepdims=True), 0, -jnp.inf)
        return jnp.where(at < free, sure, scores), cache

    def ending(token: Array, at: Array) -> Array:
        return jnp.isin(token, jnp.array(ends)) & (at >= free)

    texts = jnp.full((n * beams, size), ends[0]).at[:, 0].set(prompt[0])
    texts = (_greedy if beams == 1 else partial(_beams, g, free, n))(scored, ending, texts, cache)[:, free + 1 :]
    ended = jnp.isin(texts, jnp.array(ends))
    return Transcripts(texts, jnp.where(ended.any(1), ended.argmax(1), texts.shape[1]))


def _greedy(scored: Callable, ending: Callable, texts: Array, cache: Cache) -> Int[Array, "n size"]:
    """The best next token until all texts have ended; ends behind them."""

    def body(state: tuple) -> tuple:
        at, texts, done, cache = state
        scores, cache = scored(texts, at, cache)
        token = jnp.where(done, texts[:, at + 1], scores.argmax(-1))
        return at + 1, texts.at[:, at + 1].set(token), done | ending(token, at), cache

    def goes_on(state: tuple) -> Array:
        return (state[0] + 1 < texts.shape[1]) & ~state[2].all()

    return jax.lax.while_loop(goes_on, body, (0, texts, jnp.zeros(len(texts), bool), cache))[1]


def _beams(
    g: dict[str, Any], free: int, n: int, scored: Callable, ending: Callable, texts: Array, cache: Cache
) -> Int[Array, "n size"]:
    """The best text of a beam search, step for step as Transformers has it; ends behind it."""
    beams, penalty, last = g["num_beams"], g["length_penalty"], texts.shape[1] - 1
    never = jnp.asarray(-1e9, jnp.promote_types(cache[0][0].dtype, jnp.float32))

    def picked(rows: Array, which: Array) -> Array:
        return jnp.take_along_axis(rows, which.reshape(*which.shape, *[1] * (rows.ndim - 2)), 1)

    def body(state: tuple) -> tuple:
        at, hopeful, texts, sums, best, marks, full, cache = state
        count = jnp.maximum(at + 1.0 - free, 1)
        scores, cache = scored(texts.reshape(n * beams, -1), at, cache)
        sums = (sums[..., None] + scores.reshape(n, beams, -1)).reshape(n, -1)
        sums, which = jax.lax.top_k(sums, beams * (1 + np.size(g["eos_token_id"])))  # enough of them do not end
        parent, token = which // scores.shape[1], which % scores.shape[1]
        grown = picked(texts, parent).at[:, :, at + 1].set(token)
        ends = ending(token, at) | (at + 1 == last)
        finished = ends & (jnp.arange(ends.shape[1]) < beams)
        mark = sums / count**penalty + never * ~hopeful[:, None] + never * ~finished
        marks, order = jax.lax.top_k(jnp.concatenate([marks, mark], 1), beams)
        best, full = (picked(jnp.concatenate(pair, 1), order) for pair in ((best, grown), (full, finished)))
        sums, order = jax.lax.top_k(sums + never * ends, beams)
        reached = last - free if g["early_stopping"] == "never" and penalty > 0 else count
        hopeful &= (sums[:, :1] / reached**penalty > jnp.where(full, marks.min(1, keepdims=True), never)).any(1)
        hopeful &= ~full.all(1) | (g["early_stopping"] is not True)
        rows = (picked(parent, order) + beams * jnp.arange(n)[:, None]).reshape(-1)
        return at + 1, hopeful, picked(grown, order), sums, best, marks, full, jax.tree.map(lambda a: a[rows], cache)

    def goes_on(state: tuple) -> Array:
        return (state[0] < last) & state[1].any()

    texts, marks = texts.reshape(n, beams, -1), jnp.full((n, beams), never)
    followed, kept = (texts, marks.at[:, 0].set(0)), (texts, marks, jnp.zeros((n, beams), bool))
    return jax.lax.while_loop(goes_on, body, (0, jnp.ones(n, bool), *followed, *kept, cache))[4][:, 0]


def _writer(settings: Settings) -> Callable[[Transcripts], list[str]]:
    """Tokens of bytes, of `vocab.json` and `added_tokens.json` or `tokenizer.json`, as texts."""
    whole = document(settings.files, "tokenizer.json")
    try:
        numbers = whole.get("model", {}).get("vocab", {}) | settings.vocabulary
        numbers |= {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError("tokenizer.json of the checkpoint is damaged, expected tokens with numbers.") from error
    tokens = {i: token for token, i in (numbers | document(settings.files, "added_tokens.json")).items()}

    def text(transcripts: Transcripts) -> list[str]:
        if not tokens:
            raise InputError("The checkpoint has no vocab.json or tokenizer.json, which texts are written by.")
        return [written(row[:length]) for row, length in zip(*map(np.asarray, transcripts), strict=True)]

    def written(row: Int[np.ndarray, " tokens"]) -> str:
        if outside := [i for i in row.tolist() if i not in tokens]:
            raise InputError(f"Token {outside[0]} is not of the checkpoint's vocabulary of {len(tokens)} tokens.")
        said = "".join(token for token in map(tokens.__getitem__, row.tolist()) if not _SPECIAL.fullmatch(token))
        return b"".join(bytes([_BYTES[a]]) if a in _BYTES else a.encode() for a in said).decode(errors="replace")

    return text
