"""Files of plain tensors as torch writes them: bounded by their own size, and nothing in them is executed."""

import argparse
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from lmk_data.errors import UserError, one_line
from lmk_train.runs.plain_file import open_regular

LOAD_ERRORS = (  # of torch.load
    OSError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    MemoryError,
    AssertionError,
    RecursionError,
)
_MAX_RECORDS = 1_000_000
_ZIP_MAGIC = b"PK\x03\x04"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_GLOBAL = re.compile(r"(?:Unsupported (?:global: GLOBAL|class)|got GLOBAL) ([\w.]+)")


def load_tensors(path: Path, *, only_zip: bool) -> Any:
    """Return the value in a file that torch.save wrote: tensors on the CPU, plain values, and containers of these.

    Args:
        path: of the file.
        only_zip: refuse the format that torch wrote before version 1.6.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, is compressed, or holds anything else; the message is one line.
    """
    with open_regular(path) as file:
        is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        file.seek(0)
        if only_zip and not is_zip:
            raise ValueError("not in the format of torch.save")
        try:
            if is_zip:
                _check_records(zipfile.ZipFile(file), path.stat().st_size)
                file.seek(0)
            # argparse.Namespace: options beside the weights; it has attributes only.
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")
                value = torch.load(file, map_location="cpu", weights_only=True)
        except (*LOAD_ERRORS, zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(load_error(error)) from None
    _check_tensors(value)
    return value


def load_error(error: BaseException) -> str:
    """Return in one line what kept a file of tensors from being loaded."""
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if found := _GLOBAL.search(_ESCAPES.sub("", str(error))):
        return f"holds an object of {found[1]}; save the state dict alone"
    text = _ESCAPES.sub("", str(error)).splitlines()
    return one_line(ValueError(text[0] if text else type(error).__name__))


def _check_records(archive: zipfile.ZipFile, num_bytes: int) -> None:
    """Raise ValueError unless the records are stored as they are, so that they need no more memory than the file."""
    records = archive.infolist()
    if len(records) > _MAX_RECORDS:
        raise ValueError(f"has more than {_MAX_RECORDS:,} records")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed, which torch.save does not do")
    if sum(record.file_size for record in records) > num_bytes:
        raise ValueError("its records state more bytes than the file has")


def _check_tensors(value: Any) -> None:
    """Raise ValueError for a tensor that is not dense memory of its own size: sparse, on no device, or expanded."""
    pending, seen = [value], {0}
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            if item.layout != torch.strided or item.device.type != "cpu" or item.is_quantized:
                raise ValueError("holds a tensor that is not a plain one of the CPU")
            if item.numel() * item.element_size() > item.untyped_storage().nbytes():
                raise ValueError("holds a tensor that is larger than its values")
        elif isinstance(item, dict | list | tuple | set) and id(item) not in seen:
            seen.add(id(item))
            pending.extend([*item.keys(), *item.values()] if isinstance(item, dict) else item)


def require_tensors(value: Any, name: str) -> dict[str, torch.Tensor]:
    """Return a state dict; ValueError, which begins with `name`, unless it maps names to tensors."""
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items()
    ):
        raise ValueError(f"{name}: does not map names to tensors")
    return value


def restore_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load a state dict, which is from the file `path`, into a model.

    Raises UserError unless it has a tensor of the right shape and kind for each one of the model.
    """
    for name, value in model.state_dict().items():
        other = weights.get(name)
        if other is None or other.shape != value.shape or other.is_floating_point() != value.is_floating_point():
            found = "is missing" if other is None else f"is {other.dtype} {[*other.shape]}, not {[*value.shape]}"
            raise UserError(f"{path}: its weights are not those of its configuration: {name} {found}")
    if more := weights.keys() - model.state_dict().keys():
        raise UserError(f"{path}: its weights are not those of its configuration: nothing is called {min(more)[:80]!r}")
    model.load_state_dict(weights)
