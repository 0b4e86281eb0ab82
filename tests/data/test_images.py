"""Images: the real sets whole, small folders and archives of the same layout, and what is refused."""

import sys
import zipfile

import numpy as np
import pytest

from metajax.data.images import DIGITS, OMNIGLOT_COUNTS, digits, omniglot
from metajax.errors import InputError
from tests.shared import ROOT, shared_data

Image = pytest.importorskip("PIL.Image")


def draw(path, ink, shape=(105, 105)):
    """A white page, black where `ink`, as Omniglot's are, 1 bit per pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = np.full(shape, 255, np.uint8)
    page[ink] = 0
    Image.fromarray(page).convert("1").save(path)


@pytest.fixture
def folder(tmp_path):
    """Two alphabets in two parts, unpacked."""
    draw(tmp_path / "images_background" / "Greek" / "character01" / "0002_02.png", np.s_[:15, :30])
    draw(tmp_path / "images_background" / "Greek" / "character01" / "0002_01.png", np.s_[:])
    draw(tmp_path / "images_background" / "Greek" / "character02" / "0003_20.png", np.s_[0:0])
    draw(tmp_path / "images_evaluation" / "Angelic" / "character01" / "0001_03.png", np.s_[90:])
    return tmp_path


def pack(folder, part):
    """Zip one part as the archive of its name, and leave it out of the folder."""
    paths = sorted((folder / part).rglob("*.png"))
    with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.relative_to(folder).as_posix())
            path.unlink()
        archive.writestr("__MACOSX/" + str(paths[0].parent.relative_to(folder) / ("._" + paths[0].name)), b"not a png")


def test_digits_are_whole():
    pytest.importorskip("sklearn")
    held = digits()
    assert held.pixels.shape == (1797, 8, 8) and held.pixels.dtype == np.float32
    assert held.pixels.min() == 0 and held.pixels.max() == 1
    assert np.bincount(held.label).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert held.names == DIGITS and set(held.drawer.tolist()) == {-1}
    # a zero is hollow, a one is not
    centre = held.pixels[:, 3:5, 3:5].mean((1, 2))
    assert centre[held.label == 0].mean() < 0.1 < 0.6 < centre[held.label == 1].mean()


def test_omniglot_small_is_whole():
    """The 1,000 images of Greek and Latin lie in both archives and count once."""
    held = omniglot(shared_data("omniglot_small"))
    assert held.pixels.shape == (4840, 28, 28)
    assert len(held.names) == 242 and len({name.split("/")[0] for name in held.names}) == 8
    pairs = np.stack([held.label, held.drawer], 1)
    assert len(np.unique(pairs, axis=0)) == 4840 and set(held.drawer.tolist()) == set(range(20))
    assert 0.05 < held.pixels.mean() < 0.12  # thin strokes of ink, on an empty page
    assert np.bincount(held.label).tolist() == [20] * 242


def test_omniglot_from_its_own_archives_is_whole():
    """The full set, where someone has put it beside the other data."""
    for part, (images, characters, alphabets) in OMNIGLOT_COUNTS.items():
        path = ROOT / "omniglot" / ("" if part == "all" else f"images_{part}.zip")
        if not path.exists():
            pytest.skip(f"the full Omniglot set is nowhere at hand: {path}")
        held = omniglot(path)
        counts = len(held.label), len(held.names), len({name.split("/")[0] for name in held.names})
        assert counts == (images, characters, alphabets)


def test_omniglot_folder(folder):
    held = omniglot(folder)
    assert held.names == ("Angelic/character01", "Greek/character01", "Greek/character02")
    assert held.label.tolist() == [0, 1, 1, 2] and held.drawer.tolist() == [2, 0, 1, 19]
    assert held.pixels.shape == (4, 28, 28) and held.pixels.dtype == np.float32
    assert (held.pixels[1] == 1).all() and not held.pixels[3].any()
    np.testing.assert_array_equal(held.pixels[2] == 1, np.add.outer(np.arange(28) >= 4, np.arange(28) >= 8) == 0)
    np.testing.assert_allclose(held.pixels.mean((1, 2)), [15 / 105, 1, 15 * 30 / 105**2, 0], atol=2e-3)
    greek = omniglot(folder / "images_background" / "Greek", size=14)
    assert greek.names == held.names[1:] and greek.pixels.shape == (3, 14, 14)


def test_omniglot_in_archives_is_that_of_the_folder(folder):
    wanted = omniglot(folder)
    pack(folder, "images_background")
    for _ in range(2):
        held = omniglot(folder)
        assert held.names == wanted.names
        for a, b in zip(held[1:4], wanted[1:4], strict=True):
            np.testing.assert_array_equal(a, b)
        # once more with an archive that holds some of the same images
        (folder / "again.zip").write_bytes((folder / "images_background.zip").read_bytes())
    assert omniglot(folder / "again.zip").names == ("Greek/character01", "Greek/character02")


def test_bad_images_are_refused_by_name(folder):
    with pytest.raises(InputError, match=r"nowhere holds no images, expected \{alphabet\}/\{character\}"):
        omniglot(folder / "nowhere")
    (folder / "bad.zip").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"bad\.zip cannot be read as a zip archive"):
        omniglot(folder)
    with zipfile.ZipFile(folder / "bad.zip", "w") as archive:
        archive.writestr("part/Greek/character09/0009_09.png", b"no image")
    with pytest.raises(
        InputError, match=r"bad\.zip: part/Greek/character09/0009_09\.png cannot be read as a PNG image"
    ):
        omniglot(folder)
    (folder / "bad.zip").unlink()
    path = folder / "images_background" / "Greek" / "character01" / "0002_02.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"0002_02\.png cannot be read as a PNG image"):
        omniglot(folder)
    path.rename(path.with_name("last.png"))
    with pytest.raises(
        InputError, match=r"last\.png is not named \{alphabet\}/\{character\}/\{image\}_\{drawer\}\.png"
    ):
        omniglot(folder)


def test_optional_packages_are_named_where_they_are_absent(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        digits()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match="pip install pillow"):
        omniglot(tmp_path)
