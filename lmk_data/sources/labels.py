"""Read label tables (GLR2020, GLDv2, any CSV or Parquet) into one DataFrame."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lmk_data.errors import UserError
from lmk_data.formats import all_extensions
from lmk_data.sources.rows import MAX_DIFFERENT_ROWS, Rows, each_once
from lmk_data.sources.tables import MAX_BYTES, check_cells, listed, open_table, read_named_file
from lmk_data.system.terminal import notice, without_secrets
from lmk_data.typed_text import chunked, joined_spellings, normal_form

CLASS_FOLDERS = "classes"
TABLE_LAYOUTS = ("glr2020", "gldv2", "gldv2-clean")  # whose columns need no names
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_CATEGORY_TITLE = re.compile(r"(?:(?:https?:)?//[^/]+/wiki/)?Category:([^?#]+)")
_SEPARATORS = r"[\\/]+"  # Windows writes paths with back slashes
_HERE = r"(^|/)(?:\./)+"


@dataclass(frozen=True)
class LabelTable:
    """The listed images, each once, and how the table was read.

    Attributes:
        frame: One row per unique id: `id` (str), `landmark_id` (int64 if every label is a canonical integer, else
            str), for a table that gives extensions `file`, the id with its extension, and for class folders the
            columns of their members (`store`, `source`, ...).
        name: File name of the table, or `classes` for class folders.
        layout: `glr2020`, `gldv2`, `gldv2-clean`, `custom` or `class-folders`.
        sha256: Hash of the file, or of the listing of class folders.
        num_images: Number of unique ids that the table lists, conflicting ones included.
        num_classes: Number of labels that the table lists.
        conflicting: Number of ids that were left out because they have two labels.
        duplicate_rows: Number of rows that repeat an earlier row.
        columns: Names of the id and label columns of a `custom` table, else None.
    """

    frame: pd.DataFrame
    name: str
    layout: str
    sha256: str
    num_images: int
    num_classes: int
    conflicting: int
    duplicate_rows: int
    columns: tuple[str, str] | None = None

    @property
    def source(self) -> dict[str, Any]:
        """Return what the manifest records about the table; it is part of the fingerprint."""
        stated = {"labels": self.name, "labels_sha256": self.sha256, "layout": self.layout}
        if self.columns is not None:
            stated |= dict(zip(("id_column", "label_column"), self.columns, strict=True))
        names = ("num_images", "num_classes", "conflicting", "duplicate_rows")
        return {**stated, **{name: getattr(self, name) for name in names}}


def read_labels(path: str, *, id_column: str | None = None, label_column: str | None = None) -> LabelTable:
    """Read a label table, CSV or Parquet (`tables.open_table`).

    Three layouts are recognised by their columns: GLR2020 (`id,landmark_id`), GLDv2 (`id,url,landmark_id`) and
    GLDv2-clean (`landmark_id,images`, ids separated by spaces). Any other table needs the names of its columns.
    Labels and ids are put into normal form; what that joins is named on stderr. Raises UserError for a table that is
    absent, unreadable or empty, or that lacks a column.
    """
    data = _table_bytes(path)
    sha256, table = hashlib.sha256(data).hexdigest(), open_table(data, path)
    del data  # it may be a large part of the memory
    layout, id_column, label_column = _layout(table.columns, path, id_column, label_column)
    rows = table.rows([id_column, label_column])
    labels = _normal(rows.columns[1], path, "labels")
    check_cells(path, label_column, labels, rows.numbers)
    if layout == "gldv2-clean":
        check_cells(path, id_column, rows.columns[0], rows.numbers, may_be_empty=True)  # a class without images
        rows = _split_lists(rows, labels, path)
        labels = rows.columns[1]
    ids = pc.replace_substring_regex(_normal(rows.columns[0], path, "ids"), _SEPARATORS, "/")
    ids = pc.replace_substring_regex(ids, _HERE, r"\1")
    check_cells(path, id_column, ids, rows.numbers)
    frame = pd.DataFrame({"id": ids.to_pandas(), "landmark_id": typed_labels(labels).to_pandas()})
    if frame.empty:
        raise UserError(f"{path}: the label table lists no image; give another table with --labels")
    if (bare := without_extensions(frame["id"])) is not frame["id"]:
        frame = frame.rename(columns={"id": "file"}).assign(id=bare)
    found = label_table(frame, _file_name(path), layout, sha256)
    del frame, ids, labels
    pa.default_memory_pool().release_unused()  # to the machine: the plan needs as much
    found = replace(found, duplicate_rows=found.duplicate_rows + rows.num_repeated)
    if found.frame.empty:
        raise UserError(f"{path}: every id has several labels; are --id-column and --label-column swapped?")
    return replace(found, columns=(id_column, label_column)) if layout == "custom" else found


def is_table_of(
    source: Mapping[str, Any], path: str, *, id_column: str | None = None, label_column: str | None = None
) -> bool:
    """Return whether `source` is what a manifest records about this very table, read with these columns."""
    given = ("custom", id_column or "id", label_column or "landmark_id") if id_column or label_column else None
    stated = (source["layout"], source.get("id_column"), source.get("label_column"))
    same_columns = stated == given if given else stated[0] in TABLE_LAYOUTS
    return (
        same_columns
        and source["labels"] == _file_name(path)
        and source["labels_sha256"] == hashlib.sha256(_table_bytes(path)).hexdigest()
    )


def _table_bytes(path: str) -> bytes:
    return read_named_file(path, MAX_BYTES, "label table", "--labels")


def _file_name(path: str) -> str:
    name = without_secrets(path).rstrip("/").rsplit("/", 1)[-1]
    return name.encode(errors="backslashreplace").decode()  # names of files need not be UTF-8, a manifest is


def read_categories(path: str) -> "pd.Series[str]":
    """Read class names from GLR2020's table `landmark_id,category`, indexed by landmark id as a string.

    A category that is the URL of a category of a wiki, such as Wikimedia Commons, becomes its title in plain words;
    any other name stays as it is.
    """
    table = open_table(read_named_file(path, MAX_BYTES, "table of categories", "--categories"), path)
    read = table.rows(["landmark_id", "category"]).columns
    names = normal_form(read["category"].fill_null("")).to_pylist()
    index = pd.Index(normal_form(read["landmark_id"]).to_pandas())
    categories: pd.Series[str] = pd.Series(np.array([_title(name) for name in names], dtype=object), index=index)
    unique: pd.Series[str] = categories.loc[~index.duplicated()]
    return unique


def _title(category: str) -> str:
    """Return the title of a wiki's category in plain words, if a name is its URL or begins with `Category:`."""
    url = _CATEGORY_TITLE.match(category)
    return unquote(url[1]).replace("_", " ").strip() if url else category


