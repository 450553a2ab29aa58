"""Which shards a second build of the same dataset writes."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import BuildError, DatasetError
from tests.published import hashes

Options = Callable[..., BuildOptions]


def test_lost_shards_are_built_again_and_only_they(options: Options, tmp_path: Path) -> None:
    build(options())
    out, lost = tmp_path / "shards", "shards/train/train-000002.tar"
    expected = hashes(out)
    (out / "dataset.json").unlink()
    (out / lost).write_bytes(b"cut short")
    kept = {p: p.stat().st_mtime_ns for p in out.rglob("*.tar") if p != out / lost}
    result = build(options())
    assert 0 < result.built_images <= 8
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert hashes(out) == expected


def test_receipts_that_do_not_count(options: Options, tmp_path: Path) -> None:
    """A receipt that is damaged, or from a version with other columns, only means that its shard is built again."""
    build(options())
    out = tmp_path / "shards"
    expected = hashes(out)
    (out / "dataset.json").unlink()
    damaged, old = sorted((out / ".build" / "receipts").iterdir())[:2]
    damaged.write_bytes(damaged.read_bytes()[:100])
    pd.read_parquet(old).drop(columns="jpg_crc32").to_parquet(old)
    assert 0 < build(options()).built_images <= 16
    assert hashes(out) == expected


def test_too_many_rejections_end_the_build(options: Options, collection: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(collection / "train", images)
    for path in sorted(images.rglob("*.jpg"))[:20]:
        path.write_bytes(b"")
    with pytest.raises(BuildError, match=r"more than 10 % .* empty"):
        build(options(images=[str(images)], max_rejected=0.1))
    assert not (tmp_path / "shards" / "dataset.json").exists()
    with pytest.raises(DatasetError, match="the build is not finished, run it again"):
        ShardedDataset.open(tmp_path / "shards")
    assert build(options(images=[str(images)], max_rejected=0.5)).manifest["counts"]["rejected"] > 15


def test_rejected_images_are_tried_again_and_only_their_shards_are_written(
    options: Options, collection: Path, dataset_path: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(collection / "train", images)
    damaged = sorted(path for path in images.rglob("*.jpg") if path.stat().st_size > 100)[:4]
    whole = {path: path.read_bytes() for path in damaged}
    for path in damaged:
        path.write_bytes(b"")
    chosen = options(images=[str(images)], max_rejected=0.5, title="Small <set>")
    assert build(chosen).manifest["counts"]["rejected"] == 6
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*.tar")}
    for path, data in whole.items():
        path.write_bytes(data)
    assert build(chosen).already_complete, "what was rejected stays so"
    result = build(replace(chosen, retry_rejected=True))
    assert result.manifest["counts"]["rejected"] == 2
    assert 0 < result.built_images < len(before) * 8
    assert hashes(tmp_path / "shards") == hashes(dataset_path)
    shards_with_rejects = pd.read_parquet(tmp_path / "shards" / "rejects.parquet")
    assert len(shards_with_rejects) == 2
    kept = [path for path, time in before.items() if path.exists() and path.stat().st_mtime_ns == time]
    assert kept, "shards without a rejection are left alone"
    again = build(replace(chosen, retry_rejected=True))
    assert again.manifest == result.manifest
    assert again.built_images <= 16
