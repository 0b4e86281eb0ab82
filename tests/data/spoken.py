"""What tests of synthesisers beside eSpeak NG share."""

import numpy as np
import pytest

from metajax.errors import InputError


def check_spoken(recordings, told, good, quiet):
    """What another synthesiser says: the rows `told`; three letters, 0.1 s each, of `good`; why `quiet` is none."""
    names, columns = recordings.names, recordings.columns
    rows = list(zip(*([names[c][i] for i in columns[c]] for c in ("label", "speaker", "language")), strict=True))
    assert sorted(rows) == sorted(told)
    by_label = {row[0]: i for i, row in enumerate(rows)}
    *waves, refused = recordings.read([by_label[label] for label in (*good, "it:quiet")], 16000)
    assert isinstance(refused, InputError) and quiet in str(refused)
    for wave in waves:  # with 20 ms of silence at most on both sides
        assert 4800 <= len(wave) <= 4800 + 3 * 320 and np.abs(wave).max() == pytest.approx(10 ** (-3 / 20), abs=1e-3)
