"""The blocks of a GIF before its first picture: kept are those that its pixels need."""

import re

from lmk_data.decoding.refusal import Refused

_NEXT_BLOCK = re.compile(rb"[!,;]")
_GRAPHIC_CONTROL = 0xF9  # says which colour is transparent


def read_gif(data: bytes) -> bytes:
    """Return a GIF without the comments and application data before its first picture.

    Pillow joins comments one by one, which takes long for many. Raises Refused if there is no picture.
    """
    position = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    head, control = data[:position], b""
    while (found := _NEXT_BLOCK.search(data, position)) is not None:
        start = found.start()
        if data[start : start + 1] == b",":
            return b"".join((head, control, memoryview(data)[start:]))
        if data[start : start + 1] == b";":
            break
        position = start + 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
        if data[start + 1 : start + 2] == bytes([_GRAPHIC_CONTROL]):
            control = data[start:position]
    raise Refused("truncated", "the data ends before the picture begins")
