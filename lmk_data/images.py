"""Image stores: which pictures there are, and the bytes of one by its locator."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lmk_data.errors import StorageError, UserError
from lmk_data.format import Rejection

MAX_IMAGE_BYTES = 1 << 30
_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.1
_PROBES = 256
_IGNORED_NAMES = {"thumbs.db"}
_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "mpo", "tif", "tiff")


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A folder of image files; a locator is a file's path relative to it, with forward slashes."""

    root: str

    def read(self, source: str) -> bytes | Rejection:
        """The bytes of one file, or why there are none.

        Raises StorageError when the storage itself fails: only a file that is not there, in a folder that is,
        is the image's own fault.
        """
        if not is_safe_path(source):
            return Rejection("unsafe-path", "the path leads out of the image folder")
        return _retrying(lambda: self._read_once(source), f"{self.root}/{source}")

    def _read_once(self, source: str) -> bytes | Rejection:
        try:
            with open(f"{self.root}/{source}", "rb", buffering=0) as file:
                num_bytes = os.fstat(file.fileno()).st_size
                if num_bytes > MAX_IMAGE_BYTES:
                    return Rejection("too-large", f"the file has {num_bytes:,} bytes, more than {MAX_IMAGE_BYTES:,}")
                return file.readall()
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.isdir(self.root):
                raise
            return Rejection("missing", "no such file")
        except IsADirectoryError:
            return Rejection("not-an-image", "a folder, not a file")

    def scan(self) -> list[str]:
        """All regular files below the root as sorted relative paths; links are followed, dotfiles left out."""
        return sorted(_walk(self.root))


@dataclass(frozen=True, slots=True)
class Located:
    """Where the images of a label table are: parallel arrays, one entry per row.

    `store` (int16) is the number of the store, -1 for a row that is in none of them, with `reason` saying why
    (`missing` or `unsafe-path`, empty for a row that was found); `source` is the path relative to its store.
    """

    store: "np.ndarray[tuple[int], np.dtype[np.int16]]"
    source: "np.ndarray[tuple[int], np.dtype[np.object_]]"
    reason: "np.ndarray[tuple[int], np.dtype[np.object_]]"


def open_stores(paths: list[str]) -> list[FolderStore]:
    """Open each path given as `--images`.

    Raises UserError for a path that is not a folder.
    """
    for path in paths:
        if not os.path.isdir(path):
            raise UserError(f"--images {path}: no such folder; give the folder that holds the images")
    return [FolderStore(str(Path(path).absolute())) for path in paths]


def is_safe_path(path: str) -> bool:
    """Whether a relative path stays below the folder it is relative to (links aside)."""
    if not path or "\0" in path or "\\" in path or path.startswith("/"):
        return False
    return ".." not in PurePosixPath(path).parts


def locate(stores: list[FolderStore], ids: "pd.Series[str]") -> Located:
    """Find the image of every id of a label table; the first store that has it wins.

    One store in the GLR2020 layout `a/b/c/<id>.jpg` is recognised by a few ids and needs no scan: its missing
    files are noticed when they are read. Anything else is scanned once, and an id stands for a relative path, a
    file name, or a file name without its extension (if several files fit, the first in sorted order).

    Raises UserError if no image is found at all.
    """
    names = ids.to_numpy(dtype=object)
    safe = _safe_mask(ids)
    if len(stores) == 1 and _is_fanned_out(stores[0], names[safe]):
        source = np.array([f"{i[0]}/{i[1]}/{i[2]}/{i}.jpg" if len(i) > 2 else f"{i}.jpg" for i in names], dtype=object)
        source[~safe] = names[~safe]
        reason = np.where(safe, "", "unsafe-path").astype(object)
        return Located(np.where(safe, 0, -1).astype(np.int16), source, reason)
    store, source = _match_scanned(stores, ids)
    store[~safe] = -1
    source[store < 0] = names[store < 0]
    reason = np.where(safe, np.where(store < 0, "missing", ""), "unsafe-path").astype(object)
    if not (store >= 0).any():
        folders = ", ".join(s.root for s in stores)
        raise UserError(f"no image of the label table was found below {folders}; is --images right?")
    return Located(store, source, reason)


