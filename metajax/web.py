"""A page in the browser on which words are taught and recognised by voice; it needs no network but this machine's."""

import secrets
import socket
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from metajax.data.audio import resample
from metajax.data.corpora.files import one_form
from metajax.errors import InputError

LARGEST = 2**24  # bytes of a request
_TELL = partial(print, flush=True)
_KEPT = 16  # taught sets that are remembered; an open page uses its last one

Wave = Float[np.ndarray, " samples"]
Teach = Callable[[list[tuple[str, str, Wave]]], tuple[Any, Sequence[int]]]
Hear = Callable[[Any, Wave], Sequence[float]]


def app(teach: Teach, hear: Hear, samples: int, *, largest: int = LARGEST) -> Any:
    """The page and what it asks for, as an ASGI application.

    The page holds the recordings, and sends all of them when one is added or deleted. `POST /teach` has `{"clips":
    [{"word", "wave", "rate"}]}`, a wave as 16-bit samples in base64, and gives `{"taught", "words", "faint", "ms"}`,
    `POST /hear` has `{"taught", "wave", "rate"}` and gives `{"p", "ms"}`. What is refused gets
    `{"error"}`, one sentence.

    Args:
      teach: word, name and wave at 16 kHz of clips to what was learned, of words in the order in which they first
        occur, and the clips that had better be recorded again; an `InputError` for one that cannot be used.
      hear: what was learned and a wave to the probability of each word.
      samples: of what is heard: the last so many, after silence where there are fewer.
      largest: bytes of a request.

    Returns:
      For `serve`, or any ASGI server.

    Raises:
      ImportError: the extra `web` is not installed.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    kept: dict[str, Any] = {}

    def taught(asked: dict[str, Any]) -> dict[str, Any]:
        clips: list[tuple[str, str, Wave]] = []
        given = asked.get("clips")
        if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
            raise InputError("The request holds no clips, expected one or more.")
        for one in given:
            word = one_form(str(one.get("word", "")))
            if not word:
                raise InputError("A clip has no word, expected the word that is said in it.")
            name = f"clip {1 + sum(word == other for other, _, _ in clips)} of {word!r}"
            clips.append((word, name, _wave(one, name)))
        learned, faint = teach(clips)
        kept[name := secrets.token_hex(8)] = learned
        for old in list(kept)[:-_KEPT]:
            del kept[old]
        words = list(dict.fromkeys(word for word, _, _ in clips))
        return {"taught": name, "words": words, "faint": [int(clip) for clip in faint]}

    def heard(asked: dict[str, Any]) -> dict[str, Any]:
        if (name := str(asked.get("taught"))) not in kept:
            raise InputError("The server does not know these words, expected them to be taught again.")
        wave = _wave(asked, "The recording")[-samples:]
        return {"p": [float(p) for p in hear(kept[name], np.pad(wave, (samples - len(wave), 0)))]}

    def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            length = request.headers.get("content-length", "")
            if not length.isdigit() or int(length) > largest:  # the server reads no more than is told
                told = f"The upload is {f'of {length}' if length else 'of untold'} bytes, expected at most {largest}."
                return JSONResponse({"error": told}, 413)
            try:
                asked = await request.json()
            except (ValueError, RecursionError):
                asked = None
            begin = time.perf_counter()
            try:
                if not isinstance(asked, dict):
                    raise InputError("The upload is no request of the page, expected JSON with recordings in it.")
                return JSONResponse(work(asked) | {"ms": 1000 * (time.perf_counter() - begin)})
            except InputError as error:
                return JSONResponse({"error": str(error)}, 400)

        return respond

    async def page(request: Request) -> Response:
        return FileResponse(Path(__file__).with_name("web.html"), headers={"cache-control": "no-cache"})

    routes = [("/teach", answer(taught)), ("/hear", answer(heard))]
    return Starlette(routes=[Route("/", page), *(Route(path, work, methods=["POST"]) for path, work in routes)])


def serve(app: Any, host: str, port: int, *, ready: Callable[[str], Any] = _TELL) -> None:
    """Serve an application until it is interrupted.

    Args:
      app: of `app`.
      host: address to listen at; browsers give a microphone to pages of 127.0.0.1 and to those by https alone.
      port: 0 for any that is free.
      ready: gets the address of the page, once it is open.

    Raises:
      InputError: the port is in use, or the host is none of this machine.
    """
    import uvicorn

    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).split(" (")[0]
        raise InputError(f"port {port} of {host} cannot be opened ({reason}), expected a free one.") from error
    ready(f"http://{host}:{listener.getsockname()[1]}/")
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def _wave(asked: dict[str, Any], name: str) -> Wave:
    """Samples at 16 kHz within -1..1 from 16-bit ones in base64, at any rate."""
    rate = asked.get("rate", 16000)
    try:
        wave = np.frombuffer(b64decode(asked.get("wave", ""), validate=True), "<i2")
    except (TypeError, ValueError):
        wave = np.zeros(0)
    if not len(wave) or not isinstance(rate, int) or not 6000 <= rate <= 384_000:  # a low one would fill the memory
        raise InputError(f"{name} holds no audio, expected 16-bit samples in base64, and their rate, 6000 Hz or more.")
    return resample((wave / 32768).astype(np.float32), rate, 16000)
