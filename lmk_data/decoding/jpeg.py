"""The segments of a JPEG: what its header states, how many scans it has, and the JPEG without its metadata."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lmk_data.decoding.exif import MAX_METADATA_BYTES
from lmk_data.decoding.refusal import Refused

MAX_SCANS = 100  # of a progressive JPEG; encoders write about 10, and each costs a pass over the picture
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_AFTER_SCAN = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_ALONE = {0x01, 0xD8, *range(0xD0, 0xD8)}  # markers without a segment
_SOS, _EOI = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
_DECODED_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_PROGRESSIVE = {0xC2, 0xCA}
_NEEDED = {0xE0, 0xEE}  # JFIF and Adobe say what the colours mean


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG without its metadata, and what it stated. `held_bytes` are what a decoder holds of all scans at once."""

    data: bytes
    width: int
    height: int
    num_components: int
    held_bytes: int
    exif: bytes
    xmp: bytes


def read_jpeg(data: bytes) -> Jpeg:
    """Return what a JPEG states, before any of it is decoded.

    Raises Refused for a kind that is not decoded (12 bits, lossless, hierarchical, JPEG-LS), for too many scans, and
    where the data ends before the picture begins.
    """
    kept, exif, xmp = bytearray(data[:2]), bytearray(), b""
    frame: tuple[int, bytes] | None = None
    for marker, start, end in _segments(data, 2, _NEXT_MARKER):
        body = data[start + 4 : min(end, start + 4 + MAX_METADATA_BYTES)] if marker not in _ALONE else b""
        if marker == 0xE1 and body.startswith(b"Exif\0\0") and len(exif) < MAX_METADATA_BYTES:
            exif += body[6:] if exif else body
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = body.split(b"\0", 1)[1]
        elif marker in _FRAMES:
            frame = marker, body
        if marker == _SOS:
            break
        if marker < 0xE0 or marker in _NEEDED:
            kept += data[start:end]
    else:
        raise Refused("truncated", "the data ends before the picture begins")
    if frame is None or len(frame[1]) < 6:
        raise Refused("corrupt", "a JPEG without a frame")
    width, height, held_bytes = _checked_frame(*frame, data, start)
    whole = b"".join((kept, memoryview(data)[start:]))
    return Jpeg(whole, width, height, frame[1][5], held_bytes, bytes(exif), xmp)


def _checked_frame(kind: int, frame: bytes, data: bytes, first_scan: int) -> tuple[int, int, int]:
    """Return width, height and the bytes of the coefficients that are held; Refused for what is not decoded."""
    precision, height, width = frame[0], int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    if kind not in _DECODED_FRAMES:
        raise Refused("unsupported-format", f"a JPEG of another process (marker FF{kind:02X})")
    if precision != 8:
        raise Refused("unsupported-format", f"a JPEG of {precision} bits")
    components = [frame[6 + 3 * i : 9 + 3 * i] for i in range(frame[5])]
    if not components or any(len(component) < 3 for component in components):
        raise Refused("corrupt", "a JPEG whose frame ends early")
    is_in_one_scan = len(data) > first_scan + 4 and data[first_scan + 4] == len(components)
    if kind not in _PROGRESSIVE and is_in_one_scan:
        return width, height, 0
    if data.count(b"\xff\xda", first_scan) > MAX_SCANS:  # an upper limit, and quick to count
        _check_scans(data, first_scan)
    across = [max(1, component[1] >> 4) for component in components]
    down = [max(1, component[1] & 15) for component in components]
    columns, rows = -(-width // (8 * max(across))), -(-height // (8 * max(down)))
    blocks = sum(columns * h * rows * v for h, v in zip(across, down, strict=True))
    return width, height, blocks * 64 * 2


def _check_scans(data: bytes, first_scan: int) -> None:
    """Raise Refused for more than `MAX_SCANS` scans."""
    num_scans = 0
    for marker, _, _ in _segments(data, first_scan, _AFTER_SCAN):
        num_scans += marker == _SOS
        if num_scans > MAX_SCANS:
            raise Refused("too-large", f"a progressive JPEG of more than {MAX_SCANS} scans")
        if marker == _EOI:
            break


def _segments(data: bytes, position: int, pattern: "re.Pattern[bytes]") -> Iterator[tuple[int, int, int]]:
    """Yield each marker with the start and the end of its segment, as far as the data goes."""
    while found := pattern.search(data, position):
        marker, start = found[1][0], found.end() - 2
        position = start + 2
        if marker not in _ALONE and marker != _EOI:
            if len(data) < start + 4:
                return
            position += max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
        yield marker, start, position
