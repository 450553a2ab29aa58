"""Check a stored picture before it is decoded: the index of a dataset vouches for its bytes, not for its cost."""

import simplejpeg

from lmk_data.decoding.jpeg import read_jpeg
from lmk_data.decoding.refusal import Refused


def checked_jpeg(jpeg: bytes, size: int) -> bytes:
    """Return a JPEG without its metadata.

    Raises ValueError unless its header says that it has `size` x `size` pixels, in few scans.
    """
    try:
        header = read_jpeg(jpeg)
    except Refused as refused:
        raise ValueError(refused.detail) from refused
    _check_size(header.width, header.height, size)
    return header.data


def check_stored(jpeg: bytes, size: int) -> None:
    """Raise ValueError unless the header of a JPEG says that it has `size` x `size` pixels, in few scans.

    This is for callers that decode with simplejpeg, which skips metadata: it takes a tenth of the time of
    `checked_jpeg`.
    """
    check_scans(jpeg)
    height, width = simplejpeg.decode_jpeg_header(jpeg)[:2]
    _check_size(width, height, size)


def _check_size(width: int, height: int, size: int) -> None:
    if (width, height) != (size, size):
        raise ValueError(f"{width}x{height} pixels instead of {size}x{size}")


def check_scans(jpeg: bytes) -> None:
    """Raise ValueError for a JPEG of many scans, each of which costs a pass over the picture.

    One that has a single scan, as all have that a build wrote, is recognised in a few microseconds.
    """
    if not _is_one_scan(jpeg):
        try:
            read_jpeg(jpeg)
        except Refused as refused:
            raise ValueError(refused.detail) from refused


def _is_one_scan(jpeg: bytes) -> bool:
    """Return whether a JPEG is sequential and has all components in its first scan; False if that cannot be seen."""
    position, num_components = 2, 0
    try:
        while jpeg[position] == 0xFF:
            marker = jpeg[position + 1]
            if marker in (0xC0, 0xC1):
                num_components = jpeg[position + 9]
            elif marker == 0xDA:
                return jpeg[position + 4] == num_components > 0
            elif marker < 0xC4 or marker == 0xFF:
                return False
            position += 2 + (jpeg[position + 2] << 8 | jpeg[position + 3])
    except IndexError:
        pass
    return False
