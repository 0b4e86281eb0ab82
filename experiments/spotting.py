"""How often is a word missed in running speech, at so few false alarms that one could live with it?

    python experiments/spotting.py                              # synthetic speech alone: the numbers that words() uses
    python experiments/spotting.py --arabic DIR --english DIR   # and tests them on real speech

Words are taught by a clip or five of one voice. Running speech is looked at every 80 ms, as `mj.models.words(spotting=
True)` does, with the encoder and without, and by parts of what it gives. A false alarm is a peak of the likeliest word
where it is not said; a word by another voice is missed if it is not the likeliest, or not likely enough, within half a
second. English: utterances one after another, in which no word is taught; Arabic: single words of the official
validation speakers without a pause. Synthetic: numbers, in phrases of other languages, and single ones with 0.2 s
between. 4 minutes on a CPU core.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy.ndimage import maximum_filter1d
from tqdm import tqdm

from metajax import checkpoint, models, report, runs
from metajax.data import corpora
from metajax.data.corpus import Recordings
from metajax.data.waves import word_waves

RATE, CLIP, HOP = 16000, 20000, 1280  # Hz, samples of a window, and from one to the next
BLOCK, APART, NEAR = 150, 8, 6  # frames at a time; windows between two alarms; windows from a word's middle
ORDER, SECOND = 6 * 96, 128  # values of the encoder's frames, then of the network's second, then of half seconds
KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "encoder, frames in order": lambda z: z[:, :ORDER],
    "network, its second": lambda z: z[:, ORDER : ORDER + SECOND],
    "network, as shipped": lambda z: z[:, ORDER:],
    "both, as shipped": lambda z: z,
}
# what is compared, and whether no faint clip is taught, as where the user records it again
CASES = (*((kind, False) for kind in KINDS), ("both, as shipped", True))


@dataclass(frozen=True)
class Settings:
    arabic: Path | None = None  # folder of Arabic Speech Commands
    english: Path | None = None  # folder with a manifest.csv of English utterances
    ways: int = 5  # words taught
    shots: tuple[int, ...] = (1, 5)  # clips of each
    sets: int = 100  # of words taught
    rates: tuple[float, ...] = (1.0, 10.0)  # false alarms an hour
    utterances: int = 10  # synthetic phrases of each language
    clips_per_label: int = 3  # of each synthetic word
    seed: int = 0
    out: Path = Path("runs/spotting")


class Speech(NamedTuple):
    """Running speech."""

    windows: np.ndarray  # [windows, features]
    middle: np.ndarray  # window of each word in it, none where no word is known
    label: np.ndarray  # of each
    speaker: np.ndarray


class Tried(NamedTuple):
    alarms: np.ndarray  # scores, largest first
    faint: np.ndarray  # 1 where the word was taught by a faint clip
    heard: np.ndarray  # scores of words that were said, -1 where another was likelier throughout
    hours: float  # of running speech, those of all sets together


class Words(NamedTuple):
    clips: np.ndarray  # [clips, features]
    label: np.ndarray
    speaker: np.ndarray


def waves(recordings: Recordings, chosen: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Those that can be read, and which they are; the others, such as phrases that crash eSpeak, are told."""
    found = []
    for start in tqdm(range(0, len(chosen), 64), desc=recordings.name, mininterval=5):
        found += recordings.read([int(i) for i in chosen[start : start + 64]], RATE)
    good = np.array([isinstance(wave, np.ndarray) for wave in found])
    if not good.all():
        print(f"note: {(~good).sum()} of {len(good)} clips of {recordings.name} are left out", file=sys.stderr)
    return [wave for wave in found if isinstance(wave, np.ndarray)], chosen[good]


