"""Decode pictures from anywhere: what a file states is checked against a budget before any of it is decoded."""

from lmk_data.decoding.kinds import why_not_decoded
from lmk_data.decoding.picture import Picture, Wanted, decode_picture
from lmk_data.decoding.refusal import Refused
from lmk_data.decoding.stored import check_scans, check_stored, checked_jpeg

__all__ = [
    "Picture",
    "Refused",
    "Wanted",
    "check_scans",
    "check_stored",
    "checked_jpeg",
    "decode_picture",
    "why_not_decoded",
]
