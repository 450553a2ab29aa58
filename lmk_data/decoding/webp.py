"""The size that a WebP states: libwebp allocates it before it is asked to decode."""

from lmk_data.decoding.refusal import Refused

BYTES_PER_PIXEL = 16  # measured: two canvases, what the decoder of a lossless picture holds, and Pillow's copies


def webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a WebP by its header; raise Refused if there is none."""
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        raise Refused("truncated", "the data ends before the picture begins")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    raise Refused("corrupt", "a WebP without a picture")