def running(embed: Callable, recordings: Recordings, chosen: np.ndarray, pause: float = 0.0) -> Speech:
    """Recordings one after another; words where they are labelled."""
    parts, chosen = waves(recordings, chosen)
    parts = [np.pad(one, round(pause * RATE / 2)) for one in parts]
    ends, wave, size = np.cumsum([len(one) for one in parts]), np.concatenate(parts), (BLOCK - 1) * HOP + CLIP
    padded, count = np.pad(wave, (CLIP // 2, size)), len(wave) // HOP  # window i has its middle at i * HOP
    starts = tqdm(range(0, count, BLOCK), desc=f"windows of {recordings.name}", mininterval=5)
    found = np.concatenate([embed(padded[None, i * HOP : i * HOP + size])[0] for i in starts])[:count]
    middle = np.round((ends - np.diff(ends, prepend=0) / 2) / HOP).astype(int)
    label, speaker = (recordings.columns[name][chosen] for name in ("label", "speaker"))
    return Speech(found, middle[label >= 0], label[label >= 0], speaker[label >= 0])


def single(embed: Callable, recordings: Recordings, chosen: np.ndarray) -> Words:
    names, read = tuple(recordings.clip_names[i] for i in chosen), recordings.read
    some = recordings._replace(clip_names=names, read=lambda rows, rate: read([int(chosen[i]) for i in rows], rate))
    clips = [np.asarray(embed(one[None].astype(np.float32))[0, 0]) for one in word_waves(some)]
    return Words(np.stack(clips), *(recordings.columns[name][chosen] for name in ("label", "speaker")))


def scaled(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def tried(s: Settings, kind: str, words: Words, shots: int, faint: np.ndarray, speech: Speech) -> Tried:
    """Sets of words are taught by one voice each, and looked for in running speech."""
    draw, n = np.random.default_rng(s.seed), len(speech.windows)
    z, x = (scaled(KINDS[kind](one)) for one in (words.clips, speech.windows))
    people: dict[int, list] = {}
    for label, speaker in sorted(set(zip(words.label.tolist(), words.speaker.tolist(), strict=True))):
        rows = np.flatnonzero((words.label == label) & (words.speaker == speaker))[:shots]
        people.setdefault(speaker, []).extend([(label, rows)] if len(rows) == shots else [])
    able = [speaker for speaker, rows in people.items() if len(rows) >= s.ways]
    alarms, heard = [], []
    for speaker in draw.choice(able, s.sets):
        rows = [people[speaker][i] for i in draw.choice(len(people[speaker]), s.ways, replace=False)]
        scores = x @ scaled(np.stack([z[clips].mean(0) for _, clips in rows])).T
        best, likeliest, labels = scores.max(1), scores.argmax(1), np.array([label for label, _ in rows])
        around = (speech.middle[:, None] + np.arange(-NEAR, NEAR + 1)).clip(0, n - 1)
        said, free = np.isin(speech.label, labels), np.ones(n, bool)
        free[around[said].reshape(-1)] = False
        peaks = np.flatnonzero((best == maximum_filter1d(best, 2 * APART + 1)) & free)
        bad = np.array([faint[clips].any() for _, clips in rows])
        alarms.append(np.stack([best[peaks], bad[likeliest[peaks]]], 1))
        asked = said & (speech.speaker != speaker)
        right = labels[likeliest[around[asked]]] == speech.label[asked, None]
        heard.append(np.where(right, best[around[asked]], -1.0).max(1, initial=-1.0))
    by_score = np.concatenate(alarms)
    order = np.argsort(-by_score[:, 0])
    return Tried(by_score[order, 0], by_score[order, 1], np.concatenate(heard), s.sets * n * HOP / RATE / 3600)


def run(s: Settings) -> None:
    runs.check(s, ["espeak"], ways=2, shots=1, sets=1, rates=0.001, utterances=1, clips_per_label=2)
    runs.open_folder(s.out, runs.config(s))
    trained = models.words(encoder=True, spotting=True)
    embed = jax.jit(lambda x: trained.model.apply(trained.params, x))

    def part(recordings: Recordings, column: str, *names: str) -> np.ndarray:
        return np.flatnonzero(np.isin(recordings.columns[column], [recordings.names[column].index(n) for n in names]))

    made = corpora.read("espeak", clips_per_label=s.clips_per_label, seed=s.seed)
    chosen = part(made, "split", "validation", "test")
    words = single(embed, made, chosen)
    least = float(np.quantile(np.linalg.norm(words.clips, axis=1), 0.05))
    phrases = corpora.read("espeak_phrases", utterances=s.utterances, seed=s.seed)
    # other languages and other voices than the words'
    speech = {"synthetic phrases": running(embed, phrases, part(phrases, "split", "train"))}
    order = np.random.default_rng(s.seed).permutation(chosen)
    speech["synthetic words"] = running(embed, made, order, 0.2)
    # where words are false alarms, which are taught, by how many clips, and where they are said
    tests = dict.fromkeys(speech, (words, (1,), "synthetic words"))
    if s.arabic:
        arabic = corpora.read("arabic", s.arabic)
        chosen = part(arabic, "official_split", "validation")
        order = np.random.default_rng(s.seed).permutation(chosen)
        speech["Arabic words"] = running(embed, arabic, order)
        tests["Arabic words"] = single(embed, arabic, chosen), s.shots, "Arabic words"
        if s.english:
            english = corpora.read("manifest", s.english / "manifest.csv")
            speech["English"] = running(embed, english, np.arange(len(english.clip_names)))
            tests["English"] = tests["Arabic words"]
    rows, bars = [], {}
    for name, (words, shots, said) in tests.items():
        faint = np.linalg.norm(words.clips, axis=1) < least
        print(f"{name}, {len(speech[name].windows) * HOP / RATE:.0f} s: {100 * faint.mean():.1f} % of clips are faint")
        for (kind, again), count in tqdm([*product(CASES, shots)], desc=name, mininterval=5):
            kept = ~faint if again else np.ones(len(faint), bool)
            how = s, kind, Words(*(one[kept] for one in words)), count, faint[kept]
            found = tried(*how, speech[name])
            heard = found.heard if said == name else tried(*how, speech[said]).heard
            for rate in s.rates:
                bar = found.alarms[min(int(rate * found.hours), len(found.alarms) - 1)]
                told = "-" if again else f"{100 * found.faint[found.alarms > bar].mean():.0f}"
                compared = f"{kind}{', no faint clip' if again else ''}"
                missed = f"{100 * np.mean(heard <= bar):.1f}"
                rows.append([name, compared, f"{count}-shot", f"{rate:g}", f"{bar:.3f}", missed, told])
                bars.setdefault((kind, rate), float(bar))  # of synthetic phrases
    head = ["speech", "compared", "taught", "alarms an hour", "from cosine", "missed, %", "of alarms by faint clips, %"]
    table = report.markdown(head, rows, 3)
    numbers = {"ALARM": bars["both, as shipped", s.rates[0]], "ALARM_ALONE": bars["network, as shipped", s.rates[0]]}
    numbers["FAINT"] = least
    print(f"\n{table}\n\n{', '.join(f'{name} {value:.2f}' for name, value in numbers.items())}")
    checkpoint.write_text(s.out / "table.md", table)
    runs.save_results(s.out, {"config": runs.config(s), "numbers": numbers, "rows": [head, *rows]})


if __name__ == "__main__":
    sys.exit(runs.main(Settings, run, __doc__))
