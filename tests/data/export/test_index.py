"""Indexes for wids, DALI and timm, read by these tools."""

import hashlib
import io
import shutil
import tarfile
from pathlib import Path

import pytest

from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from tests.data.export.readers import SPLITS, expected, export, run_reader


@pytest.mark.slow
def test_wids(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path, old_webdataset: Path | None) -> None:
    if old_webdataset is None:
        pytest.skip("webdataset 0.2, which has wids, cannot be installed here")
    code = """
import wids
def read(split):
    data = wids.ShardListDataset(f"{root}/{split}.json", transformations=[])
    for i in range(len(data)):
        sample = data[i]
        yield sample["__key__"], sample[".cls"].read(), sample[".jpg"].read()
"""
    root = export(dataset_path, "wids", tmp_path / "wids")
    assert run_reader(code, root, tmp_path, old_webdataset) == expected(dataset)


@pytest.mark.slow
def test_timm(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the extra `interop` is not installed")
    code = """
from timm.data import create_dataset
def read(split):
    data = create_dataset("wds/", root=root, split=split, is_training=False, batch_size=4)
    assert len(data) == len(list(data))
    return [(None, label, image.tobytes()) for image, label in data]
"""
    from PIL import Image

    def pixels(jpeg: bytes) -> str:
        with Image.open(io.BytesIO(jpeg)) as image:
            return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()

    root = export(dataset_path, "timm", tmp_path / "timm")
    assert run_reader(code, root, tmp_path) == {
        split: [[None, s.label, pixels(s.jpeg)] for s in dataset.samples(split)] for split in SPLITS
    }


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
