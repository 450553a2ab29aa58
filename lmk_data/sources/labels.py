"""Label tables (GLR2020, GLDv2, any CSV or Parquet, class folders) to one DataFrame."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from lmk_data.errors import UserError, storage_failure
from lmk_data.system.storage import is_url, read_file

CLASS_FOLDERS = "classes"
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_CATEGORY_MARK = "Category:"
_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "mpo", "tif", "tiff")


@dataclass(frozen=True)
class LabelTable:
    """Every listed image once, and how the table was read.

    `frame` has one row per unique id: `id` (str), `landmark_id` (int64, or str unless every one is a canonical
    integer), and for class folders `store` and `source`. `num_images` and `num_classes` count what the table
    lists, `conflicting` the ids that left it because they carry two labels, `duplicate_rows` the rows that
    repeat an earlier one; `columns` those of id and label in a table of somebody's own.
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
        """What the manifest states of the table, and the fingerprint covers."""
        stated = {"labels": self.name, "labels_sha256": self.sha256, "layout": self.layout}
        if self.columns is not None:
            stated |= dict(zip(("id_column", "label_column"), self.columns, strict=True))
        names = ("num_images", "num_classes", "conflicting", "duplicate_rows")
        return {**stated, **{name: getattr(self, name) for name in names}}


def read_labels(path: str, *, id_column: str | None = None, label_column: str | None = None) -> LabelTable:
    """Read a label table.

    Known by their columns: GLR2020 (`id,landmark_id`), GLDv2 (`id,url,landmark_id`), GLDv2-clean
    (`landmark_id,images`, ids separated by spaces); anything else needs both column names. CSV (also gzipped)
    or Parquet, by its first bytes. Raises UserError for a table that is absent, unreadable, empty or lacks a column.
    """
    data = _read(path)
    table = _read_strings(data, path)
    layout, id_column, label_column = _layout(table.column_names, path, id_column, label_column)
    ids, labels = table[id_column], table[label_column]
    for name, column in ((id_column, ids), (label_column, labels)):
        may_be_empty = layout == "gldv2-clean" and column is ids  # a class without images
        lacking = pc.is_null(column) if may_be_empty else pc.fill_null(pc.equal(column, ""), True)
        if pc.any(lacking).as_py():
            row = int(np.flatnonzero(lacking.to_numpy())[0]) + 1
            raise UserError(f"{path}: data row {row} has no {name}; fill or drop it")
    if layout == "gldv2-clean":
        ids, labels = _split_lists(ids, labels)
    frame = pd.DataFrame({"id": ids.to_pandas(), "landmark_id": typed_labels(labels).to_pandas()})
    if frame.empty:
        raise UserError(f"{path}: the label table lists no image")
    frame["id"] = without_extensions(frame["id"])
    table = label_table(frame, path.rstrip("/").rsplit("/", 1)[-1], layout, hashlib.sha256(data).hexdigest())
    if table.frame.empty:
        raise UserError(f"{path}: every id carries several labels; are --id-column and --label-column right?")
    return replace(table, columns=(id_column, label_column)) if layout == "custom" else table


def read_categories(path: str) -> "pd.Series[str]":
    """Names of classes, indexed by landmark id as a string, from GLR2020's `landmark_id,category` table.

    A category that is a Wikimedia Commons URL becomes the plain words after `Category:`.
    """
    table = _read_strings(_read(path), path)
    for column in ("landmark_id", "category"):
        if column not in table.column_names:
            raise UserError(f"{path}: no column {column}; found {_listed(table.column_names)}")
    names = table["category"].to_pandas().fillna("")
    names = names.str.split(_CATEGORY_MARK, n=1).str[-1].str.replace("_", " ", regex=False).str.strip()
    index = pd.Index(table["landmark_id"].to_pandas())
    categories: pd.Series[str] = pd.Series(names.to_numpy(dtype=object), index=index)
    unique: pd.Series[str] = categories.loc[~index.duplicated()]
    return unique


