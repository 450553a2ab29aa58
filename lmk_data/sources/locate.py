"""Which image of which store belongs to which row: label tables and class folders meet the members of the stores."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from lmk_data.errors import UserError
from lmk_data.sources.archives import RAW
from lmk_data.sources.labels import CLASS_FOLDERS, LabelTable, label_table, strip_extension, typed_labels
from lmk_data.sources.members import MEMBER_COLUMNS
from lmk_data.sources.stores import FolderStore, Store

_PROBES = 256
_REMOTE_PROBES = 16
Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Located:
    """A table with where each of its images lies: `MEMBER_COLUMNS`, and `reason` (empty for an image that was found).

    `store` is -1 for a row that is in none of the stores (`missing`) or must not be read (`unsafe-path`).
    `num_ignored` counts the members that no row names; None where nothing was scanned.
    """

    frame: pd.DataFrame
    num_ignored: int | None


def is_safe_path(path: str) -> bool:
    """Whether a relative path stays below the folder it is relative to (links aside)."""
    if not path or "\0" in path or "\\" in path or path.startswith("/"):
        return False
    return ".." not in PurePosixPath(path).parts


def locate(frame: pd.DataFrame, stores: Sequence[Store], read_members: Callable[[], pd.DataFrame]) -> Located:
    """Find the image of every row of a label table by its `id`.

    One folder in the GLR2020 layout `a/b/c/<id>.jpg` is recognised by a few ids and needs no scan: its missing
    files are noticed when they are read. For anything else `read_members` scans the stores once, and an id stands
    for a relative path, else a file name, else a file name without its extension (if several files fit, the first
    in order of stores and names).

    Raises UserError if no image is found at all.
    """
    ids = frame["id"]
    names = ids.to_numpy(dtype=object)
    safe = _safe_mask(ids)
    if len(stores) == 1 and isinstance(stores[0], FolderStore) and _is_fanned_out(stores[0], names[safe]):
        source = np.array([f"{i[0]}/{i[1]}/{i[2]}/{i}.jpg" if len(i) > 2 else f"{i}.jpg" for i in names], dtype=object)
        source[~safe] = names[~safe]
        found = frame.assign(store=np.where(safe, 0, -1).astype(np.int16), source=source, offset=np.int64(-1))
        found = found.assign(num_bytes=np.int64(-1), method=np.int8(RAW), crc32=np.uint32(0))
        return Located(found.assign(reason=np.where(safe, "", "unsafe-path").astype(object)), None)
    members = read_members()
    position = _match(ids, members["source"])
    found = _taken(members, position)
    lost = position < 0
    found.loc[lost, "source"] = names[lost]
    unsafe = ~safe | ~_safe_mask(found["source"])
    found["reason"] = np.where(unsafe, "unsafe-path", np.where(lost, "missing", "")).astype(object)
    found.loc[lost | unsafe, "store"] = np.int16(-1)
    if not (found["store"] >= 0).any():
        raise UserError(f"no image of the label table was found below {shown(stores)}; is --images right?")
    num_ignored = len(members) - len(np.unique(position[~lost]))
    return Located(pd.concat([frame, found.set_index(frame.index)], axis=1), num_ignored)


def list_class_folders(stores: Sequence[Store], members: pd.DataFrame) -> Located:
    """List collections whose folder names are the labels: `MEMBER_COLUMNS`, `landmark_id` (str) and `reason`.

    Every member below a first-level folder counts; members beside the folders do not. Raises UserError if there
    is none.
    """
    inside = members[members["source"].str.contains("/", regex=False).astype(bool)].reset_index(drop=True)
    if inside.empty:
        raise UserError(f"no class folder with files below {shown(stores)}; --labels classes wants <class>/<image>")
    unsafe = ~_safe_mask(inside["source"])
    listed = inside.assign(landmark_id=inside["source"].str.split("/", n=1).str[0])
    listed["reason"] = np.where(unsafe, "unsafe-path", "").astype(object)
    listed.loc[unsafe, "store"] = np.int16(-1)
    return Located(listed, len(members) - len(inside))


def shown(stores: Sequence[Store]) -> str:
    """The first few stores, for a message."""
    names = [store.location for store in stores[:3]]
    return ", ".join(names) + (f" and {len(stores) - 3} more" if len(stores) > 3 else "")


def _safe_mask(paths: "pd.Series[str]") -> Bools:
    plain: Bools = paths.str.fullmatch(r"[A-Za-z0-9_-]+").to_numpy(dtype=bool, copy=True)
    odd = paths.to_numpy(dtype=object)[~plain]
    plain[~plain] = np.fromiter((is_safe_path(i) for i in odd), dtype=bool, count=len(odd))
    return plain


def _is_fanned_out(store: FolderStore, names: "np.ndarray[tuple[int], np.dtype[np.object_]]") -> bool:
    """Whether any of some ids, spread over the table, lies where GLR2020 has it."""
    num_probes = _REMOTE_PROBES if "://" in store.location else _PROBES
    probes = names[:: max(1, len(names) // num_probes)]
    return any(len(i) > 2 and store.folder.is_file(f"{i[0]}/{i[1]}/{i[2]}/{i}.jpg") for i in probes)


def _match(ids: "pd.Series[str]", sources: "pd.Series[str]") -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """The number of each id's member by path, path without extension, name, then stem; -1 for none."""
    position = np.full(len(ids), -1, dtype=np.int64)
    wanted = pd.Index(ids.to_numpy(dtype=object))
    name = sources.str.rsplit("/", n=1).str[-1]
    spellings: list[Callable[[], pd.Series[str]]] = [lambda: name, lambda: strip_extension(name)]
    if ids.str.contains("/", regex=False).any():  # label tables drop the extensions of their ids
        spellings.insert(0, lambda: strip_extension(sources))
    for spell in (lambda: sources, *spellings):
        spelling = spell()
        index = pd.Index(spelling.to_numpy(dtype=object))
        first = ~index.duplicated()
        found = index[first].get_indexer(wanted)
        fresh = (found >= 0) & (position < 0)
        position[fresh] = np.flatnonzero(first)[found[fresh]]
        if (position >= 0).all():
            break
    return position


def _taken(members: pd.DataFrame, position: Any) -> pd.DataFrame:
    """The rows of members at each position; store -1 and no place where the position is -1."""
    if members.empty:
        nothing = {"store": np.int16(-1), "source": "", "offset": np.int64(-1), "num_bytes": np.int64(-1)}
        place = {"method": np.int8(RAW), "crc32": np.uint32(0)}
        return pd.DataFrame({**nothing, **place}, index=range(len(position)))[MEMBER_COLUMNS]
    return members[MEMBER_COLUMNS].take(np.maximum(position, 0)).reset_index(drop=True)


def read_class_folders(stores: Sequence[Store], members: pd.DataFrame) -> tuple[LabelTable, int]:
    """List class folders as a label table: the id is the relative path, the label the first folder's name.

    A path that several stores hold is several images; the later ones' ids begin with the name of their store.
    Also returns the number of members beside the folders, which do not count.
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
