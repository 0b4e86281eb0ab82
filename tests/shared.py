"""The real recordings that some tests read, where they are present."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("METAJAX_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def shared_data(name: str) -> Path:
    """Return the folder `name` of the shared recordings, or skip the calling test."""
    folder = ROOT / name
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    return folder
