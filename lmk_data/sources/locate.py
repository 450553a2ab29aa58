"""Find the image of each row: match label tables and class folders with the members of the stores."""

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmk_data.errors import UserError
from lmk_data.sources.archives import RAW
from lmk_data.sources.labels import strip_extension
from lmk_data.sources.members import MEMBER_COLUMNS, Ignored, Members
from lmk_data.sources.stores import FolderStore, Store
from lmk_data.system.storage import is_url
from lmk_data.system.terminal import notice
from lmk_data.typed_text import normal_series, normal_text, shown

_PROBES = 256
_REMOTE_PROBES = 16
NOT_LISTED = "files in no row of the label table"


@dataclass(frozen=True)
class Located:
    """A label table with the place of each image: `MEMBER_COLUMNS` and `reason`, empty for an image that was found.

    `store` is -1 for a row that is in no store (`missing`) or must not be read (`unsafe-path`). `ignored` says which
    files of the sources are no images of the table; None if nothing was scanned. Of rows that name the same file, such
    as `a` and `a.jpg`, the first is there, and the others are `repeated`; none if they have two labels: `conflicting`.
    """

    frame: pd.DataFrame
    ignored: list[Ignored] | None
    repeated: int
    conflicting: int


def is_safe_path(path: str) -> bool:
    """Return whether a relative path stays below its folder; symbolic links are not looked at."""
    if not path or "\0" in path or "\\" in path or path.startswith("/"):
        return False
    return ".." not in path or ".." not in path.split("/")


def locate(frame: pd.DataFrame, stores: Sequence[Store], read_members: Callable[[], Members]) -> Located:
    """Find the image of every row of a label table by its `file` or, if there is no such column, its `id`.

    `read_members` scans the stores once, and a name matches, in this order: a relative path, a file name, a path
    without its extension, a file name without its extension; in a single folder in the GLR2020 layout, first of all
    the place `a/b/c/<id>.jpg`. A path may begin with (the end of) the path of its store. If several files match, the
    first in order of stores and names is taken. Names are compared in normal form.

    A folder in the GLR2020 layout behind a URL is not scanned if the few ids that are tried are at their places.
    Missing files of such a layout are noticed when they are read. Raises UserError if no image is found at all.
    """
    ids = frame["id"]
    wanted = normal_series(frame.get("file", ids))
    fan_out = np.full(len(frame), None, dtype=object)
    if len(stores) == 1 and isinstance(stores[0], FolderStore):
        fan_out, is_complete = _glr2020_places(stores[0], wanted)
        if is_complete:
            files = np.arange(len(frame)) if wanted is strip_extension(wanted) else pd.factorize(fan_out)[0]
            once = _Once.of(frame, files.astype(np.int64))
            return Located(once.take(_unscanned(frame, fan_out)), None, once.repeated, once.conflicting)
    members = _unsafe_last(read_members())
    found = _match(wanted, fan_out, members.frame["source"], stores)
    places = _take(members.frame, found.position)
    missing = found.position < 0
    source = places["source"].to_numpy(dtype=object, copy=True)
    source[missing] = ids.to_numpy(dtype=object)[missing]
    unsafe = (missing & ~safe_mask(wanted)) | ~safe_mask(pd.Series(source, dtype=object))
    at_place = missing & ~unsafe & (fan_out != None)  # noqa: E711
    source[at_place] = fan_out[at_place]
    places["source"] = source
    places["reason"] = np.where(unsafe, "unsafe-path", np.where(missing & ~at_place, "missing", "")).astype(object)
    places["store"] = np.where(at_place, 0, np.where(missing | unsafe, -1, places["store"])).astype(np.int16)
    if missing.all():
        sources = members.frame["source"]
        there = f"a file is {shown(str(sources.iloc[0]))}" if len(sources) else "and there is no file"
        raise UserError(none_found(str(wanted.iloc[0]), there, stores))
    found.notify()
    once = _Once.of(frame, found.position)
    unlisted = np.ones(len(members.frame), dtype=bool)
    unlisted[found.position[~missing]] = False
    ignored = [*members.ignored, *ignored_members(NOT_LISTED, members.frame["source"][unlisted])]
    located = pd.concat([frame, places.set_index(frame.index)], axis=1)
    return Located(once.take(located), ignored, once.repeated, once.conflicting)


def _unsafe_last(members: Members) -> Members:
    """Return members so that one whose name is not to be read is taken only where no other matches."""
    safe = safe_mask(members.frame["source"])
    if safe.all():
        return members
    return replace(members, frame=pd.concat([members.frame[safe], members.frame[~safe]], ignore_index=True))


