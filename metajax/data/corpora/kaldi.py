"""A Kaldi or ESPnet folder: `wav.scp`, `text` and any of `segments`, `utt2spk`, `utt2lang`.

Licence, speakers, utterances and hours: those of the recordings. Format: https://kaldi-asr.org/doc/data_prep.html
"""

from pathlib import Path

from metajax.data.corpora.files import read_text
from metajax.data.corpora.rows import OnError, Row, from_rows
from metajax.data.corpus import Recordings
from metajax.errors import InputError


def read(path: str | Path, *, root: str | Path | None = None, on_error: OnError = "raise") -> Recordings:
    """Read the utterances of a folder; columns are speaker and language, where their lists are there.

    What wav.scp tells to run is not run, and archives (`.ark:1234`) are not read.

    Args:
        path: the folder.
        root: the folder that the paths of wav.scp are relative to and must lie in; None for `path`, which
            absolute paths may then lead out of.
        on_error: what to do with missing files; see `from_rows`.

    Raises:
        InputError: names the file, the line and what is wrong with it, such as a command, or an utterance that a list
            lacks.
    """
    path = Path(path)
    files = {name: (line, file) for line, name, file in _lines(path / "wav.scp", 2)}
    for name, (line, file) in files.items():
        if "|" in file:
            raise InputError(
                f"{path / 'wav.scp'}, line {line}: {name} is the output of a command, which is not run: {file[:60]!r}; "
                "expected an audio file."
            )
        if ".ark:" in file:
            raise InputError(f"{path / 'wav.scp'}, line {line}: {name} lies in an archive, expected an audio file.")
    texts = {name: (line, text) for line, name, text in _lines(path / "text", 1)}
    about = {
        column: {name: value for _, name, value in _lines(path / file, 2)}
        for column, file in (("speaker", "utt2spk"), ("language", "utt2lang"))
        if (path / file).is_file()
    }
    source = path / ("segments" if (path / "segments").is_file() else "wav.scp")
    rows = []
    for line, name, rest in _lines(source, 2):
        whole = source.name == "wav.scp"
        row = Row(source, line, {"path": files[name][1]} if whole else _segment(source, line, rest, files))
        if name not in texts:
            raise InputError(f"{row.where}: {name} has no line in {path / 'text'}.")
        row.values["text"] = texts.pop(name)[1]
        for column, known in about.items():
            if name not in known:
                raise InputError(f"{row.where}: {name} has no {column}.")
            row.values[column] = known[name]
        rows.append(row)
    for name, (line, _) in texts.items():
        raise InputError(f"{path / 'text'}, line {line}: {name} has no line in {source}.")
    return from_rows(path.name, path, rows, root, on_error)


def _lines(source: Path, least: int) -> list[tuple[int, str, str]]:
    """Line number, first word and rest of each line; names are distinct, and there is a rest where `least` is 2."""
    found: dict[str, tuple[int, str, str]] = {}
    for number, text in enumerate(read_text(source).split("\n"), 1):
        if not text.strip():
            continue
        name, _, rest = text.strip().replace("\t", " ", 1).partition(" ")
        if least > 1 and not rest.strip():
            raise InputError(f"{source}, line {number}: {name} stands alone, expected what belongs to it.")
        if name in found:
            raise InputError(f"{source}, line {number}: {name} again, first in line {found[name][0]}.")
        found[name] = (number, name, rest.strip())
    return list(found.values())


def _segment(source: Path, line: int, rest: str, files: dict[str, tuple[int, str]]) -> dict[str, str | None]:
    recording, *times = rest.split()
    if recording not in files or len(times) != 2:
        raise InputError(f"{source}, line {line}: expected UTTERANCE RECORDING START END of a recording in wav.scp.")
    try:
        start, end = (float(time) for time in times)
    except ValueError as error:
        raise InputError(f"{source}, line {line}: {' '.join(times)} are no seconds.") from error
    if not (end > start or end == -1):
        raise InputError(f"{source}, line {line}: the end, {end:g} s, is not after the start, {start:g} s.")
    # -1 is the end of the recording
    return {"path": files[recording][1], "start": str(start), "duration": None if end == -1 else str(end - start)}
