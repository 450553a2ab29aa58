"""Tables of strangers: what does not fit the format is one error, before it fills the memory or reaches a tar."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.tables import MAX_ROWS, read_table
from lmk_data.dataset.tar import TarFile
from lmk_data.errors import DatasetError
from lmk_data.options import Selection
from lmk_data.system.storage import open_folder
from lmk_data.views.copy import write_copy

Change = Callable[[list[Any]], list[Any]]


def changed(dataset_path: Path, out: Path, name: str, column: str, change: Change, kind: pa.DataType | None) -> Path:
    """A copy of a dataset with other values in one column of one table."""
    shutil.copytree(dataset_path, out)
    table = pq.read_table(out / name)
    values = pa.array(change(table[column].to_pylist()), kind or table.schema.field(column).type)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), out / name)
    return out


def first(value: object) -> Change:
    return lambda values: [value, *values[1:]]


@pytest.mark.parametrize(
    ("column", "change", "kind"),
    [
        ("key", first("../../tmp/evil"), None),
        ("key", first("/etc/cron.d/evil"), None),
        ("key", first("a\nb"), None),
        ("key", first("a\n"), None),
        ("key", first("\x1b[31m"), None),
        ("key", first("__index__"), None),
        ("key", first("x" * 81), None),
        ("key", first(""), None),
        ("key", first(None), None),
        ("key", lambda values: [values[1], *values[1:]], None),
        ("label", first(-1), None),
        ("label", first(5), None),
        ("label", lambda values: [float(value) for value in values], pa.float64()),
        ("landmark_id", lambda values: [str(value) for value in values], pa.string()),
        ("jpg_size", first(2**31 - 1), None),
        ("jpg_offset", first(-1), None),
        ("original_width", first(0), None),
        ("original_height", first(-3), None),
        ("dhash", lambda values: [[value] for value in values], pa.list_(pa.uint64())),
    ],
)
def test_an_index_that_does_not_fit_is_one_error(
    dataset_path: Path, tmp_path: Path, column: str, change: Change, kind: pa.DataType | None
) -> None:
    path = changed(dataset_path, tmp_path / "other", "index/train.parquet", column, change, kind)
    with ShardedDataset.open(path) as dataset:
        with pytest.raises(DatasetError, match=r"train\.parquet: .*run `lmk-shard verify`"):
            dataset.index_table("train")
        with pytest.raises(DatasetError):
            write_copy(dataset, Selection(top=2), str(tmp_path / "copy"), workers=1, quiet=True)
    assert not list((tmp_path / "copy").rglob("*.tar"))


@pytest.mark.parametrize(
    ("column", "change", "kind"),
    [
        ("label", lambda values: values[::-1], None),
        ("landmark_id", first(None), None),
        ("landmark_id", lambda values: [values[0]] * len(values), None),
        ("landmark_id", lambda values: [float(value) for value in values], pa.float64()),
        ("train", first(-1), None),
        ("listed", first(0), None),
        ("name", lambda values: [["a"]] * len(values), pa.list_(pa.string())),
    ],
)
def test_classes_that_do_not_fit_are_one_error(
    dataset_path: Path, tmp_path: Path, column: str, change: Change, kind: pa.DataType | None
) -> None:
    path = changed(dataset_path, tmp_path / "other", "classes.parquet", column, change, kind)
    with pytest.raises(DatasetError, match=r"classes\.parquet: "):
        ShardedDataset.open(path)


@pytest.mark.parametrize("label", [-1, 2**31 - 1])
def test_rejects_of_no_class_are_one_error(dataset_path: Path, tmp_path: Path, label: int) -> None:
    path = changed(dataset_path, tmp_path / "other", "rejects.parquet", "label", first(label), None)
    with ShardedDataset.open(path) as dataset, pytest.raises(DatasetError, match="a label is of no class"):
        dataset.rejects()


def test_a_table_that_is_no_file_is_one_error(dataset_path: Path, tmp_path: Path) -> None:
    """Whoever opens a FIFO waits for somebody to write into it."""
    path = Path(shutil.copytree(dataset_path, tmp_path / "other"))
    (path / "classes.parquet").unlink()
    os.mkfifo(path / "classes.parquet")
    with pytest.raises(DatasetError, match=r"classes\.parquet: cannot be read \(.*not a regular file"):
        ShardedDataset.open(path)


def test_more_rows_than_a_table_has_are_not_read(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.nulls(MAX_ROWS + 1, pa.int8()).fill_null(0), pa.array(["x" * 40]))
    pq.write_table(pa.table({"name": column}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="4,000,001 rows, more than 4,000,000"):
        read_table(open_folder(tmp_path), "a.parquet")


def test_texts_that_fill_the_memory_are_not_written_out(tmp_path: Path) -> None:
    """A hundred thousand times a text of one megabyte: 100 GB, of a file of some kilobytes."""
    column = pa.DictionaryArray.from_arrays(pa.nulls(100_000, pa.int8()).fill_null(0), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"name": column}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    with pytest.raises(DatasetError, match="texts of more than"):
        read_table(open_folder(tmp_path), "a.parquet")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_texts_are_read_as_they_were_written(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"name": pa.array(["a", None, "", "ä" * 300, "a"], kind), "n": pa.array(range(5))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_table(open_folder(tmp_path), "a.parquet").equals(table)
    assert read_table(open_folder(tmp_path), "a.parquet", ["n"]).equals(table.select(["n"]))
    with pytest.raises(DatasetError, match="no column 'm'"):
        read_table(open_folder(tmp_path), "a.parquet", ["m"])


@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg", "a/b.jpg", "__x.jpg", ".jpg", "a\n.jpg"])
def test_no_tar_is_written_with_a_key_that_is_a_path(tmp_path: Path, name: str) -> None:
    with open(tmp_path / "a.tar", "wb") as file, pytest.raises(DatasetError, match="do not trust this dataset"):
        TarFile(file).add(name, b"")


def test_shards_that_another_tool_wrote_as_plain_text_are_read(dataset_path: Path, tmp_path: Path) -> None:
    path = changed(dataset_path, tmp_path / "other", "index/train.parquet", "shard", lambda values: values, pa.string())
    with ShardedDataset.open(path) as dataset, ShardedDataset.open(dataset_path) as original:
        assert dataset.index_table("train").equals(original.index_table("train").unify_dictionaries())
