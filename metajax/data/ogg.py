"""OGG files: the streams that follow one another in them."""

from pathlib import Path

from metajax.errors import InputError


def links(content: bytes, path: Path) -> list[bytes]:
    """Divide an OGG file into the streams that follow one another in it, each an OGG file of its own.

    libsndfile reads the first of them alone. The flag of the last page is not asked for, because many recorders leave
    it out: a file that ends after a whole page and a whole packet counts as whole.

    Args:
        content: of the file.
        path: for messages.

    Raises:
        InputError: the last page or packet is not whole.

    Reference:
        RFC 3533.
    """
    begins = [0]
    at, first, open_packet = 0, True, False
    while at >= 0:
        page = content[at : at + 27 + 255]
        end = at + 27 + sum(page[26 : 27 + page[26]]) if len(page) > 26 else len(content) + 1
        if end > len(content):
            raise InputError(f"{path} is cut short: its last OGG page is not whole.")
        # The streams of one link, say sound and pictures, begin together: their first pages come before all others.
        if page[5] & 2 and not first:
            begins.append(at)
        first, open_packet = bool(page[5] & 2), page[26] > 0 and page[26 + page[26]] == 255
        at = content.find(b"OggS", end)
    if open_packet:
        raise InputError(f"{path} is cut short: its last OGG packet is not whole.")
    return [content[begin:end] for begin, end in zip(begins, [*begins[1:], len(content)], strict=True)]
