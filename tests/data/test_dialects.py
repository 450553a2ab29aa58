"""Each dialect read by the tool that it is for: every sample once, under its label, with its very bytes."""

import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset

DIALECTS = ("wids", "timm", "dali", "energon", "croissant")

# What a tool read, printed by the program that read it: [key or null, label, sha256 of the JPEG or null].
_PRELUDE = """
import hashlib, json, sys

def say(samples):
    read = [[key, int(label), jpeg and hashlib.sha256(jpeg).hexdigest()] for key, label, jpeg in samples]
    print("READ", json.dumps(read))

root, split = sys.argv[1:]
"""


def run_reader(code: str, root: Path, split: str, home: Path, path: Path | None = None) -> list[list[Any]]:
    """Run another tool in a process of its own, away from the network; returns what it read."""
    environment = {
        **os.environ,
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "WIDS_CACHE": str(home / "wids"),
        "PYTHONPATH": str(path or ""),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code, str(root), split],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read: list[list[Any]] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("READ"))[5:])
    return read


def expected(dataset: ShardedDataset, split: str) -> list[list[Any]]:
    return [[s.key, s.label, hashlib.sha256(s.jpeg).hexdigest()] for s in dataset.samples(split)]


def export(dataset_path: Path, dialect: str, out: Path) -> Path:
    assert main(["export", str(dataset_path), "--to", dialect, "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(params=["train", "val"])
def split(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.slow
def test_wids(
    dataset: ShardedDataset, dataset_path: Path, tmp_path: Path, split: str, old_webdataset: Path | None
) -> None:
    if old_webdataset is None:
        pytest.skip("webdataset 0.2, which has wids, cannot be installed here")
    code = """
import wids
data = wids.ShardListDataset(f"{root}/{split}.json", transformations=[])
say((s["__key__"], s[".cls"].read(), s[".jpg"].read()) for s in (data[i] for i in range(len(data))))
"""
    root = export(dataset_path, "wids", tmp_path / "wids")
    assert run_reader(code, root, split, tmp_path, old_webdataset) == expected(dataset, split)


@pytest.mark.slow
def test_timm(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path, split: str) -> None:
    pytest.importorskip("timm", reason="the extra `interop` is not installed")
    code = """
from timm.data import create_dataset
data = create_dataset("wds/", root=root, split=split, is_training=False, batch_size=4)
assert len(data) == len(list(data))
say((None, label, image.tobytes()) for image, label in data)
"""
    from PIL import Image

    def pixels(jpeg: bytes) -> str:
        with Image.open(io.BytesIO(jpeg)) as image:
            return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()

    root = export(dataset_path, "timm", tmp_path / "timm")
    assert run_reader(code, root, split, tmp_path) == [[None, s.label, pixels(s.jpeg)] for s in dataset.samples(split)]


@pytest.mark.slow
def test_energon(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path, split: str) -> None:
    """Energon reads what is exported, and finds nothing to change: its own preparation writes the same."""
    pytest.importorskip("megatron.energon", reason="the extra `interop` is not installed")
    code = """
from megatron.energon import WorkerConfig, get_loader, get_val_dataset
workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
data = get_val_dataset(root, split_part=split, worker_config=workers, batch_size=1)
say((batch.__key__[0], batch.label[0], None) for batch in get_loader(data))
"""
    root = export(dataset_path, "energon", tmp_path / "energon")
    read = run_reader(code, root, split, tmp_path)
    assert sorted(read) == sorted([key, label, None] for key, label, _ in expected(dataset, split))


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
    say([])
"""
    run_reader(code, other, "train", tmp_path)
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


@pytest.mark.slow
def test_croissant(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path, split: str) -> None:
    pytest.importorskip("mlcroissant", reason="the extra `interop` is not installed")
    code = """
import io
import mlcroissant
data = mlcroissant.Dataset(jsonld=f"{root}/croissant.json")
assert not data.metadata.issues.errors, data.metadata.issues.report()
def jpeg(image):
    image.fp.seek(0)
    return image.fp.read()
say((r[f"{split}/key"].decode(), r[f"{split}/label"], r[f"{split}/image"].tobytes()) for r in data.records(split))
"""
    from PIL import Image

    root = export(dataset_path, "croissant", tmp_path / "croissant")
    pixels = {}
    for sample in dataset.samples(split):
        with Image.open(io.BytesIO(sample.jpeg)) as image:
            pixels[sample.key] = [sample.key, sample.label, hashlib.sha256(image.tobytes()).hexdigest()]
    assert sorted(run_reader(code, root, split, tmp_path)) == sorted(pixels.values())


def test_dali_indexes_are_those_of_wds2idx(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path) -> None:
    """By its documented form: `v1.2 N`, then for each sample its components as extension, offset, size and name."""
    root = export(dataset_path, "dali", tmp_path / "dali")
    for split in dataset.splits:
        for shard in dataset.shards(split):
            lines: dict[str, list[str]] = {}
            with tarfile.open(root / shard["name"]) as archive:
                for member in archive:
                    key, extension = member.name.split(".", 1)
                    lines.setdefault(key, []).append(f"{extension} {member.offset_data} {member.size} {member.name}")
            text = "".join(
                f"{line}\n" for line in [f"v1.2 {len(lines)}", *(" ".join(parts) for parts in lines.values())]
            )
            assert (root / shard["name"]).with_suffix(".idx").read_text() == text


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets(
    dataset: ShardedDataset, dataset_path: Path, tmp_path: Path, split: str, streaming: bool
) -> None:
    pytest.importorskip("datasets", reason="the extra `interop` is not installed")
    code = f"""
from datasets import Image, load_dataset
data = load_dataset(root, split={{"val": "val", "train": "train"}}[split], streaming={streaming})
data = data.cast_column("jpg", Image(decode=False))
say((row["__key__"], row["cls"], row["jpg"]["bytes"]) for row in data)
"""
    assert run_reader(code, dataset_path, split, tmp_path) == expected(dataset, split)


def test_webdataset(dataset: ShardedDataset, split: str) -> None:
    read = [[s["__key__"], int(s["cls"]), hashlib.sha256(s["jpg"]).hexdigest()] for s in dataset.webdataset(split)]
    assert read == expected(dataset, split)


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


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_export_links_and_may_be_made_again(
    dataset: ShardedDataset, dataset_path: Path, tmp_path: Path, dialect: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = export(dataset_path, dialect, tmp_path / "out")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    shard = dataset.shards("train")[0]["name"]
    assert (root / shard).samefile(dataset_path / shard)
    (root / shard).unlink()
    if dialect != "energon":  # its own index is a database file
        written = next(path for path in before if not path.samefile(dataset_path / shard) and path.stat().st_nlink == 1)
        written.write_bytes(b"cut")
    export(dataset_path, dialect, root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    (root / "notes.txt").write_text("mine")
    assert main(["export", str(dataset_path), "--to", dialect, "--out", str(root)]) == 1
    assert "holds notes.txt" in capsys.readouterr().err
    assert (root / "notes.txt").read_text() == "mine"


def test_a_view_is_refused_and_its_copy_is_not(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view, copy = tmp_path / "view", tmp_path / "copy"
    assert main(["subset", str(dataset_path), "--out", str(view), "--top", "2", "--quiet"]) == 0
    assert main(["export", str(view), "--to", "timm"]) == 1
    assert "subset --copy" in capsys.readouterr().err
    assert main(["subset", str(dataset_path), "--out", str(copy), "--top", "2", "--copy", "--quiet"]) == 0
    assert main(["export", str(copy), "--to", "timm"]) == 0
    assert json.loads((tmp_path / "copy-timm" / "_info.json").read_text())["splits"]["train"]["num_samples"] > 0


def test_a_folder_within_the_dataset_is_refused(dataset_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(dataset_path), "--to", "timm", "--out", str(dataset_path / "timm")]) == 1
    assert "lies within the dataset" in capsys.readouterr().err
    assert not (dataset_path / "timm").exists()


def test_another_file_system_is_an_error_that_says_what_to_do(
    dataset_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == dataset_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    out = elsewhere / f"lmk-export-{os.getpid()}"
    try:
        assert main(["export", str(dataset_path), "--to", "timm", "--out", str(out)]) == 1
        assert "same file system" in capsys.readouterr().err
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_an_index_of_other_tars_is_an_error(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(dataset_path, tmp_path / "shards")
    path = tmp_path / "shards" / "index" / "val.parquet"
    table = pq.read_table(path)
    offsets = pa.array([0] * table.num_rows, pa.int64())
    pq.write_table(table.set_column(table.column_names.index("jpg_offset"), "jpg_offset", offsets), path)
    for dialect in ("dali", "energon"):
        assert main(["export", str(tmp_path / "shards"), "--to", dialect]) == 1
        assert "val.parquet: not of these tars" in capsys.readouterr().err
