"""Exports for Megatron-Energon, read by it."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lmk_data.dataset import ShardedDataset
from tests.data.export.readers import expected, export, run_apart, run_reader


@pytest.mark.slow
def test_energon(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path) -> None:
    """Energon reads what is exported, and finds nothing to change: its own preparation writes the same."""
    pytest.importorskip("megatron.energon", reason="the extra `interop` is not installed")
    code = """
from megatron.energon import WorkerConfig, get_loader, get_val_dataset
def read(split):
    workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
    data = get_val_dataset(root, split_part=split, worker_config=workers, batch_size=1)
    return [(batch.__key__[0], batch.label[0], None) for batch in get_loader(data)]
"""
    root = export(dataset_path, "energon", tmp_path / "energon")
    wanted = expected(dataset)
    for split, read in run_reader(code, root, tmp_path).items():
        assert sorted(read) == sorted([key, label, None] for key, label, _ in wanted[split])


@pytest.mark.slow
def test_energon_would_prepare_the_same(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("megatron.energon", reason="the extra `interop` is not installed")
    root = export(dataset_path, "energon", tmp_path / "energon")
    shards = [shard["name"] for split in dataset.splits for shard in dataset.shards(split)]
    other = tmp_path / "prepared"
    shutil.copytree(dataset_path / "shards", other / "shards")
    code = f"""
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator
if __name__ == "__main__":
    patterns = [(split, f"shards/{{split}}/.*") for split in {list(dataset.splits)}]
    WebdatasetPreparator.prepare_dataset(root, {shards}, split_parts_patterns=patterns, workers=1)
"""
    run_apart(code, other, tmp_path)
    for shard in shards:
        assert (root / f"{shard}.idx").read_bytes() == (other / f"{shard}.idx").read_bytes(), shard
    for table in ("samples", "sample_parts", "sqlite_master"):
        ours, theirs = (_table(folder / ".nv-meta" / "index.sqlite", table) for folder in (root, other))
        assert ours == theirs, table
    ours, theirs = (json.loads((folder / ".nv-meta" / ".info.json").read_text()) for folder in (root, other))
    assert ours["shard_counts"] == theirs["shard_counts"]


def _table(path: Path, name: str) -> list[Any]:
    what = "type, name, tbl_name" if name == "sqlite_master" else "*"
    database = sqlite3.connect(path)
    try:
        return sorted(database.execute(f"SELECT {what} FROM {name}"))
    finally:
        database.close()
