"""An output folder: held by one command at a time, and refused to another build than the one that it holds."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmk_data.build.shard import PLAN_INPUTS, PLAN_TABLE, RECEIPTS_FOLDER
from lmk_data.dataset.format import (
    CARD,
    CLASSES,
    DROPPED_CLASSES,
    MANIFEST,
    REJECTS,
    REPORT_FOLDER,
    Manifest,
    canonical_json,
    write_file,
)
from lmk_data.dataset.manifest import read_manifest
from lmk_data.errors import StorageError, UserError
from lmk_data.system.storage import BUILD_FOLDER, Folder, LocalFolder, storage_failure

_LOCK = f"{BUILD_FOLDER}/lock"
_SHOWN_DIFFERENCES = 6


@contextmanager
def holding(out: Folder) -> Iterator[None]:
    """Hold a folder while working in it: on this machine two commands never work in one folder at once.

    Refuses a folder that holds something else, with UserError. Failures of the storage become StorageError. A
    command that ends before it wrote anything leaves nothing behind. An object store has no locks: there, twice
    the same build writes the same bytes.
    """
    try:
        _check_out(out)
        with _locked(Path(out.root)) if isinstance(out, LocalFolder) else _unlocked():
            yield
    except OSError as error:
        raise StorageError(storage_failure(error, out.root)) from error


def claim(out: Folder, inputs: dict[str, Any], *, overwrite: bool) -> Manifest | None:
    """The manifest, if the build with these inputs (and their `fingerprint`) is published here already.

    Refuses the folder of another build with what differs; with `overwrite` nothing is looked at, and None. Changes
    nothing.
    """
    if overwrite:
        return None
    earlier = _earlier_inputs(out)
    if earlier is not None and earlier.get("fingerprint") != inputs["fingerprint"]:
        shown = _differences(earlier, inputs)
        raise UserError(f"--out {out.root}: holds another build ({shown}); name another folder or give --overwrite")
    return read_manifest(out) if out.exists(MANIFEST) else None


def begin(out: Folder, inputs: dict[str, Any], *, overwrite: bool) -> None:
    """Take the manifest away and note whose build this is, before the first file of the dataset is written.

    With `overwrite`, removes whatever build the folder holds, even one whose manifest cannot be read.
    """
    if overwrite:
        _clear(out)
    out.remove(MANIFEST)
    out.sweep()
    write_file(out, PLAN_INPUTS, canonical_json(inputs))


def _check_out(out: Folder) -> None:
    """Refuse a folder that holds something else, before anything is read or written; UserError."""
    if isinstance(out, LocalFolder) and out.is_file(""):
        raise UserError(f"--out {out.root}: is a file; name a new folder")
    names, folders = set(out.sizes()), set(out.folders())
    if (names or folders) and MANIFEST not in names and BUILD_FOLDER not in folders:
        raise UserError(f"--out {out.root}: holds something else; name a new or empty folder")


@contextmanager
def _unlocked() -> Iterator[None]:
    yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    existed = folder.exists()
    path = folder / _LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written: {error.strerror}") from error
    try:
        _flock(descriptor, path, folder)
        try:
            yield
        finally:
            _leave_nothing_behind(folder, existed)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, path: Path, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before may have removed the file between our opening and locking it.
        held = path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path))
    except BlockingIOError:
        held = False
    if not held:
        raise UserError(f"--out {folder}: another build is at work there; wait for it or stop it")


def _leave_nothing_behind(folder: Path, existed: bool) -> None:
    """Remove a `.build` that holds the lock alone, and the folder if this command made it."""
    try:
        if os.listdir(folder / BUILD_FOLDER) == [Path(_LOCK).name]:
            (folder / _LOCK).unlink()
            (folder / BUILD_FOLDER).rmdir()
            if not existed and not os.listdir(folder):
                folder.rmdir()
    except FileNotFoundError:
        pass  # somebody removed the folder; nothing is left


def _earlier_inputs(out: Folder) -> dict[str, Any] | None:
    """What an earlier build in this folder was made of, published or not."""
    if out.exists(MANIFEST):
        manifest: dict[str, Any] = {**read_manifest(out)}
        return {name: manifest.get(name) for name in ("source", "plan", "recipe", "view_of", "fingerprint")}
    try:
        return dict(json.loads(out.read(PLAN_INPUTS)))
    except FileNotFoundError:
        return None
    except ValueError:
        return {"fingerprint": "damaged"}


def _differences(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """The first few settings that differ, as `name: earlier -> now`."""
    flat_earlier, flat_now = _flattened(earlier), _flattened(now)
    names = [name for name in sorted(flat_earlier | flat_now) if flat_earlier.get(name) != flat_now.get(name)]
    names = [name for name in names if name != "fingerprint"] or names
    shown = [f"{name}: {flat_earlier.get(name)} -> {flat_now.get(name)}" for name in names[:_SHOWN_DIFFERENCES]]
    return "; ".join(shown) + (f"; and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _flattened(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= _flattened(item, f"{prefix}{name}.")
        elif item is not None:
            flat[prefix + name] = str(item)
    return flat


def _clear(out: Folder) -> None:
    """Remove another build's files, the manifest first, so that a crash leaves an unfinished build behind."""
    out.remove(MANIFEST)
    for name in (PLAN_INPUTS, PLAN_TABLE, CLASSES, DROPPED_CLASSES, REJECTS, CARD):
        out.remove(name)
    for folder in (RECEIPTS_FOLDER, "shards", "index", REPORT_FOLDER):
        out.remove_tree(folder)
