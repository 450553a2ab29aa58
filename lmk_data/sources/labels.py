"""Read label tables (GLR2020, GLDv2, any CSV or Parquet) into one DataFrame."""

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
from lmk_data.formats import all_extensions
from lmk_data.system.storage import is_url, read_file
from lmk_data.system.terminal import without_secrets

CLASS_FOLDERS = "classes"
_CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_CATEGORY_MARK = "Category:"
_MAX_ROWS = 16_000_000  # of a Parquet table, which says how many it has before they are read


@dataclass(frozen=True)
class LabelTable:
    """The listed images, each once, and how the table was read.

    Attributes:
        frame: One row per unique id: `id` (str), `landmark_id` (int64 if every label is a canonical integer, else
            str), and for class folders the columns of their members (`store`, `source`, ...).
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
    """Read a label table: CSV, gzipped CSV or Parquet, told apart by the first bytes.

    Three layouts are recognised by their columns: GLR2020 (`id,landmark_id`), GLDv2 (`id,url,landmark_id`) and
    GLDv2-clean (`landmark_id,images`, ids separated by spaces). Any other table needs the names of its columns.
    Raises UserError for a table that is absent, unreadable or empty, or that lacks a column.
    """
    data = _read(path, "label table", "--labels")
    table = _read_strings(data, path)
    layout, id_column, label_column = _layout(table.column_names, path, id_column, label_column)
    ids, labels = table[id_column], table[label_column]
    for name, column in ((id_column, ids), (label_column, labels)):
        may_be_empty = layout == "gldv2-clean" and column is ids  # a class without images
        missing = pc.is_null(column) if may_be_empty else pc.fill_null(pc.equal(column, ""), True)
        if pc.any(missing).as_py():
            row = int(np.flatnonzero(missing.to_numpy())[0]) + 1
            raise UserError(f"{path}: data row {row} has no {name}; fill it in or drop the row")
    if layout == "gldv2-clean":
        ids, labels = _split_lists(ids, labels)
    frame = pd.DataFrame({"id": ids.to_pandas(), "landmark_id": typed_labels(labels).to_pandas()})
    if frame.empty:
        raise UserError(f"{path}: the label table lists no image; give another table with --labels")
    frame["id"] = without_extensions(frame["id"])
    table = label_table(
        frame, without_secrets(path).rstrip("/").rsplit("/", 1)[-1], layout, hashlib.sha256(data).hexdigest()
    )
    if table.frame.empty:
        raise UserError(f"{path}: every id has several labels; are --id-column and --label-column swapped?")
    return replace(table, columns=(id_column, label_column)) if layout == "custom" else table


def read_categories(path: str) -> "pd.Series[str]":
    """Read class names from GLR2020's table `landmark_id,category`, indexed by landmark id as a string.

    A category that is a Wikimedia Commons URL becomes the plain words after `Category:`.
    """
    table = _read_strings(_read(path, "table of categories", "--categories"), path)
    for column in ("landmark_id", "category"):
        if column not in table.column_names:
            hint = "--categories needs landmark_id and category"
            raise UserError(f"{path}: no column {column}; found {_listed(table.column_names)}; {hint}")
    names = table["category"].to_pandas().fillna("")
    names = names.str.split(_CATEGORY_MARK, n=1).str[-1].str.replace("_", " ", regex=False).str.strip()
    index = pd.Index(table["landmark_id"].to_pandas())
    categories: pd.Series[str] = pd.Series(names.to_numpy(dtype=object), index=index)
    unique: pd.Series[str] = categories.loc[~index.duplicated()]
    return unique


def _read(path: str, what: str, option: str) -> bytes:
    """Return the bytes of a table. Raises UserError if there is no such file, StorageError if a URL fails."""
    try:
        return read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such {what}; name another with {option}") from None
    except OSError as error:
        if is_url(path):
            raise storage_failure(error, path) from error
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_strings(data: bytes, path: str) -> pa.Table:
    """Return a CSV or Parquet file with every column as strings. Raises UserError if it cannot be read."""
    try:
        if data[:4] == b"PAR1":
            _check_size(pq.read_metadata(pa.BufferReader(data)), path)
            table = pq.read_table(pa.BufferReader(data))
            _check_unique(table.column_names, path)
            return pa.table({n: pc.cast(table[n], pa.string()) for n in table.column_names if _is_flat(table[n].type)})
        compression = "gzip" if data[:2] == b"\x1f\x8b" else None
        parse = pa.csv.ParseOptions(newlines_in_values=True)
        with pa.input_stream(pa.BufferReader(data), compression=compression) as stream:
            header = pa.csv.open_csv(stream, parse_options=parse).schema.names
        _check_unique(header, path)
        convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)
        with pa.input_stream(pa.BufferReader(data), compression=compression) as stream:
            return pa.csv.read_csv(stream, convert_options=convert, parse_options=parse)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable table ({reason}); give a CSV or Parquet file") from error


def _check_size(metadata: pq.FileMetaData, path: str) -> None:
    """Raise UserError for a Parquet file with more rows than a label table has: it may be small and fill the memory."""
    if metadata.num_rows > _MAX_ROWS:
        raise UserError(f"{path}: {metadata.num_rows:,} rows, more than {_MAX_ROWS:,}; split the label table")


def _check_unique(columns: list[str], path: str) -> None:
    repeated = [name for number, name in enumerate(columns) if name in columns[:number]]
    if repeated:
        raise UserError(f"{path}: has several columns {repeated[0]}; rename all but one")


def _is_flat(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # pandas writes categoricals like this
        return _is_flat(kind.value_type)
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


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
            raise UserError(f"{path}: no column {column}; found {_listed(columns)}; {hint}")
    return chosen


def _listed(columns: list[str]) -> str:
    shown = ", ".join(columns[:12]) or "none"
    return shown if len(columns) <= 12 else f"{shown} and {len(columns) - 12} more"


def _split_lists(images: pa.ChunkedArray, labels: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Turn rows of `landmark_id, "id id id"` into one row per id; return ids and labels."""
    lists = pc.split_pattern(pc.utf8_trim_whitespace(images), " ").combine_chunks()
    parents = pc.list_parent_indices(lists)
    ids = pc.list_flatten(lists)
    kept = pc.not_equal(ids, "")
    labels = labels.combine_chunks().take(parents)
    return pa.chunked_array([ids.filter(kept)]), pa.chunked_array([labels.filter(kept)])


def typed_labels(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return labels as int64 if every one is a canonical integer, so that nothing is lost, else as strings."""
    canonical = pc.all(pc.match_substring_regex(labels, _CANONICAL_INTEGER)).as_py()
    return labels.cast(pa.int64()) if canonical else labels


def label_table(frame: pd.DataFrame, name: str, layout: str, sha256: str) -> LabelTable:
    """Return a table of `frame` in which each id occurs once; ids with two labels are dropped."""
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
    """Return ids without the extension of an image file; an id that would then equal another one keeps it."""
    stripped = strip_extension(ids)
    ambiguous = pd.DataFrame({"id": ids, "stripped": stripped}).drop_duplicates()["stripped"]
    ambiguous = ambiguous[ambiguous.duplicated()]
    return stripped.where(~stripped.isin(ambiguous), ids) if len(ambiguous) else stripped


def strip_extension(ids: "pd.Series[str]") -> "pd.Series[str]":
    """Return ids without the extension of an image file, if they have one."""
    return ids.str.replace(rf"\.(?:{'|'.join(all_extensions())})$", "", case=False, regex=True)