def _read(path: str) -> bytes:
    """A table's file; UserError if there is none."""
    try:
        return read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such label table; give it with --labels") from None
    except OSError as error:
        if is_url(path):
            raise storage_failure(error, path) from error
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_strings(data: bytes, path: str) -> pa.Table:
    """A CSV or Parquet file with every column as strings; UserError if it cannot be read."""
    try:
        if data[:4] == b"PAR1":
            table = pq.read_table(pa.BufferReader(data))
            _refuse_repeated(table.column_names, path)
            return pa.table({n: pc.cast(table[n], pa.string()) for n in table.column_names if _is_flat(table[n].type)})
        compression = "gzip" if data[:2] == b"\x1f\x8b" else None
        parse = pa.csv.ParseOptions(newlines_in_values=True)
        with pa.input_stream(pa.BufferReader(data), compression=compression) as stream:
            header = pa.csv.open_csv(stream, parse_options=parse).schema.names
        _refuse_repeated(header, path)
        convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)
        with pa.input_stream(pa.BufferReader(data), compression=compression) as stream:
            return pa.csv.read_csv(stream, convert_options=convert, parse_options=parse)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable table: {str(error).splitlines()[0]}") from error


def _refuse_repeated(columns: list[str], path: str) -> None:
    repeated = [name for number, name in enumerate(columns) if name in columns[:number]]
    if repeated:
        raise UserError(f"{path}: has several columns {repeated[0]}; name them differently")


def _is_flat(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # a category of pandas
        return _is_flat(kind.value_type)
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _layout(columns: list[str], path: str, id_column: str | None, label_column: str | None) -> tuple[str, str, str]:
    """The layout's name and the columns that hold id and label."""
    if id_column or label_column:
        chosen = ("custom", id_column or "id", label_column or "landmark_id")
    elif "images" in columns and "id" not in columns:
        chosen = ("gldv2-clean", "images", "landmark_id")
    else:
        chosen = ("gldv2" if "url" in columns else "glr2020", "id", "landmark_id")
    for column in chosen[1:]:
        if column not in columns:
            hint = "name them with --id-column and --label-column"
            raise UserError(f"{path}: no column {column}; found {_listed(columns)}; {hint}")
    return chosen


def _listed(columns: list[str]) -> str:
    shown = ", ".join(columns[:12]) or "none"
    return shown if len(columns) <= 12 else f"{shown} and {len(columns) - 12} more"


def _split_lists(images: pa.ChunkedArray, labels: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Rows of `landmark_id, "id id id"` to one row per id."""
    lists = pc.split_pattern(pc.utf8_trim_whitespace(images), " ").combine_chunks()
    parents = pc.list_parent_indices(lists)
    ids = pc.list_flatten(lists)
    kept = pc.not_equal(ids, "")
    labels = labels.combine_chunks().take(parents)
    return pa.chunked_array([ids.filter(kept)]), pa.chunked_array([labels.filter(kept)])


def typed_labels(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels as int64 if every one is a canonical integer, so that nothing is lost, else as strings."""
    canonical = pc.all(pc.match_substring_regex(labels, _CANONICAL_INTEGER)).as_py()
    return labels.cast(pa.int64()) if canonical else labels


def label_table(frame: pd.DataFrame, name: str, layout: str, sha256: str) -> LabelTable:
    """Keep each id once; drop the ids that carry two labels."""
    num_classes = int(frame["landmark_id"].nunique())
    unique = frame.drop_duplicates(["id", "landmark_id"])
    several = unique["id"].duplicated(keep=False)
    conflicting = int(unique.loc[several, "id"].nunique())
    kept = unique[~several].reset_index(drop=True)
    return LabelTable(
        frame=kept,
        name=name,
        layout=layout,
        sha256=sha256,
        num_images=len(kept) + conflicting,
        num_classes=num_classes,
        conflicting=conflicting,
        duplicate_rows=len(frame) - len(unique),
    )


def without_extensions(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Ids without the extension of an image file; those that would then be the same as another one keep it."""
    stripped = strip_extension(ids)
    ambiguous = pd.DataFrame({"id": ids, "stripped": stripped}).drop_duplicates()["stripped"]
    ambiguous = ambiguous[ambiguous.duplicated()]
    return stripped.where(~stripped.isin(ambiguous), ids) if len(ambiguous) else stripped


def strip_extension(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Ids without the extension of an image file, where they carry one."""
    return ids.str.replace(rf"\.(?:{'|'.join(_EXTENSIONS)})$", "", case=False, regex=True)
