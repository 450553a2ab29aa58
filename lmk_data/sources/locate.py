"""Find the image of each row: match label tables and class folders with the members of the stores."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from lmk_data.errors import UserError
from lmk_data.sources.archives import RAW
from lmk_data.sources.labels import CLASS_FOLDERS, LabelTable, label_table, strip_extension, typed_labels
from lmk_data.sources.members import MEMBER_COLUMNS
from lmk_data.sources.stores import FolderStore, Store

_PROBES = 256
_REMOTE_PROBES = 16


@dataclass(frozen=True)
class Located:
    """A label table with the place of each image: `MEMBER_COLUMNS` and `reason`, empty for an image that was found.

    `store` is -1 for a row that is in no store (`missing`) or must not be read (`unsafe-path`).
    `num_ignored` counts the members that no row names; None if nothing was scanned.
    """

    frame: pd.DataFrame
    num_ignored: int | None


def is_safe_path(path: str) -> bool:
    """Return whether a relative path stays below its folder; symbolic links are not looked at."""
    if not path or "\0" in path or "\\" in path or path.startswith("/"):
        return False
    return ".." not in PurePosixPath(path).parts


def locate(frame: pd.DataFrame, stores: Sequence[Store], read_members: Callable[[], pd.DataFrame]) -> Located:
    """Find the image of every row of a label table by its `id`.

    A single folder in the GLR2020 layout `a/b/c/<id>.jpg` is recognised by probing a few ids and needs no scan;
    missing files are noticed when they are read. Otherwise `read_members` scans the stores once, and an id matches a
    relative path, else a file name, else a file name without its extension. If several files match, the first in
    order of stores and names is taken.

    Raises UserError if no image is found at all.
    """
    ids = frame["id"]
    names = ids.to_numpy(dtype=object)
    safe = _safe_mask(ids)
    if len(stores) == 1 and isinstance(stores[0], FolderStore) and _has_glr2020_layout(stores[0], names[safe]):
        source = np.array([f"{i[0]}/{i[1]}/{i[2]}/{i}.jpg" if len(i) > 2 else f"{i}.jpg" for i in names], dtype=object)
        source[~safe] = names[~safe]
        places = frame.assign(store=np.where(safe, 0, -1).astype(np.int16), source=source, offset=np.int64(-1))
        places = places.assign(num_bytes=np.int64(-1), method=np.int8(RAW), crc32=np.uint32(0))
        return Located(places.assign(reason=np.where(safe, "", "unsafe-path").astype(object)), None)
    members = read_members()
    position = _match(ids, members["source"])
    places = _take(members, position)
    missing = position < 0
    places.loc[missing, "source"] = names[missing]
    unsafe = ~safe | ~_safe_mask(places["source"])
    places["reason"] = np.where(unsafe, "unsafe-path", np.where(missing, "missing", "")).astype(object)
    places.loc[missing | unsafe, "store"] = np.int16(-1)
    if not (places["store"] >= 0).any():
        raise no_image_found(stores)
    num_ignored = len(members) - len(np.unique(position[~missing]))
    return Located(pd.concat([frame, places.set_index(frame.index)], axis=1), num_ignored)


def list_class_folders(stores: Sequence[Store], members: pd.DataFrame) -> Located:
    """List class folders, whose names are the labels: `MEMBER_COLUMNS`, `landmark_id` (str) and `reason`.

    Every member below a first-level folder counts; members outside these folders are ignored. Raises UserError if
    there is no class folder with files.
    """
    inside = members[members["source"].str.contains("/", regex=False).astype(bool)].reset_index(drop=True)
    if inside.empty:
        raise UserError(
            f"no class folder with files below {_store_names(stores)}; --labels classes needs <class>/<image>"
        )
    unsafe = ~_safe_mask(inside["source"])
    listed = inside.assign(landmark_id=inside["source"].str.split("/", n=1).str[0])
    listed["reason"] = np.where(unsafe, "unsafe-path", "").astype(object)
    listed.loc[unsafe, "store"] = np.int16(-1)
    return Located(listed, len(members) - len(inside))


def no_image_found(stores: Sequence[Store]) -> UserError:
    """Return the error for stores that hold none of the listed images."""
    return UserError(f"no image of the label table was found below {_store_names(stores)}; is --images right?")


def _store_names(stores: Sequence[Store]) -> str:
    """Return the first three stores by name, for a message."""
    names = [store.location for store in stores[:3]]
    return ", ".join(names) + (f" and {len(stores) - 3} more" if len(stores) > 3 else "")


def _safe_mask(paths: "pd.Series[str]") -> NDArray[np.bool_]:
    """Return which paths are safe, bool [N]."""
    plain: NDArray[np.bool_] = paths.str.fullmatch(r"[A-Za-z0-9_-]+").to_numpy(dtype=bool, copy=True)
    odd = paths.to_numpy(dtype=object)[~plain]
    plain[~plain] = np.fromiter((is_safe_path(i) for i in odd), dtype=bool, count=len(odd))
    return plain


def _has_glr2020_layout(store: FolderStore, names: NDArray[np.object_]) -> bool:
    """Return whether any of up to 256 ids (16 for URLs), spread over the table, is at its place in GLR2020."""
    num_probes = _REMOTE_PROBES if "://" in store.location else _PROBES
    probes = names[:: max(1, len(names) // num_probes)]
    return any(len(i) > 2 and store.folder.is_file(f"{i[0]}/{i[1]}/{i[2]}/{i}.jpg") for i in probes)


def _match(ids: "pd.Series[str]", sources: "pd.Series[str]") -> NDArray[np.int64]:
    """Return the position of each id's member, int64 [N], -1 for none: by path, path without extension, name, stem."""
    position = np.full(len(ids), -1, dtype=np.int64)
    wanted = pd.Index(ids.to_numpy(dtype=object))
    name = sources.str.rsplit("/", n=1).str[-1]
    spellings: list[Callable[[], pd.Series[str]]] = [lambda: name, lambda: strip_extension(name)]
    if ids.str.contains("/", regex=False).any():  # reading a label table drops the extensions of its ids
        spellings.insert(0, lambda: strip_extension(sources))
    for spell in (lambda: sources, *spellings):
        spelling = spell()
        index = pd.Index(spelling.to_numpy(dtype=object))
        first = ~index.duplicated()
        matches = index[first].get_indexer(wanted)
        new = (matches >= 0) & (position < 0)
        position[new] = np.flatnonzero(first)[matches[new]]
        if (position >= 0).all():
            break
    return position


