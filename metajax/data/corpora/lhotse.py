"""Lhotse cuts: JSON lines, packed by gzip or not, of stretches of recordings with what was said in them.

Licence, speakers, utterances and hours: those of the recordings. Format: https://lhotse.readthedocs.io/en/latest/cuts.html
"""

from pathlib import Path
from typing import Any

from metajax.data.corpora.rows import OnError, Row, as_text, from_rows, json_lines
from metajax.data.corpus import Recordings
from metajax.errors import InputError


def read(path: str | Path, *, root: str | Path | None = None, on_error: OnError = "raise") -> Recordings:
    """Read cuts of one recording each: one with one supervision whole, of one with several each supervision.

    The columns are speaker and language, where known.

    Args:
        path: of the list, `.jsonl` or `.jsonl.gz`, with the recordings within the cuts.
        root: the folder that paths are relative to and must lie in; None for that of the list,
            which absolute paths may then lead out of.
        on_error: what to do with missing files; see `from_rows`.

    Raises:
        InputError: names the file, the line and what is wrong with it: a cut that is mixed, has no supervision or no
            recording, or a
            recording that is no file (a command is not run), has several channels or is changed as it is read.
    """
    path = Path(path)
    rows = [Row(path, line, values) for line, cut in json_lines(path) for values in _clips(cut, f"{path}, line {line}")]
    return from_rows(path.name.split(".")[0], path, rows, root, on_error)


def _clips(cut: dict[str, Any], where: str) -> list[dict[str, str | None]]:
    try:
        recording, said = cut.get("recording"), cut.get("supervisions") or []
        kind, name = cut.get("type", "MonoCut"), cut.get("id")
        if kind not in ("MonoCut", "MultiCut") or recording is None:
            raise InputError(
                f"{where}: {name} is a {kind}{' without a recording' if recording is None else ''}, "
                "expected a cut of one recording."
            )
        if not said:
            raise InputError(f"{where}: {name} has no supervision, so no text.")
        sources = recording["sources"]
        if len(sources) != 1 or sources[0]["type"] != "file":
            found = ", ".join(source["type"] for source in sources)
            raise InputError(f"{where}: the sources of {name} are {found}, expected one file; commands are not run.")
        if len(channels := sources[0].get("channels", [0])) > 1:
            raise InputError(f"{where}: the recording of {name} has {len(channels)} channels, expected one.")
        # any rate serves, as all is resampled here
        if changes := [t["name"] for t in recording.get("transforms") or () if t["name"] != "Resample"]:
            raise InputError(f"{where}: the recording of {name} goes through {changes[0]}, expected it as it is.")
        clips = []
        for each in said:
            start, duration = cut["start"], cut["duration"]
            if len(said) > 1:
                start, duration = start + each["start"], each["duration"]
            # a cut of all the recording is the file itself, whose length its header knows best
            whole = start == 0 and abs(duration - recording["duration"]) < 1e-3
            clips.append(
                {
                    "path": sources[0]["source"],
                    "start": None if whole else str(start),
                    "duration": None if whole else str(duration),
                    "text": each.get("text"),
                    "speaker": as_text(each.get("speaker")),
                    "language": as_text(each.get("language")),
                }
            )
        return clips
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: no cut as lhotse writes it ({error!r}).") from error
