"""NeMo manifests: JSON lines with `audio_filepath`, `duration`, `text` and any of `offset`, `lang`, `speaker`.

Licence, speakers, utterances and hours: those of the recordings. Format:
https://docs.nvidia.com/nemo-framework/user-guide/latest/nemotoolkit/asr/datasets.html
"""

from pathlib import Path

from metajax.data.corpora.rows import OnError, Row, as_text, from_rows, json_lines, renamed
from metajax.data.corpus import Recordings

NEEDED = ("audio_filepath", "text")
_NAMES = {
    "path": ("audio_filepath",),
    "text": ("text",),
    "speaker": ("speaker",),
    "language": ("lang", "target_lang"),
    "label": ("label",),
}


def read(path: str | Path, *, root: str | Path | None = None, on_error: OnError = "raise") -> Recordings:
    """Read the utterances of a manifest; further fields are left out.

    A row with an `offset` is that segment of `duration` seconds; one without is the whole file.

    Args:
        path: of the manifest.
        root: the folder that paths are relative to and must lie in; None for that of the manifest,
            which absolute paths may then lead out of.
        on_error: what to do with missing files; see `from_rows`.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    path = Path(path)
    rows = []
    for line, found in json_lines(path, NEEDED):
        values = renamed(found, _NAMES)
        if found.get("offset") is not None:
            values |= {"start": as_text(found["offset"]), "duration": as_text(found.get("duration"))}
        rows.append(Row(path, line, values))
    return from_rows(path.stem, path, rows, root, on_error)
