"""The microphone of this machine, as blocks of samples."""

from collections.abc import Iterator
from queue import Empty, SimpleQueue

import numpy as np
from jaxtyping import Float32

from metajax.errors import InputError


def microphone(sample_rate: int, block: int) -> Iterator[Float32[np.ndarray, " samples"]]:
    """What the default microphone hears, from the first `next` on and without end.

    Args:
      sample_rate: in Hz.
      block: samples at a time.

    Raises:
      InputError: the package sounddevice or PortAudio is not installed, there is no microphone, it is not permitted or
        it falls silent for 5 seconds, as one that is pulled out does.
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
                yield heard.get(timeout=5)
    except sounddevice.PortAudioError as error:
        told = str(error).split(" [")[0]
        raise InputError(f"The microphone cannot be opened ({told}), expected one that is permitted.") from error
    except Empty:
        raise InputError("The microphone has given nothing for 5 seconds, expected it to be connected.") from None
