"""Writing into a dataset's folder: one command at a time, never over another build, and the manifest last."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmk_data.build.crashes import NOTE_NAME
from lmk_data.dataset.format import (
    CARD,
    CLASSES,
    DROPPED_CLASSES,
    FORMAT_NAME,
    MANIFEST,
    REJECTS,
    REPORT_FOLDER,
    SPLITS,
    Manifest,
    canonical_json,
    write_file,
)
from lmk_data.dataset.manifest import MAX_BYTES, Provenance, read_manifest
from lmk_data.errors import TooLargeError, UserError, storage_failure
from lmk_data.leftovers import is_leftover
from lmk_data.system.storage import (
    BUILD_FOLDER,
    CRASHES,
    LOCK,
    MEMBERS_TABLE,
    NOTES_FOLDER,
    PLAN_INPUTS,
    PLAN_TABLE,
    RECEIPTS_FOLDER,
    UNFINISHED_FOLDER,
    Folder,
    LocalFolder,
    held,
)

_SHOWN_DIFFERENCES = 6
_OWN_TABLES = (PLAN_INPUTS, PLAN_TABLE, CRASHES, CLASSES, DROPPED_CLASSES, REJECTS, CARD)
# The files that a build, a view and their reports write below these folders.
_OWN_FILES = {
    RECEIPTS_FOLDER: r"(train|val|test)-\d{6,}\.parquet",
    NOTES_FOLDER: NOTE_NAME,
    **{f"shards/{split}": rf"{split}-\d{{6,}}\.tar" for split in SPLITS},
    "shards": "",
    "index": r"(train|val|test)\.parquet",
    REPORT_FOLDER: r"index\.html|report\.json",
}


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

        With `overwrite`, remove whatever build the folder holds, even one whose manifest cannot be read. Files that no
        build writes stay.
        """
        if self._overwrite and not self.folder.exists(PLAN_INPUTS):
            write_file(self.folder, PLAN_INPUTS, canonical_json(provenance.inputs()))
        self.folder.remove(MANIFEST)
        if self._overwrite:
            _clear(self.folder)
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
        _check_folder(folder, overwrite=overwrite)
        with held(folder, "another build is at work there"):
            yield Output(folder, overwrite=overwrite)
    except OSError as error:
        raise storage_failure(error, folder.root) from error


def _check_folder(folder: Folder, *, overwrite: bool) -> None:
    """Raise UserError for a folder that holds something else, before anything is written.

    Raises DatasetError for a manifest that cannot be read, without `overwrite`.
    """
    if isinstance(folder, LocalFolder) and folder.is_file(""):
        raise UserError(f"--out {folder.root}: is a file; name a new folder")
    names, folders = set(folder.sizes()), set(folder.folders())
    others = {name for name in names | folders if not is_leftover(name)}
    if not others or _is_ours(folder) or (others == {BUILD_FOLDER} and BUILD_FOLDER in folders and _is_begun(folder)):
        return
    if MANIFEST in names and not overwrite:
        read_manifest(folder)  # raises an error that says what is wrong with it
    raise UserError(f"--out {folder.root}: holds something else; name a new or empty folder")


def _is_ours(folder: Folder) -> bool:
    """Return whether a folder holds a build, finished or not: its manifest or its plan says so."""
    manifest, plan = _json_object(folder, MANIFEST), _json_object(folder, PLAN_INPUTS)
    return manifest.get("format") == FORMAT_NAME or {"fingerprint", "source", "plan", "recipe"} <= plan.keys()


def _is_begun(folder: Folder) -> bool:
    """Return whether `.build` holds only what a command leaves that ended before it planned anything."""
    names = {*folder.sizes(BUILD_FOLDER), *folder.folders(BUILD_FOLDER)}
    return names <= {LOCK, MEMBERS_TABLE, UNFINISHED_FOLDER, PLAN_INPUTS}


def _json_object(folder: Folder, name: str) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none."""
    if not folder.is_file(name):
        return {}
    try:
        value = json.loads(folder.read(name, MAX_BYTES))
    except (ValueError, RecursionError, TooLargeError):
        return {}
    return value if isinstance(value, dict) else {}


def _earlier_inputs(out: Folder) -> dict[str, Any] | None:
    """Return the inputs of the earlier build in this folder, published or not; None if there is none."""
    if out.exists(MANIFEST):
        manifest: dict[str, Any] = {**read_manifest(out)}
        return {name: manifest.get(name) for name in ("source", "plan", "recipe", "view_of", "fingerprint")}
    if not out.exists(PLAN_INPUTS):
        return None
    return _json_object(out, PLAN_INPUTS) or {"fingerprint": "damaged"}


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
    """Remove the files of another build, after its manifest: after a crash the build is unfinished.

    The plan, which proves that the folder is a build's, goes last. Files that no build writes stay.
    """
    for folder, own in _OWN_FILES.items():
        for name in out.sizes(folder):
            if re.fullmatch(own, name.rsplit("/", 1)[-1]):
                out.remove(name)
        if not out.sizes(folder) and not out.folders(folder):
            out.remove_tree(folder)
    for name in reversed(_OWN_TABLES):
        out.remove(name)
