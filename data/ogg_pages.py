"""The pages of Ogg files (RFC 3533): where joined files begin, and whether the last page is there."""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple


class OggPage(NamedTuple):
    """What the header of a page states, and whether the file holds all of the page."""

    start: int
    begins_file: bool
    begins_stream: bool
    is_last: bool
    granule: int
    is_whole: bool


def ogg_pages(file: BinaryIO) -> Iterator[OggPage]:
    """Yield the pages of an Ogg file, past what is damaged between them."""
    end = file.seek(0, os.SEEK_END)
    position, in_beginnings = 0, False
    while position < end:
        file.seek(position)
        head = file.read(27 + 255)
        if not head.startswith(b"OggS"):
            found = head.find(b"OggS", 1)
            position += found if found > 0 else max(1, len(head) - 3)
            continue
        if len(head) < 27:
            return
        length = 27 + head[26] + sum(head[27 : 27 + head[26]])
        granule = int.from_bytes(head[6:14], "little", signed=True)
        begins_stream, is_last = bool(head[5] & 2), bool(head[5] & 4)
        # Streams side by side begin together.
        begins_file = begins_stream and not in_beginnings
        yield OggPage(position, begins_file, begins_stream, is_last, granule, position + length <= end)
        position, in_beginnings = position + length, begins_stream


def stated_ogg_length(file: BinaryIO) -> tuple[int, str]:
    """Return the frames up to the last page of a stream where that page is cut off, else 0, and what is missing."""
    file.seek(0)
    if file.read(4) != b"OggS":
        return 0, ""
    pages = list(ogg_pages(file))
    if sum(page.begins_stream for page in pages) != 1:
        return 0, ""
    granule = 0 if pages[-1].is_whole else max(0, pages[-1].granule)
    return granule, "" if pages[-1].is_last else "the last page of its stream is missing"