def _take(members: pd.DataFrame, position: NDArray[np.int64]) -> pd.DataFrame:
    """Return the member at each position, int64 [N]; a row at position -1 is to be overwritten by the caller."""
    if members.empty:
        nothing = {"store": np.int16(-1), "source": "", "offset": np.int64(-1), "num_bytes": np.int64(-1)}
        place = {"method": np.int8(RAW), "crc32": np.uint32(0)}
        return pd.DataFrame({**nothing, **place}, index=range(len(position)))[MEMBER_COLUMNS]
    return members[MEMBER_COLUMNS].take(np.maximum(position, 0)).reset_index(drop=True)


def read_class_folders(stores: Sequence[Store], members: pd.DataFrame) -> tuple[LabelTable, int]:
    """Read class folders as a label table: the id is the relative path, the label the name of the first folder.

    The same path in several stores is several images; the ids of the later ones start with the name of their store.
    Also returns the number of members outside class folders, which are ignored.
    """
    located = list_class_folders(stores, members)
    frame = located.frame
    frame.insert(0, "id", frame["source"])
    stems = [store.location.rstrip("/").rsplit("/", 1)[-1] for store in stores]
    for prefixes in (stems, [str(number) for number in range(len(stores))]):
        again = frame["id"].duplicated().to_numpy()
        prefix = np.array(prefixes, dtype=object)[frame["store"].to_numpy()]
        frame["id"] = np.where(again, prefix + "/" + frame["id"].to_numpy(dtype=object), frame["id"])
    listing = "\n".join(frame["landmark_id"].astype(str) + "\t" + frame["id"]).encode()
    labels = pa.chunked_array([pa.array(frame["landmark_id"], pa.string())])
    frame["landmark_id"] = typed_labels(labels).to_pandas()
    table = label_table(frame, CLASS_FOLDERS, "class-folders", hashlib.sha256(listing).hexdigest())
    assert located.num_ignored is not None
    return table, located.num_ignored