def list_class_folders(stores: list[FolderStore]) -> pd.DataFrame:
    """List collections whose folder names are the labels: columns store (int16), source, landmark_id (str).

    Every regular file below a first-level folder counts, dotfiles and Thumbs.db aside; files beside the folders
    do not. Raises UserError if there is none.
    """
    frames = []
    for number, store in enumerate(stores):
        source = pd.Series(store.scan(), dtype=object)
        source = source[source.str.contains("/", regex=False).astype(bool)]
        frame = pd.DataFrame({"source": source, "landmark_id": source.str.split("/", n=1).str[0]})
        frames.append(frame.assign(store=np.int16(number)))
    listed = pd.concat(frames, ignore_index=True)
    if listed.empty:
        folders = ", ".join(s.root for s in stores)
        raise UserError(f"no class folder with files below {folders}; --labels classes wants <class>/<image>")
    return listed


def strip_extension(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Ids without the extension of an image file, where they carry one."""
    return ids.str.replace(rf"\.(?:{'|'.join(_EXTENSIONS)})$", "", case=False, regex=True)


def _safe_mask(ids: "pd.Series[str]") -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    plain = ids.str.fullmatch(r"[A-Za-z0-9_-]+").to_numpy(dtype=bool, copy=True)
    odd = ids.to_numpy(dtype=object)[~plain]
    plain[~plain] = np.fromiter((is_safe_path(i) for i in odd), dtype=bool, count=len(odd))
    return plain


def _is_fanned_out(store: FolderStore, names: "np.ndarray[tuple[int], np.dtype[np.object_]]") -> bool:
    """Whether any of some ids, spread over the table, lies where GLR2020 has it."""
    probes = names[:: max(1, len(names) // _PROBES)]
    return any(len(i) > 2 and os.path.isfile(f"{store.root}/{i[0]}/{i[1]}/{i[2]}/{i}.jpg") for i in probes)


def _match_scanned(
    stores: list[FolderStore], ids: "pd.Series[str]"
) -> "tuple[np.ndarray[tuple[int], np.dtype[np.int16]], np.ndarray[tuple[int], np.dtype[np.object_]]]":
    """The store (-1 for none) and source of each id, by path, name, then stem."""
    store = np.full(len(ids), -1, dtype=np.int16)
    source = np.empty(len(ids), dtype=object)
    wanted = pd.Index(ids)
    for number, candidate in enumerate(stores):
        paths = pd.Series(candidate.scan(), dtype=object)
        if paths.empty:
            continue
        name = paths.str.rsplit("/", n=1).str[-1]
        for spelling in (paths, name, strip_extension(name)):
            found = pd.Series(paths.to_numpy(), index=spelling.to_numpy())
            found = found[~found.index.duplicated()]
            position = found.index.get_indexer(wanted)
            fresh = (position >= 0) & (store < 0)
            store[fresh] = number
            source[fresh] = found.to_numpy()[position[fresh]]
    return store, source


def _walk(root: str) -> Iterator[str]:
    """Relative paths of regular files below `root`, each real folder visited once (links may form a circle)."""
    seen = {os.path.realpath(root)}
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(f"{root}/{prefix}") as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _IGNORED_NAMES:
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in seen:
                        seen.add(real)
                        pending.append(f"{prefix}{entry.name}/")
                elif entry.is_file():
                    yield prefix + entry.name


def _retrying(read: Callable[[], bytes | Rejection], what: str) -> bytes | Rejection:
    """Call `read`, three times more when the storage fails, then give up with StorageError."""
    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return read()
        except OSError as error:
            if attempt == _ATTEMPTS:
                raise StorageError(
                    f"{what}: {error.strerror or error}; is the storage there? run again to go on"
                ) from error
            time.sleep(pause)
            pause *= 4
    raise AssertionError("unreachable")