@dataclass(frozen=True)
class _Once:
    """Which rows are kept so that each file is one sample, bool [N], and how many others there are of each kind."""

    kept: NDArray[np.bool_]
    repeated: int
    conflicting: int

    @classmethod
    def of(cls, frame: pd.DataFrame, files: NDArray[np.int64]) -> "_Once":
        """Choose rows of a label table, each of which has the number of a file, -1 for none; name one on stderr."""
        kept = np.ones(len(frame), dtype=bool)
        found = files >= 0
        if not found.any() or np.bincount(files[found]).max() < 2:
            return cls(kept, 0, 0)
        shared = pd.Series(files).duplicated(keep=False).to_numpy() & found
        rows = frame[shared].assign(row=np.flatnonzero(shared), shared_file=files[shared])
        later = rows["shared_file"].duplicated().to_numpy()
        conflicting = (rows.groupby("shared_file")["landmark_id"].transform("nunique") > 1).to_numpy()
        kept[rows["row"][later | conflicting]] = False
        example = rows[rows["shared_file"] == rows["shared_file"].iloc[0]]["id"].head(2)
        names = " and ".join(shown(str(name)) for name in example)
        notice(f"{len(rows):,} ids name files that other ids name too, such as {names}; each file is one image at most")
        return cls(kept, int((later & ~conflicting).sum()), int(conflicting.sum()))

    def take(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a table that are kept."""
        return frame if self.kept.all() else frame[self.kept].reset_index(drop=True)


def none_found(wanted: str, there: str, stores: Sequence[Store]) -> str:
    """Return the message that no image of a label table was found: one of its ids, beside what is there."""
    return (
        f"no image of the label table was found below {store_names(stores)}; is --images right? "
        f"An id is {shown(wanted)}, {there}"
    )


def _unscanned(frame: pd.DataFrame, places: NDArray[np.object_]) -> pd.DataFrame:
    """Return a label table with the places that the GLR2020 layout gives its ids; None is an unsafe one."""
    safe = places != None  # noqa: E711
    located = frame.assign(store=np.where(safe, 0, -1).astype(np.int16), source=np.where(safe, places, frame["id"]))
    located = located.assign(offset=np.int64(-1), num_bytes=np.int64(-1), method=np.int8(RAW), crc32=np.uint32(0))
    return located.assign(reason=np.where(safe, "", "unsafe-path").astype(object))


def ignored_members(rule: str, sources: "pd.Series[str]") -> list[Ignored]:
    """Return what a rule leaves out, as one entry, or none if these are no files."""
    return [Ignored(rule, len(sources), str(sources.iloc[0]))] if len(sources) else []


def store_names(stores: Sequence[Store]) -> str:
    """Return the first three stores by name, for a message."""
    names = [store.location for store in stores[:3]]
    return ", ".join(names) + (f" and {len(stores) - 3} more" if len(stores) > 3 else "")


def safe_mask(paths: "pd.Series[str]") -> NDArray[np.bool_]:
    """Return which paths are safe, bool [N]."""
    plain: NDArray[np.bool_] = paths.str.fullmatch(r"[A-Za-z0-9_-]+").to_numpy(dtype=bool, copy=True)
    odd = paths.to_numpy(dtype=object)[~plain]
    plain[~plain] = np.fromiter((is_safe_path(i) for i in odd), dtype=bool, count=len(odd))
    return plain


def _glr2020_places(store: FolderStore, wanted: "pd.Series[str]") -> tuple[NDArray[np.object_], bool]:
    """Return the place `a/b/c/<id>.jpg` of each id, None for one that is unsafe, and whether a scan is superfluous.

    Every place is None unless at least one of up to 256 ids (16 for URLs), spread over the table, is there.
    """
    ids = strip_extension(wanted)
    names = ids.to_numpy(dtype=object)
    places = np.array([f"{i[0]}/{i[1]}/{i[2]}/{i}.jpg" if len(i) > 2 else f"{i}.jpg" for i in names], dtype=object)
    safe = safe_mask(ids)
    places[~safe] = None
    is_remote = is_url(store.location)
    probed = np.flatnonzero(safe)
    probes = probed[:: max(1, math.ceil(len(probed) / (_REMOTE_PROBES if is_remote else _PROBES)))]
    there = [len(names[i]) > 2 and store.folder.is_file(places[i]) for i in probes]
    if not any(there):
        return np.full(len(names), None, dtype=object), False
    return places, is_remote and all(there) and not _names_other_file(wanted, ids).any()


def _names_other_file(wanted: "pd.Series[str]", bare: "pd.Series[str]") -> NDArray[np.bool_]:
    """Return which rows name a file with another extension than the .jpg of the GLR2020 layout, bool [N]."""
    if wanted is bare:
        return np.zeros(len(wanted), dtype=bool)
    other: NDArray[np.bool_] = ((wanted != bare) & (wanted != bare + ".jpg")).to_numpy(dtype=bool)
    return other


@dataclass(frozen=True)
class _Matches:
    """The member of each row, int64 [N], -1 for none; how many matches are worth a word, and one of them.

    A row that names another extension gives way to one that names the file itself, and then has no member.
    """

    position: NDArray[np.int64]
    other_extension: tuple[int, str]
    ambiguous: tuple[int, str]

    def notify(self) -> None:
        """Name on stderr what a label table may not have meant."""
        count, example = self.other_extension
        if count:
            notice(f"{count:,} files that the label table names are there with another extension, such as {example}")
        count, example = self.ambiguous
        if count:
            notice(f"{count:,} ids match several files, of which the first is taken, such as {example}")


def _match(
    wanted: "pd.Series[str]", fan_out: NDArray[np.object_], sources: "pd.Series[str]", stores: Sequence[Store]
) -> _Matches:
    """Return the member of each row of a label table, by the spellings that `locate` describes."""
    position = np.full(len(wanted), -1, dtype=np.int64)
    path = normal_series(sources)
    bare = strip_extension(wanted)

    def name() -> "pd.Series[str]":
        return path.str.rsplit("/", n=1).str[-1]

    has_folders = bool(wanted.str.contains("/", regex=False).any())
    at_place = pd.Series(fan_out, index=wanted.index, dtype=object)
    spellings: list[tuple[pd.Series[str], Callable[[], pd.Series[str]], bool]] = [
        (at_place.where(~_names_other_file(wanted, bare), None), lambda: path, False),
        (wanted, lambda: path, False),
        (wanted, name, False),
    ]
    if has_folders:
        below = _below_stores(wanted, stores)
        spellings += [(below, lambda: path, False), (bare, lambda: strip_extension(path), True)]
        spellings += [(strip_extension(below), lambda: strip_extension(path), True)]
    spellings += [(at_place, lambda: path, True), (bare, lambda: strip_extension(name()), True)]
    another, several = _Examples(), _Examples()
    is_other = np.zeros(len(wanted), dtype=bool)  # names another extension than its file has
    for texts, spell, without_extension in spellings:
        if (position >= 0).all():
            break
        index = pd.Index(spell().to_numpy(dtype=object))
        first = ~index.duplicated()
        matches = index[first].get_indexer(pd.Index(texts.to_numpy(dtype=object)))
        new = (matches >= 0) & (position < 0)
        position[new] = np.flatnonzero(first)[matches[new]]
        if not first.all():
            several.add(new & texts.isin(index[~first]).to_numpy(), wanted, sources, position)
        if without_extension:
            is_other |= new & (wanted != bare).to_numpy(dtype=bool)
    position[is_other & np.isin(position, position[~is_other])] = -1
    another.add(is_other & (position >= 0), wanted, sources, position)
    return _Matches(position, another.found, several.found)


class _Examples:
    """A number of rows, and the first of them with its file."""

    def __init__(self) -> None:
        self.found = (0, "")

    def add(
        self, rows: NDArray[np.bool_], wanted: "pd.Series[str]", sources: "pd.Series[str]", at: NDArray[np.int64]
    ) -> None:
        count, example = self.found
        if not rows.any():
            return
        first = int(np.flatnonzero(rows)[0])
        example = example or f"{shown(str(wanted.iloc[first]))}: {shown(str(sources.iloc[at[first]]))}"
        self.found = (count + int(rows.sum()), example)


def _below_stores(paths: "pd.Series[str]", stores: Sequence[Store]) -> "pd.Series[str]":
    """Return paths without the path of a store, or the end of one, if they begin with it."""
    beginnings = set()
    for store in stores:
        locations = (
            {store.location, os.path.realpath(store.location)} if "://" not in store.location else {store.location}
        )
        for location in locations:
            parts = location.strip("/").split("/")
            ends = ["/".join(parts[number:]) for number in range(len(parts))]
            beginnings |= {normal_text(re.sub("/+", "/", end)) + "/" for end in (location, *ends)}
    below = paths
    for beginning in sorted(beginnings, key=len, reverse=True):
        begins = (below == paths) & paths.str.startswith(beginning)
        below = below.where(~begins, paths.str[len(beginning) :])
    return below


def _take(members: pd.DataFrame, position: NDArray[np.int64]) -> pd.DataFrame:
    """Return the member at each position, int64 [N]; a row at position -1 is to be overwritten by the caller."""
    if members.empty:
        nothing = {"store": np.int16(-1), "source": "", "offset": np.int64(-1), "num_bytes": np.int64(-1)}
        place = {"method": np.int8(RAW), "crc32": np.uint32(0)}
        return pd.DataFrame({**nothing, **place}, index=range(len(position)))[MEMBER_COLUMNS]
    return members[MEMBER_COLUMNS].take(np.maximum(position, 0)).reset_index(drop=True)
