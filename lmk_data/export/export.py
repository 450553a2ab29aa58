"""Export a dataset for another tool: hard links to its tars, and the files that the tool reads beside them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.export.croissant import croissant
from lmk_data.export.dali import dali
from lmk_data.export.energon import energon
from lmk_data.export.rows import Write, linked_files
from lmk_data.export.timm import timm
from lmk_data.export.wids import wids
from lmk_data.options import Dialect
from lmk_data.system.storage import LocalFolder, open_folder


class Exported(NamedTuple):
    """The folder of an export, and the names of the files that were written beside the links."""

    folder: Path
    written: list[str]


def export(dataset: ShardedDataset, dialect: Dialect, out: str, *, quiet: bool = False) -> Exported:
    """Write a folder that another tool can read: hard links to the tars, which take no space, and the tool's own files.

    The same export can be repeated in the same folder, also after an interruption. Raises UserError for a view, for a
    dataset behind a URL, and for an `out` that contains other files or is on another file system.

    Args:
        dataset: The dataset.
        dialect: The tool.
        out: Folder to write.
        quiet: Show no progress bar.
    """
    if dataset.is_view:
        raise UserError(
            f"{dataset.location}: a view, whose tars hold another dataset's labels; "
            "`lmk-shard subset --copy` makes a dataset of it, which can be exported"
        )
    folder = open_folder(out)
    if not isinstance(folder, LocalFolder):
        raise UserError(f"{out}: an export is made of hard links; choose a local folder, then upload it")
    if Path(folder.root).resolve().is_relative_to(dataset.shard_path(".").resolve()):
        raise UserError(f"--out {out}: lies within the dataset, where other tools would read it; choose another folder")
    linked = linked_files(dataset, dialect)
    files = _FILES[dialect](dataset)
    _check_out(folder, {*linked, *files})
    for name in linked:
        _link(dataset.shard_path(name), Path(folder.location(name)))
    for name, write in tqdm(files.items(), desc=dialect, unit=" files", disable=True if quiet else None):
        write(folder, name)
    folder.sweep()
    return Exported(Path(folder.root), sorted(files))


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


def _link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`. Raises UserError if the file system cannot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        if target.samefile(source):
            return
        target.unlink()
    try:
        os.link(source, target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be a hard link to {source} ({error.strerror}); choose an --out on the same file "
            "system as the dataset"
        ) from error
