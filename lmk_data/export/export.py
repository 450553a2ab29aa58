"""Export a dataset for another tool: hard links to its tars, and the files that the tool reads beside them."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lmk_data.dataset.format import Manifest
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.export.croissant import croissant
from lmk_data.export.dali import dali
from lmk_data.export.energon import energon
from lmk_data.export.rows import Write, linked_files
from lmk_data.export.timm import timm
from lmk_data.export.wids import wids
from lmk_data.options import Dialect
from lmk_data.system.files import make_folder, open_regular, sha256_file, sync_folder
from lmk_data.system.storage import LocalFolder, held, open_folder
from lmk_data.system.terminal import notice, progress_bar

# The dataset is another user's (fs.protected_hardlinks), or the file system has no hard links.
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
_COPY_BYTES = 16 << 20  # copied at once


class Exported(NamedTuple):
    """The folder of an export, and the names of the files that were written beside the links."""

    folder: Path
    written: list[str]


def export(dataset: ShardedDataset, dialect: Dialect, out: str, *, quiet: bool = False) -> Exported:
    """Write a folder that another tool can read: hard links to the tars, which take no space, and the tool's own files.

    The same export can be repeated in the same folder, also after an interruption. Where hard links are not permitted
    the tars are copied. Raises UserError for a view, for a dataset behind a URL, and for an `out` that contains other
    files or another dataset's, or is on another file system.

    Args:
        dataset: The dataset.
        dialect: The tool.
        out: Folder to write.
        quiet: Show no progress bar.
    """
    refuse_view(dataset.location, dataset.manifest)
    folder = open_folder(out)
    if not isinstance(folder, LocalFolder):
        raise UserError(f"{out}: an export is made of hard links; choose a local folder, then upload it")
    if Path(folder.root).resolve().is_relative_to(dataset.shard_path(".").resolve()):
        raise UserError(f"--out {out}: lies within the dataset, where other tools would read it; choose another folder")
    linked = linked_files(dataset, dialect)
    files = _FILES[dialect](dataset)
    with held(folder, "another export is at work there"):
        _check_out(folder, {*linked, *files})
        same = _check_same(folder, dataset, linked, files)
        for name in linked:
            if name not in same:
                _link(dataset.shard_path(name), folder, name)
        for parent in {os.path.dirname(folder.location(name)) for name in linked}:
            sync_folder(Path(parent))
        with progress_bar(len(files), dialect, "files", quiet=quiet) as bar:
            for name, write in files.items():
                write(folder, name)
                bar.update()
        folder.sweep()
    return Exported(Path(folder.root), sorted(files))


def refuse_view(location: str, manifest: Manifest) -> None:
    """Raise UserError if a manifest is that of a view."""
    if "view_of" in manifest:
        raise UserError(
            f"{location}: a view, whose tars hold another dataset's labels; "
            "`lmk-shard subset --copy` makes a dataset of it, which can be exported"
        )


_FILES: dict[Dialect, Callable[[ShardedDataset], dict[str, Write]]] = {
    "wids": wids,
    "timm": timm,
    "dali": dali,
    "energon": energon,
    "croissant": croissant,
}


def _check_out(folder: LocalFolder, expected: set[str]) -> None:
    """Raise UserError if the folder contains a file that this export does not write."""
    if not os.path.isdir(folder.root):
        return
    for name, _ in folder.walk():
        if name not in expected:
            raise UserError(
                f"{folder.root}: holds {name}, which is not part of this export; choose a new or empty folder"
            )


def _check_same(
    folder: LocalFolder, dataset: ShardedDataset, linked: list[str], files: Iterable[str]
) -> frozenset[str]:
    """Return which of the files to link are there, as links to the dataset or with its bytes.

    Raises UserError if one is another dataset's, perhaps its only copy, or if the folder has none of them but a file of
    a name that the export writes.
    """
    there = [name for name in linked if os.path.lexists(folder.location(name))]
    for name in there:
        if not _is_same(dataset, name, Path(folder.location(name))):
            raise UserError(
                f"{folder.location(name)}: is not the file of {dataset.location}, and may be the only copy of another; "
                "choose a new or empty folder"
            )
    named = [name for name in files if os.path.lexists(folder.location(name))]
    if named and not there:
        raise UserError(f"{folder.root}: holds {named[0]}, but no tar of this export; choose a new or empty folder")
    return frozenset(there)


def _is_same(dataset: ShardedDataset, name: str, target: Path) -> bool:
    """Return whether an existing file is a link to a file of the dataset, or has its bytes."""
    source = dataset.shard_path(name)
    if target.is_symlink() or not target.is_file():
        return False
    if target.samefile(source):
        return True
    entry = dataset.manifest["files"].get(name)
    same_size = entry is not None and target.stat().st_size == entry["num_bytes"]
    return same_size and entry is not None and sha256_file(target) == entry["sha256"]


def _link(source: Path, folder: LocalFolder, name: str) -> None:
    """Make a file of the export a hard link to `source`; a copy where the file system permits no such link.

    Raises UserError if the export is on another file system.
    """
    target = Path(folder.location(name))
    folder.check_writable(target)
    make_folder(target.parent)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            _notice_copies(folder.root, error.strerror)
            with open_regular(source) as original, folder.atomic(name) as file:
                shutil.copyfileobj(original, file, _COPY_BYTES)
            return
        hint = "choose an --out on the same file system as the dataset" if error.errno == errno.EXDEV else "is it full?"
        raise UserError(f"{target}: cannot be a hard link to {source} ({error.strerror}); {hint}") from error


@cache
def _notice_copies(folder: str, reason: str) -> None:
    notice(f"{folder}: hard links are refused there ({reason}), so the tars are copied and take space")