def _normal(values: pa.ChunkedArray, path: str, what: str) -> pa.ChunkedArray:
    """Return values in normal form; name on stderr what became one."""
    normal = normal_form(values)
    if joined := joined_spellings(values, normal):
        notice(f"{path}: {what} that differ only in the spaces around them or in their Unicode form are one: {joined}")
    return normal


def _layout(columns: list[str], path: str, id_column: str | None, label_column: str | None) -> tuple[str, str, str]:
    """Return the name of the layout and of the columns with id and label."""
    if id_column or label_column:
        chosen = ("custom", id_column or "id", label_column or "landmark_id")
    elif "images" in columns and "id" not in columns:
        chosen = ("gldv2-clean", "images", "landmark_id")
    else:
        chosen = ("gldv2" if "url" in columns else "glr2020", "id", "landmark_id")
    for column in chosen[1:]:
        if column not in columns:
            hint = "name them with --id-column and --label-column"
            raise UserError(f"{path}: no column {column}; found {listed(columns)}; {hint}")
    return chosen


def _split_lists(rows: Rows, labels: pa.ChunkedArray, path: str) -> Rows:
    """Turn rows of `"id id id", landmark_id` into one row per id, with `labels` as the landmark ids."""
    images = pc.utf8_trim_whitespace(rows.columns[0])
    if len(images) + (pc.sum(pc.count_substring(images, " ")).as_py() or 0) > MAX_DIFFERENT_ROWS:
        raise UserError(f"{path}: lists more than {MAX_DIFFERENT_ROWS:,} images; build several datasets")
    lists = pc.split_pattern(images, " ").combine_chunks()
    parents, ids = pc.list_parent_indices(lists), pc.list_flatten(lists)
    kept = pc.not_equal(ids, "")
    ids, parents = ids.filter(kept), parents.filter(kept)
    columns = pa.table([ids, labels.combine_chunks().take(parents)], names=["images", "landmark_id"])
    return each_once(Rows(columns, rows.numbers[parents.to_numpy()], rows.counts[parents.to_numpy()]))


def typed_labels(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return labels as int64 if every one is a canonical integer, so that nothing is lost, else as strings."""
    canonical = pc.all(pc.match_substring_regex(labels, _CANONICAL_INTEGER)).as_py()
    return labels.cast(pa.int64()) if canonical else labels


def label_table(frame: pd.DataFrame, name: str, layout: str, sha256: str) -> LabelTable:
    """Return a table of `frame` in which each id occurs once; ids with two labels are dropped."""
    unique = kept = frame
    conflicting = 0
    if pc.count_distinct(chunked(frame["id"])).as_py() < len(frame):
        unique = frame.drop_duplicates(["id", "landmark_id"])
        several = unique["id"].duplicated(keep=False)
        conflicting = int(unique.loc[several, "id"].nunique())
        kept = unique[~several]
    return LabelTable(
        frame=kept.reset_index(drop=True),
        name=name,
        layout=layout,
        sha256=sha256,
        num_images=len(kept) + conflicting,
        num_classes=int(frame["landmark_id"].nunique()),
        conflicting=conflicting,
        duplicate_rows=len(frame) - len(unique),
    )


def without_extensions(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Return ids without the extension of an image file; an id that would then equal another one keeps it."""
    stripped = strip_extension(ids)
    if stripped is ids:
        return ids
    ambiguous = pd.DataFrame({"id": ids, "stripped": stripped}).drop_duplicates()["stripped"]
    ambiguous = ambiguous[ambiguous.duplicated()]
    return stripped.where(~stripped.isin(ambiguous), ids) if len(ambiguous) else stripped


def strip_extension(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Return ids without the extension of an image file, if they have one; the same Series if none has."""
    texts = chunked(ids)
    bare = pc.replace_substring_regex(texts, rf"(?i)\.(?:{'|'.join(all_extensions())})$", "")
    if bare.equals(texts):
        return ids
    return pd.Series(bare.to_pandas().to_numpy(dtype=object), index=ids.index, dtype=object)
