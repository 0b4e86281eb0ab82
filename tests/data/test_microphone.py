"""The microphone: its blocks, and what is told where there is none."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from metajax import InputError
from metajax.data import microphone as data


class PortAudioError(Exception):
    pass


def device(blocks, error=None):
    """In place of the package: a stream that hears these blocks at once."""

    class Stream:
        def __init__(self, callback, **how):
            assert how == {"samplerate": 16000, "blocksize": 4, "channels": 1, "dtype": "float32"}
            if error:
                raise error
            for block in blocks:
                callback(np.float32(block)[:, None], 4, None, None)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    return SimpleNamespace(InputStream=Stream, PortAudioError=PortAudioError)


def test_blocks_come_in_order_and_it_is_told_when_they_end(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", device([[1, 2, 3, 4], [5, 6, 7, 8]]))
    monkeypatch.setattr(data, "PATIENCE", 0.01)
    heard = data.microphone(16000, 4)
    assert [next(heard).tolist() for _ in range(2)] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    with pytest.raises(InputError, match=r"given nothing for 0.01 seconds"):
        next(heard)


def test_no_microphone_is_a_sentence(monkeypatch):
    wrong = PortAudioError("Error querying device -1 [PaErrorCode -9996]")
    monkeypatch.setitem(sys.modules, "sounddevice", device([], wrong))
    with pytest.raises(InputError, match=r"cannot be opened \(Error querying device -1\), expected one"):
        next(data.microphone(16000, 4))
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # not installed
    with pytest.raises(InputError, match=r"pip install 'metajax\[web\]'"):
        next(data.microphone(16000, 4))
