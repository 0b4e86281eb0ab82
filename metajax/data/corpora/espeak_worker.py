"""The child process that alone loads eSpeak NG: it reads one JSON job from stdin and answers on stdout.

It is run by path with `python -I -S`, imports the standard library and `espeakng_loader` only, and shares no memory
with its parent, so that neither a crash nor the licence of the engine reaches it. A job with `clips` is answered with
the length of each in samples and its samples, any other with a list in JSON of the languages and how they read words.

The engine keeps state from one utterance to the next: the phase of the pitch flutter, filter memories, a random
generator seeded by the clock. Each clip is therefore spoken by a freshly loaded library with seeded generators, which
costs 0.4 ms.
"""

import _ctypes
import ctypes
import importlib
import json
import os
import random
import struct
import sys
from collections.abc import Callable, Sequence
from functools import partial

RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
SYNCHRONOUS, UTF8, IPA = 2, 1, 2
ANY = (1, 9999)  # letters of a reading
TRIES = 20  # drawn texts per text asked for, before a language is given up
Letters = tuple[Sequence[str], ...]  # that begin a syllable, its vowels, and what ends it
LATIN: Letters = ("bdfgklmnprstvz", "aeiou", ["", "", "", "n", "s", "r", "l"])
# other letters by language; those of India add a sign for the vowel to a consonant
ALPHABETS: dict[str, Letters] = {
    "ba be bg cv kk ky mk nog ru sr tt uk": ("бдфгклмнпрствз", "аеиоу", ["", "", "", "н", "с", "р", "л"]),
    "el grc": ("βδφγκλμνπρστ", "αειου"),
    "ka": ("ბდგკლმნპრსტვზ", "აეიოუ"),
    "hy hyw": ("բդֆգկլմնպրստվզ", "աեիու"),
    "hi mr ne": ("बदगकलमनपरसतवज", "ािीुूेो"),
    "as bn bpy": ("বদগকলমনপসতজ", "ািুেো"),
    "gu": ("બદગકલમનપરસતવજ", "ાિુેો"),
    "pa": ("ਬਦਗਕਲਮਨਪਰਸਤਵਜ", "ਾਿੁੇੋ"),
    "or": ("ବଦଗକଲମନପରସତଜ", "ାିୁେୋ"),
    "ta": ("கசதபமநரலவட", "ாிுெொ"),
    "te": ("బదగకలమనపరసతవజ", "ాిుెొ"),
    "kn": ("ಬದಗಕಲಮನಪರಸತವಜ", "ಾಿುೆೊ"),
    "ml": ("ബദഗകലമനപരസതവജ", "ാിുെൊ"),
    "si": ("බදගකලමනපරසතවජ", "ාිුෙො"),
    "fa sd ur": ("بدفگکلمنپرستز", "اوی"),
    "ar": ("بتثجحخدذرزسشصضطظعغفقكلمنهوي", "\u064e\u064f\u0650اوي", ["", "", "", "ن", "ر", "ل"]),
    "ja": ("かきくけこさしすせそたちつてとなにぬねのまみむめもらりるれろ", ["", "", "", "ん"]),
    "ko": ("가고구기나노누니다도두디라로루리마모무미바보부비사소수시자조주지",),
}

SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
chunks: list[bytes] = []


class Voice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("languages", ctypes.c_void_p), ("identifier", ctypes.c_char_p)]


@SynthCallback
def keep(samples: int | None, count: int, _events: int | None) -> int:
    if samples and count > 0:
        chunks.append(ctypes.string_at(samples, 2 * count))
    return 0


def start(library: str, data: str) -> ctypes.CDLL:
    try:
        engine = ctypes.CDLL(library)
    except OSError as error:
        sys.exit(f"eSpeak NG cannot be loaded: {error}")
    if engine.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), 0) <= 0:
        sys.exit(f"eSpeak NG cannot start from {data}")
    engine.espeak_SetSynthCallback(keep)
    return engine


def stop(engine: ctypes.CDLL) -> None:
    engine.espeak_Terminate()
    getattr(_ctypes, "dlclose" if hasattr(_ctypes, "dlclose") else "FreeLibrary")(engine._handle)


def phonemes(engine: ctypes.CDLL, text: str) -> str:
    """Return the reading in IPA without stress marks and spaces, or "" where it leaves the language."""
    engine.espeak_TextToPhonemes.restype = ctypes.c_char_p
    raw = ctypes.create_string_buffer(text.encode())
    left, reading = ctypes.c_void_p(ctypes.addressof(raw)), ""
    while left.value:
        reading += engine.espeak_TextToPhonemes(ctypes.byref(left), UTF8, IPA).decode()
    return "" if "(" in reading else reading.translate(str.maketrans("", "", "ˈˌ \n"))


