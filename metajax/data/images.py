"""Images of handwriting, small enough to be held in memory: scikit-learn's digits and the Omniglot characters."""

import io
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from metajax.errors import InputError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# images, characters and alphabets of the whole of Omniglot, and of its parts background and evaluation
OMNIGLOT_COUNTS = {"all": (32460, 1623, 50), "background": (19280, 964, 30), "evaluation": (13180, 659, 20)}


class Images(NamedTuple):
    """Images with the class and the drawer of each."""

    name: str
    pixels: Float32[np.ndarray, "n height width"]  # ink from 0, none, to 1
    label: Int32[np.ndarray, " n"]  # class, a place in `names`
    drawer: Int32[np.ndarray, " n"]  # who drew it, 0 or more; -1 where that is not known
    names: tuple[str, ...]  # the classes


def digits() -> Images:
    """Handwritten digits, 8x8, that come with scikit-learn: the test part of UCI's optdigits.

    Licence: CC BY 4.0. Images: 1,797. Classes: 10 (zero to nine). Drawers: 13, but which one drew which image is not
    recorded, so images held out of training may be by the drawers of the others.
    Official page: https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("The digits need scikit-learn: pip install scikit-learn.") from error
    held = load_digits()
    pixels, label = (held.images / 16).astype(np.float32), held.target.astype(np.int32)
    return Images("digits", pixels, label, np.full(len(label), -1, np.int32), DIGITS)


def omniglot(root: str | Path, size: int = 28) -> Images:
    """Handwritten characters of 50 alphabets, each drawn once by 20 people.

    Licence: MIT. Images: 32,460 (105x105 PNG). Classes: 1,623 characters, named "alphabet/character". Drawers: 20 per
    alphabet, 0..19; a number is one person within an alphabet, not across alphabets.
    Official page: https://github.com/brendenlake/omniglot

    An image that lies in several of the archives, as those of Greek and Latin do in the two small background sets,
    counts once.

    Args:
        root: a folder that holds `{alphabet}/{character}/{image}_{drawer}.png` at any depth, unpacked or in zip
            archives at its top, or such an archive itself; a part, e.g. `images_background`, will do.
        size: height and width after averaging over areas, in pixels.

    Raises:
        InputError: there are no such images, one of them cannot be read, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("Omniglot's PNG files need Pillow: pip install pillow.") from error
    root = Path(root)
    found: dict[tuple[str, ...], tuple[str, Callable[[], bytes]]] = {}  # by alphabet, character and file
    archives = [root] if root.is_file() else sorted(root.glob("*.zip"))
    for path in sorted(root.rglob("*.png")):
        found.setdefault(path.parts[-3:], (str(path), path.read_bytes))
    opened = [(path, open_zip(path)) for path in archives]
    for path, archive in opened:
        for name in sorted(archive.namelist()):
            if name.endswith(".png"):
                found.setdefault(tuple(name.split("/")[-3:]), (f"{path}: {name}", partial(archive.read, name)))
    pixels, labels, drawers = [], [], []
    for parts, (where, read) in sorted(found.items()):
        drawer = re.fullmatch(r".*_(\d+)\.png", parts[-1])
        if parts[-1].startswith("._"):  # what macOS leaves in archives
            continue
        if len(parts) < 3 or drawer is None:
            raise InputError(f"{where} is not named {{alphabet}}/{{character}}/{{image}}_{{drawer}}.png.")
        try:
            image = Image.open(io.BytesIO(read())).convert("L").resize((size, size), Image.Resampling.BOX)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{where} cannot be read as a PNG image: {error}.") from error
        pixels.append(1 - np.asarray(image, np.float32) / 255)
        labels.append(f"{parts[-3]}/{parts[-2]}")
        drawers.append(int(drawer[1]) - 1)
    for _, archive in opened:
        archive.close()
    if not pixels:
        raise InputError(f"{root} holds no images, expected {{alphabet}}/{{character}}/{{image}}_{{drawer}}.png.")
    names, label = np.unique(labels, return_inverse=True)
    numbers = label.astype(np.int32), np.array(drawers, np.int32)
    return Images("omniglot", np.stack(pixels), *numbers, tuple(names.tolist()))


def open_zip(path: Path) -> zipfile.ZipFile:
    """The archive, opened to read."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a zip archive: {error}.") from error
