"""Check a stored picture before it is decoded: the index of a dataset vouches for its bytes, not for its size."""

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
    if (header.width, header.height) != (size, size):
        raise ValueError(f"{header.width}x{header.height} pixels instead of {size}x{size}")
    return header.data
