"""Image stores: folders, tars and zips, local or behind URLs; read one image from them."""

import errno
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lmk_data.dataset.format import Rejection
from lmk_data.errors import TooLargeError, UserError
from lmk_data.formats import MAX_IMAGE_BYTES, MAX_ZIPPED_IMAGE_BYTES
from lmk_data.leftovers import LeftOut, is_leftover, left_out
from lmk_data.sources.archives import RAW, ArchiveKind, Place, archive_kind, bytes_to_read, unpack
from lmk_data.system.storage import (
    Folder,
    LocalFolder,
    expand_glob,
    is_url,
    open_folder,
    path_within,
    retrying,
    split_location,
)

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Store(Protocol):
    """A place that holds images. `source` names an image: a relative path with forward slashes."""

    @property
    def folder(self) -> Folder:
        """The folder of images, or the folder that contains the archive."""

    @property
    def location(self) -> str:
        """The path or URL of the store."""

    def read(self, source: str, place: Place, max_bytes: int = MAX_IMAGE_BYTES) -> bytes | Rejection:
        """Return the bytes of one image, or the reason why there are none; only archives use `place`.

        An image of more than `max_bytes` is rejected without being read, and so is one that is missing from a store
        that exists. Raises StorageError if the storage fails.
        """


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A folder of image files; `others` are files and folders in it, by relative paths, that are not members."""

    folder: Folder
    others: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        """The path or URL of the folder."""
        return self.folder.root

    def read(self, source: str, place: Place, max_bytes: int = MAX_IMAGE_BYTES) -> bytes | Rejection:
        """Return the bytes of one image, or the reason why there are none. Raises StorageError."""
        if place.num_bytes > max_bytes:
            return _too_large(max_bytes)
        return retrying(lambda: self._read_once(source, max_bytes), self.folder.location(source))

    def members(self, left_out: LeftOut) -> Iterator[tuple[str, int]]:
        """Yield the path and the size in bytes (-1 if a listing does not say) of every file, in no particular order.

        What is neither a member nor one of `others` is appended to `left_out`.
        """
        found: LeftOut = []
        yield from (member for member in self.folder.walk(found) if not self._is_other(member[0]))
        left_out += (entry for entry in found if not self._is_other(entry[0]))

    def _is_other(self, name: str) -> bool:
        return any(name == other or name.startswith(f"{other}/") for other in self.others)

    def _read_once(self, source: str, max_bytes: int) -> bytes | Rejection:
        try:
            return self.folder.read(source, max_bytes)
        except TooLargeError:
            return _too_large(max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            if not self._exists():
                raise
            return Rejection("missing", "no such file")
        except IsADirectoryError:
            return Rejection("not-an-image", "a folder, not a file")
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return Rejection("missing", "no such file: its name is too long")
            if error.errno == errno.EINVAL:
                return Rejection("not-an-image", "not a regular file")
            raise

    def _exists(self) -> bool:
        """Return whether the folder exists and is not empty: an unmounted disk leaves an empty folder behind."""
        if isinstance(self.folder, LocalFolder):
            try:
                with os.scandir(self.folder.root) as entries:
                    return next(entries, None) is not None
            except FileNotFoundError:
                return False
        return self.folder.root.startswith(("http://", "https://")) or self.folder.exists("")


@dataclass(frozen=True, slots=True)
class ArchiveStore:
    """A tar or a zip whose members are read by their offsets; nothing is extracted."""

    folder: Folder
    name: str
    kind: ArchiveKind

    @property
    def location(self) -> str:
        """The path or URL of the archive."""
        return self.folder.location(self.name)

    def read(self, source: str, place: Place, max_bytes: int = MAX_IMAGE_BYTES) -> bytes | Rejection:
        """Return the bytes of one member, or the reason why there are none. Raises StorageError."""
        if place.method != RAW:
            max_bytes = min(max_bytes, MAX_ZIPPED_IMAGE_BYTES)
        if place.num_bytes > max_bytes:
            return _too_large(max_bytes)
        return retrying(lambda: self._read_once(place, max_bytes), f"{self.location}/{source}")

    def _read_once(self, place: Place, max_bytes: int) -> bytes | Rejection:
        content = unpack(self.folder.read_range(self.name, place.offset, bytes_to_read(place)), place, max_bytes)
        if isinstance(content, int):
            num_bytes = bytes_to_read(replace(place, num_bytes=content))
            content = unpack(self.folder.read_range(self.name, place.offset, num_bytes), place, max_bytes)
            assert not isinstance(content, int)
        return content


def open_stores(paths: Sequence[str], out: Folder | None = None) -> list[Store]:
    """Open each path given as `--images`: a folder, a tar, a zip, a glob of these, or an fsspec URL of one.

    A folder that contains tars and no folders stands for these tars, and for the other files in it; what
    `leftovers.left_out` names and `out`, the folder that is written to, are ignored. Raises UserError for anything
    else.
    """
    stores: list[Store] = []
    for path in paths:
        for match in _expand(path):
            stores += _open(match, out)
    return stores


def _expand(path: str) -> list[str]:
    """Return the paths that match a glob; a path that is none, or that exists, stands for itself."""
    if not glob.has_magic(path) or (not is_url(path) and os.path.exists(path)):
        return [path]
    matches = [match for match in expand_glob(path) if not is_leftover(match.rstrip("/").rsplit("/", 1)[-1])]
    if not matches:
        raise UserError(f"--images {path}: nothing matches this pattern; correct it")
    return matches


def _open(path: str, out: Folder | None) -> list[Store]:
    """Return the store at a path, or one store for each tar of a folder of tars."""
    folder = open_folder(path)
    if isinstance(folder, LocalFolder):
        if os.path.isfile(folder.root):
            return [_open_archive(path, *split_location(path))]
        if not os.path.isdir(folder.root):
            raise UserError(f"--images {path}: no such folder or archive; name the one that contains the images")
    elif path.endswith((".tar", ".zip")):
        return [_open_archive(path, *split_location(path))]
    files = sorted(name for name in retrying(folder.files, folder.root) if not left_out(name))
    tars = [name for name in files if name.endswith(".tar")]
    inside = path_within(out, folder) if out is not None else None
    others = (inside,) if inside else ()
    if not tars or any(name != inside and not left_out(name) for name in folder.folders()):
        return [FolderStore(folder, others)]
    stores: list[Store] = [_open_archive(folder.location(name), folder, name) for name in tars]
    return stores if len(files) == len(tars) else [*stores, FolderStore(folder, (*others, *tars))]


def _open_archive(path: str, folder: Folder, name: str) -> ArchiveStore:
    """Return the archive of this name in a folder; `path` is what an error calls it."""
    try:
        head = folder.read_range(name, 0, 512)
    except OSError as error:
        raise UserError(f"--images {path}: cannot be read: {error.strerror or error}") from error
    kind = archive_kind(head)
    if kind is None:
        compressed = "a compressed archive; decompress it to a plain tar"
        other = "neither a folder, a tar nor a zip; name the folder or the archive that contains the images"
        raise UserError(f"--images {path}: {compressed if head.startswith(_COMPRESSED) else other}")
    return ArchiveStore(folder, name, kind)


def _too_large(max_bytes: int) -> Rejection:
    return Rejection("too-large", f"the file has more than {max_bytes:,} bytes")
