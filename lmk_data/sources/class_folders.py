"""Class folders: the names of folders are the labels of the pictures in them."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lmk_data.errors import UserError
from lmk_data.leftovers import PICTURES_OUTSIDE
from lmk_data.sources.labels import CLASS_FOLDERS, LabelTable, label_table, strip_extension, typed_labels
from lmk_data.sources.locate import ignored_members, safe_mask, store_names
from lmk_data.sources.members import Ignored, Members
from lmk_data.sources.stores import Store
from lmk_data.system.terminal import notice
from lmk_data.typed_text import chunked, joined_spellings, normal_form, shown

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
OUTSIDE = "other files outside the class folders"


def read_class_folders(
    stores: Sequence[Store], members: Members, level: int | None = None
) -> tuple[LabelTable, list[Ignored]]:
    """Read class folders as a label table: the id is the relative path, the label the folder at `level` in it.

    Every member below a class folder counts. The same path in several stores is several images; the ids of the later
    ones start with the name of their store. Labels are in normal form. Also returns what is ignored, which includes
    members outside class folders. Raises UserError if there is no class folder with files.

    Args:
        stores: The stores.
        members: What is in them.
        level: 1 for the first folders below a store; by default 1, or the first level that has several folders or
            pictures, or one more where the folders are called train, val and test.
    """
    sources = members.frame["source"]
    level = level or _class_level(sources)
    inside = (sources.str.count("/") >= level).to_numpy(dtype=bool)
    frame = members.frame[inside].reset_index(drop=True)
    if frame.empty:
        needed = "/".join(["<folder>"] * (level - 1) + ["<class>", "<image>"])
        raise UserError(f"no class folder with files below {store_names(stores)}; --labels classes needs {needed}")
    unsafe = ~safe_mask(frame["source"])
    frame["landmark_id"] = _folder_labels(frame["source"].str.split("/").str[level - 1])
    frame["reason"] = np.where(unsafe, "unsafe-path", "").astype(object)
    frame.insert(0, "id", frame["source"])
    stems = [store.location.rstrip("/").rsplit("/", 1)[-1] for store in stores]
    for prefixes in (stems, [str(number) for number in range(len(stores))]):
        again = frame["id"].duplicated().to_numpy()
        prefix = np.array(prefixes, dtype=object)[frame["store"].to_numpy()]
        frame["id"] = np.where(again, prefix + "/" + frame["id"].to_numpy(dtype=object), frame["id"])
    frame.loc[unsafe, "store"] = np.int16(-1)
    listing = "\n".join(frame["landmark_id"].astype(str) + "\t" + frame["id"]).encode()
    frame["landmark_id"] = typed_labels(chunked(frame["landmark_id"])).to_pandas()
    table = label_table(frame, CLASS_FOLDERS, "class-folders", hashlib.sha256(listing).hexdigest())
    outside = sources[~inside]
    is_picture = (outside != strip_extension(outside)).to_numpy(dtype=bool)
    ignored = ignored_members(PICTURES_OUTSIDE, outside[is_picture]) + ignored_members(OUTSIDE, outside[~is_picture])
    return table, [*members.ignored, *ignored]


def _folder_labels(names: "pd.Series[str]") -> "pd.Series[str]":
    """Return the names of folders as labels; name on stderr those that became one."""
    typed = chunked(names)
    normal = normal_form(typed)
    if joined := joined_spellings(typed, normal):
        notice(f"class folders that differ only in the spaces around them or in their Unicode form are one: {joined}")
    labels = pd.Series(normal.to_pandas().to_numpy(dtype=object), index=names.index, dtype=object)
    return labels.where(labels != "", names)


def _class_level(sources: "pd.Series[str]") -> int:
    """Return the level of the class folders: 1, or deeper where a class at level 1 would only be a wrapper.

    A wrapper is the only folder of its level, and holds folders and no picture; or one of several of which each is
    called as a split is. What was chosen is named on stderr.
    """
    level, depth = 1, sources.str.count("/")
    folders, depth = sources[depth > 0].str.split("/"), depth[depth > 0]
    while len(folders):
        names = folders.str[level - 1].unique()
        direct = folders[depth == level].str[-1]
        if (direct != strip_extension(direct)).any():
            break
        deeper = folders[depth > level]
        is_wrapper = len(names) == 1 or {name.lower() for name in names} <= _SPLIT_NAMES
        if deeper.empty or not is_wrapper:
            break
        level, folders, depth = level + 1, deeper, depth[depth > level]
    if level > 1:
        classes = folders.str[level - 1].unique()
        notice(
            f"the classes are the {len(classes):,} folders of level {level}, such as "
            f"{shown('/'.join(folders.iloc[0][:level]))}, because those above hold only folders; --class-level "
            "chooses another level"
        )
    return level
