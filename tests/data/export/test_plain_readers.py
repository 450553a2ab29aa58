"""Tools that read a dataset without an export."""

import hashlib
from pathlib import Path

import pytest

from lmk_data.dataset import ShardedDataset
from tests.data.export.readers import expected, run_reader


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path, streaming: bool) -> None:
    pytest.importorskip("datasets", reason="the extra `interop` is not installed")
    code = f"""
from datasets import Image, load_dataset
def read(split):
    data = load_dataset(root, split=split, streaming={streaming}).cast_column("jpg", Image(decode=False))
    return [(row["__key__"], row["cls"], row["jpg"]["bytes"]) for row in data]
"""
    assert run_reader(code, dataset_path, tmp_path) == expected(dataset)


def test_webdataset(dataset: ShardedDataset) -> None:
    for split, wanted in expected(dataset).items():
        read = [[s["__key__"], int(s["cls"]), hashlib.sha256(s["jpg"]).hexdigest()] for s in dataset.webdataset(split)]
        assert read == wanted


@pytest.mark.parametrize("tool", ["duckdb", "polars"])
def test_tables(dataset: ShardedDataset, dataset_path: Path, tool: str) -> None:
    """Every column of every table, and the same counts as the manifest."""
    pytest.importorskip(tool, reason="the extra `interop` is not installed")
    if tool == "duckdb":
        import duckdb

        rows = duckdb.sql(f"SELECT * FROM '{dataset_path}/index/*.parquet' ORDER BY key").fetchall()
        held = duckdb.sql(f"SELECT label, train + val + test FROM '{dataset_path}/classes.parquet'").fetchall()
    else:
        import polars

        rows = polars.read_parquet(f"{dataset_path}/index/*.parquet").sort("key").rows()
        table = polars.read_parquet(dataset_path / "classes.parquet")
        held = list(zip(table["label"], table["train"] + table["val"] + table["test"], strict=True))
    frames = [dataset.index(split) for split in dataset.splits]
    wanted = sorted(row for frame in frames for row in frame.itertuples(index=False, name=None))
    assert [tuple(row) for row in rows] == wanted
    labels = [row[1] for row in wanted]
    assert dict(held) == {label: labels.count(label) for label in range(dataset.num_classes)}
