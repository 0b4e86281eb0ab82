"""SpeechBrain CSV files: `ID, duration, wav` and any of `spk_id, wrd`, or further columns by other names.

Licence, speakers, utterances and hours: those of the recordings. Format:
https://speechbrain.readthedocs.io/en/latest/tutorials/basics/data-loading-pipeline.html
"""

from pathlib import Path

import soundfile

from metajax.data.corpora.files import inside, read_table
from metajax.data.corpora.rows import OnError, Row, from_rows, renamed
from metajax.data.corpus import Recordings
from metajax.errors import InputError

NEEDED = ("ID", "wav")
_TEXTS = ("wrd", "words", "transcript", "transcription", "text", "phn")
_NAMES = {"text": _TEXTS, "speaker": ("spk_id", "spk", "speaker"), "language": ("locale", "language", "lang")}


def read(path: str | Path, *, root: str | Path | None = None, on_error: OnError = "raise") -> Recordings:
    """Read the utterances of a CSV file; `start` and `stop`, in samples, cut clips out of longer files.

    Args:
        path: of the file.
        root: what `$data_root` and `{data_root}` stand for, the folder that paths are relative to and must lie in; None
            for that of the file, which absolute paths may then lead out of.
        on_error: what to do with missing files; see `from_rows`.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    path = Path(path)
    home, rows = (path.parent if root is None else Path(root)).absolute(), []
    for line, found in read_table(path, NEEDED, skipinitialspace=True):
        where = f"{path}, line {line}"
        values = renamed(found, _NAMES)
        if "text" not in values:
            raise InputError(f"{where}: no text, expected one of {', '.join(_TEXTS)}.")
        file = found["wav"].replace("$data_root", str(home)).replace("{data_root}", str(home))
        values["path"] = file or None
        if found.get("start") and found.get("stop"):
            there = inside(home, file, where, anywhere=root is None)
            if there.is_file():  # else `from_rows` tells
                values |= _seconds(there, found["start"], found["stop"], where)
        rows.append(Row(path, line, values))
    return from_rows(path.stem, path, rows, root, on_error)


def _seconds(file: Path, start: str, stop: str, where: str) -> dict[str, str | None]:
    try:
        rate = soundfile.info(file).samplerate
        first, last = int(start), int(stop)
        if last <= first:
            raise ValueError("the stop is not after the start")
    except (soundfile.LibsndfileError, ValueError) as error:
        raise InputError(f"{where}: start {start} and stop {stop} are no samples of {file} ({error}).") from error
    return {"start": str(first / rate), "duration": str((last - first) / rate)}
