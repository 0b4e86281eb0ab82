"""The microphone of this machine, as blocks of samples."""

from collections.abc import Iterator
from queue import Empty, SimpleQueue

import numpy as np
from jaxtyping import Float32

from metajax.errors import InputError

PATIENCE = 5  # seconds without a block, after which the microphone is gone


def microphone(sample_rate: int, block: int) -> Iterator[Float32[np.ndarray, " samples"]]:
    """What the default microphone hears, from the first `next` on and without end.

    Args:
      sample_rate: in Hz.
      block: samples at a time.

    Raises:
      InputError: the package sounddevice or PortAudio is not installed, there is no microphone, it is not permitted or
        it gives nothing for some seconds, as one that is pulled out does.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError where PortAudio is missing, which only Linux has of its own
        raise InputError(
            f"The microphone needs sounddevice and PortAudio ({error}): pip install 'metajax[web]', and libportaudio2."
        ) from error
    heard: SimpleQueue[np.ndarray] = SimpleQueue()
    how = {"samplerate": sample_rate, "blocksize": block, "channels": 1, "dtype": "float32"}
    try:
        with sounddevice.InputStream(**how, callback=lambda samples, *rest: heard.put(samples[:, 0].copy())):
            while True:
                yield heard.get(timeout=PATIENCE)
    except sounddevice.PortAudioError as error:
        told = str(error).split(" [")[0]
        raise InputError(f"The microphone cannot be opened ({told}), expected one that is permitted.") from error
    except Empty:
        told = f"The microphone has given nothing for {PATIENCE} seconds, expected it to be connected."
        raise InputError(told) from None
