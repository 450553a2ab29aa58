"""Files of tensors in the format safetensors: a header of bounded JSON, then plain numbers; nothing is executed.

https://huggingface.co/docs/safetensors: eight bytes with the header's length, little-endian; the header, which gives
each tensor's kind, shape and place; the bytes of all tensors, one after the other.
"""

import json
import math
import os
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import torch

from lmk_data.errors import one_line
from lmk_train.runs.plain_file import checked, open_regular

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_MAX_TENSORS = 1_000_000
_KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """What the header says of a tensor; the offsets count from the header's end."""

    dtype: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=64)]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


def is_safetensors(path: Path) -> bool:
    """Return whether a file is named as one of this format; other formats are told apart by their first bytes."""
    return path.suffix.lower() == ".safetensors"


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, cut short, or states more than it holds; the message is one line.
    """
    with open_regular(path) as file:
        try:
            entries, start = _read_header(file)
            return {name: _read_tensor(file, entry, start) for name, entry in entries.items()}
        except (ValueError, RecursionError, MemoryError, RuntimeError, TypeError) as error:  # the last two: huge shapes
            raise ValueError(one_line(error)) from None


def _read_header(file: BinaryIO) -> tuple[dict[str, _Entry], int]:
    """Return what the header says of each tensor, and where the tensors begin; they fill the rest of the file."""
    num_bytes = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    start = _LENGTH_BYTES + length
    if num_bytes < _LENGTH_BYTES or start > num_bytes:
        raise ValueError("its header is longer than the file")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"its header is longer than {_MAX_HEADER_BYTES // 10**6} MB")
    header = json.loads(file.read(length))
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        raise ValueError("its header is no list of tensors")
    header.pop("__metadata__", None)
    entries = checked(header, dict[str, _Entry])
    end = 0
    for begin, stop in sorted(entry.data_offsets for entry in entries.values()):
        if begin != end or stop < begin:
            raise ValueError("its tensors overlap or leave gaps")
        end = stop
    if start + end != num_bytes:
        raise ValueError("its tensors do not fill the file")
    return entries, start


def _read_tensor(file: BinaryIO, entry: _Entry, start: int) -> torch.Tensor:
    if entry.dtype not in _KINDS:
        raise ValueError(f"holds numbers of the kind {entry.dtype}")
    kind, (begin, stop) = _KINDS[entry.dtype], entry.data_offsets
    if math.prod(entry.shape) * kind.itemsize != stop - begin:
        raise ValueError("holds a tensor whose shape is not that of its values")
    values = torch.empty(math.prod(entry.shape), dtype=kind)
    file.seek(start + begin)
    if len(values) and file.readinto(values.view(torch.uint8).numpy()) != stop - begin:  # type: ignore[attr-defined]
        raise ValueError("is shorter than it was")
    return values.reshape(entry.shape)