def invent(draw: random.Random, letters: Letters = LATIN) -> str:
    return "".join("".join(map(draw.choice, letters)) for _ in range(2 + (draw.random() < 0.4)))


def phrase(draw: random.Random, letters: Letters) -> str:
    """One to three invented words and numbers, from 0 to a million, short ones as often as long ones."""
    return " ".join(
        str(draw.randint(0, 10 ** draw.randint(1, 6))) if draw.random() < 0.5 else invent(draw, letters)
        for _ in range(draw.randint(1, 3))
    )


def several(engine: ctypes.CDLL, make: Callable[[], str], count: int, sizes: tuple[int, int]) -> dict[str, str]:
    """Return texts that are read in the language with their readings, all distinct, of a size within limits."""
    found: dict[str, str] = {}
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        reading = phonemes(engine, text := make())
        if sizes[0] <= len(reading) <= sizes[1] and reading not in found.values():
            found[text] = reading
    return found


def listing(library: str, data: str, job: dict) -> dict:
    engine = start(library, data)
    engine.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(Voice))
    engine.espeak_Info.restype = ctypes.c_char_p
    version = engine.espeak_Info(None).decode()
    voices = engine.espeak_ListVoices(None)
    identifiers: list[str] = []
    while voices[len(identifiers)]:
        identifiers.append(voices[len(identifiers)].contents.identifier.decode())
    languages: dict[str, dict] = {}
    for identifier in sorted(identifiers):
        language = identifier.split("/")[-1].lower()
        if job["languages"] is not None and language not in job["languages"]:
            languages[language] = {"voice": identifier}
            continue
        engine.espeak_SetVoiceByName(identifier.encode())
        kin = {n: phonemes(engine, str(n)) for n in job["kin"]}
        words = {n: kin.get(n) or phonemes(engine, str(n)) for n in job["numbers"]}
        draw = random.Random(f"{job['seed']}:{language}")
        letters = next((a for codes, a in ALPHABETS.items() if language.split("-")[0] in codes.split()), LATIN)
        words |= several(engine, partial(invent, draw), job.get("pseudowords", 0), ANY)
        (least, most), texts = job.get("sizes", ANY), job.get("texts", {}).get(language, ())
        words |= {text: r for text in texts if least <= len(r := phonemes(engine, text)) <= most}
        if any(kin.values()):  # else nothing tells which languages are like it
            words |= several(engine, partial(phrase, draw, letters), job.get("phrases", 0), job.get("sizes", ANY))
        languages[language] = {"voice": identifier, "kin": kin, "words": words}
    stop(engine)
    return {"version": version, "languages": languages}


def speak(library: str, data: str, voice: str, text: str, pitch: int, rate: int, span: int, seed: int) -> bytes:
    engine = start(library, data)
    engine.espeak_ng_SetRandSeed(ctypes.c_long(seed))
    ctypes.CDLL(None if os.name != "nt" else "msvcrt").srand(seed)  # the breath of some voices takes libc's generator
    if engine.espeak_SetVoiceByName(voice.encode()) != 0:
        sys.exit(f"eSpeak NG has no voice {voice}")
    for parameter, value in ((PITCH, pitch), (RATE, rate), (RANGE, span)):
        engine.espeak_SetParameter(parameter, value, 0)
    chunks.clear()
    raw = text.encode() + b"\0"
    engine.espeak_Synth(raw, ctypes.c_size_t(len(raw)), 0, 1, 0, UTF8, None, None)
    stop(engine)
    return b"".join(chunks)


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the engine prints goes to stderr
    job = json.load(sys.stdin)
    sys.path.append(job["site"])
    library, data = importlib.import_module("espeakng_loader").get_library_path(), job["data"]
    if "clips" not in job:
        out.write(json.dumps(listing(library, data, job)).encode())
    for index, clip in enumerate(job.get("clips", ())):
        print("speaking", *clip, file=sys.stderr)  # shown should this clip end the process
        wave = speak(library, data, *clip)
        out.write(struct.pack("<i", len(wave) // 2) + wave)
        out.flush()
        if index == 0 and hasattr(os, "RTLD_NOLOAD"):
            try:
                ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            except OSError:
                continue
            sys.exit("eSpeak NG stays loaded after dlclose, so that a clip would depend on those before it")
    out.close()


if __name__ == "__main__":
    main()
