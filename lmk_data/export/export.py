"""Export a dataset for another tool: hard links to its tars, and the files that this tool reads beside them."""

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
    """A folder that a tool takes as it is, and the files in it that are not the dataset's."""

    folder: Path
    written: list[str]


def export(dataset: ShardedDataset, dialect: Dialect, out: str, *, quiet: bool = False) -> Exported:
    """Write a folder in another tool's dialect: that tool's files, and the dataset's tars as hard links.

    The links take no space. The same export may be made again over itself, also after an interruption. Raises
    UserError for a view, for a dataset behind a URL, and for an `out` that holds something else or lies on another
    file system.
    """
    if dataset.is_view:
        raise UserError(
            f"{dataset.location}: a view, whose tars hold another dataset's labels; "
            "`lmk-shard subset --copy` makes a dataset of it, which can be exported"
        )
    folder = open_folder(out)
    if not isinstance(folder, LocalFolder):
        raise UserError(f"{out}: an export is made of hard links; give a folder of this machine, then upload it")
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
    """Nothing is there but what this export writes."""
    if not os.path.isdir(folder.root):
        return
    for name, _ in folder.walk():
        if name not in expected:
            raise UserError(f"{folder.root}: holds {name}, which is not of this export; choose a new or empty folder")


def _link(source: Path, target: Path) -> None:
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
