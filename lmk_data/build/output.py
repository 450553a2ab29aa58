"""Writing into a dataset's folder: one command at a time, never over another build, and the manifest last."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

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
from lmk_data.dataset.manifest import Provenance, read_manifest
from lmk_data.errors import UserError, storage_failure
from lmk_data.leftovers import is_leftover
from lmk_data.system.files import file_lock
from lmk_data.system.storage import (
    BUILD_FOLDER,
    LOCK,
    PLAN_INPUTS,
    PLAN_TABLE,
    RECEIPTS_FOLDER,
    Folder,
    LocalFolder,
)

_SHOWN_DIFFERENCES = 6


class Output:
    """A dataset's folder while one command writes into it: `finished`, then `begin`, then `publish`.

    `folder` is where the files go between `begin` and `publish`.
    """

    def __init__(self, folder: Folder, *, overwrite: bool) -> None:
        self.folder = folder
        self._overwrite = overwrite

    def finished(self, provenance: Provenance) -> Manifest | None:
        """Return the manifest if the build of this provenance is published here already; change nothing.

        With `overwrite` the folder is not looked at, and the answer is None. Raises UserError that names the
        differences if the folder holds another build.
        """
        if self._overwrite:
            return None
        inputs, earlier = provenance.inputs(), _earlier_inputs(self.folder)
        if earlier is not None and earlier.get("fingerprint") != provenance.fingerprint:
            shown = _differences(earlier, inputs)
            raise UserError(
                f"--out {self.folder.root}: holds another build ({shown}); name another folder or give --overwrite"
            )
        return read_manifest(self.folder) if self.folder.exists(MANIFEST) else None

    def begin(self, provenance: Provenance) -> None:
        """Remove the manifest and note whose build this is, before the first file of the dataset is written.

        With `overwrite`, remove whatever build the folder holds, even one whose manifest cannot be read.
        """
        if self._overwrite:
            _clear(self.folder)
        self.folder.remove(MANIFEST)
        self.folder.sweep()
        write_file(self.folder, PLAN_INPUTS, canonical_json(provenance.inputs()))

    def publish(self, manifest: Manifest) -> Manifest:
        """Write dataset.json, after which the dataset is whole, and delete what interrupted attempts left; return it.

        A view keeps nothing to resume from.
        """
        write_file(self.folder, MANIFEST, canonical_json(manifest) + b"\n")
        self.folder.sweep()
        if "view_of" in manifest:
            self.folder.remove_tree(BUILD_FOLDER)
        return manifest


@contextmanager
def writing(folder: Folder, *, overwrite: bool) -> Iterator[Output]:
    """Hold a folder while a command works in it, so that no other command of this machine does.

    Raises UserError for a folder that holds something else or that another command holds, StorageError when the
    storage fails. A command that ends before it wrote anything leaves nothing behind. An object store has no locks:
    there, two identical builds write the same bytes.
    """
    try:
        _check_folder(folder)
        with _locked(Path(folder.root)) if isinstance(folder, LocalFolder) else nullcontext():
            yield Output(folder, overwrite=overwrite)
    except OSError as error:
        raise storage_failure(error, folder.root) from error


def _check_folder(folder: Folder) -> None:
    """Raise UserError for a folder that holds something else, before anything is read or written."""
    if isinstance(folder, LocalFolder) and folder.is_file(""):
        raise UserError(f"--out {folder.root}: is a file; name a new folder")
    names, folders = set(folder.sizes()), set(folder.folders())
    others = {name for name in names | folders if not is_leftover(name)}
    if others and MANIFEST not in names and BUILD_FOLDER not in folders:
        raise UserError(f"--out {folder.root}: holds something else; name a new or empty folder")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which another command may delete when it leaves nothing behind."""
    existed, path = folder.exists(), folder / LOCK
    busy = f"--out {folder}: another build is at work there; wait for it or stop it"
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(file_lock(path, wait_seconds=0, busy=busy))
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            _leave_nothing_behind(folder, existed)


def _leave_nothing_behind(folder: Path, existed: bool) -> None:
    """Remove a `.build` that holds only the lock, and the folder if this command created it."""
    try:
        if os.listdir(folder / BUILD_FOLDER) == [Path(LOCK).name]:
            (folder / LOCK).unlink()
            (folder / BUILD_FOLDER).rmdir()
            if not existed and not os.listdir(folder):
                folder.rmdir()
    except FileNotFoundError:
        pass  # somebody removed the folder; nothing is left


def _earlier_inputs(out: Folder) -> dict[str, Any] | None:
    """Return the inputs of the earlier build in this folder, published or not; None if there is none."""
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
    """Return the first settings that differ, as `name: earlier -> now`."""
    flat_earlier, flat_now = _flattened(earlier), _flattened(now)
    names = [name for name in sorted(flat_earlier | flat_now) if flat_earlier.get(name) != flat_now.get(name)]
    names = [name for name in names if name != "fingerprint"] or names
    shown = [f"{name}: {flat_earlier.get(name)} -> {flat_now.get(name)}" for name in names[:_SHOWN_DIFFERENCES]]
    return "; ".join(shown) + (f"; and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _flattened(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as texts by their dotted names; None is left out."""
    flat: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= _flattened(item, f"{prefix}{name}.")
        elif item is not None:
            flat[prefix + name] = str(item)
    return flat


def _clear(out: Folder) -> None:
    """Remove the files of another build, the manifest first: after a crash the build is unfinished."""
    out.remove(MANIFEST)
    for name in (PLAN_INPUTS, PLAN_TABLE, CLASSES, DROPPED_CLASSES, REJECTS, CARD):
        out.remove(name)
    for folder in (RECEIPTS_FOLDER, "shards", "index", REPORT_FOLDER):
        out.remove_tree(folder)
