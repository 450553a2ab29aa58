"""verify says good of a good dataset, and names file and bytes of anything else."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.format import canonical_json, content_sha256_of
from lmk_data.errors import DatasetError
from lmk_data.options import Selection
from lmk_data.verify import dataset as verify_dataset
from lmk_data.verify.dataset import Problem, _tasks, verify
from lmk_data.verify.shard import CheckedShard, ShardToCheck, check_shard
from lmk_data.views.view import write_view


@pytest.fixture
def copy(dataset_path: Path, tmp_path: Path) -> Path:
    """A dataset to damage."""
    out = tmp_path / "copy"
    shutil.copytree(dataset_path, out)
    return out


def published(dataset: Path) -> list[Path]:
    """Every published file."""
    paths = [path for path in sorted(dataset.rglob("*")) if path.is_file()]
    return [path for path in paths if path.relative_to(dataset).parts[0] not in (".build", "report")]


def flip(path: Path, position: int, bit: int) -> bytes:
    """Flip one bit; returns what the file was."""
    before = path.read_bytes()
    after = bytearray(before)
    after[position] ^= 1 << bit
    path.write_bytes(after)
    return before


def problems(dataset: Path, *, quick: bool = True) -> list[Problem]:
    return verify(str(dataset), quick=quick, workers=1, quiet=True).problems


def test_a_good_dataset_is_good(dataset_path: Path) -> None:
    found = verify(str(dataset_path), workers=2, quiet=True)
    assert not found.problems
    assert found.num_samples == found.num_decoded == 60
    assert found.num_bytes == sum(path.stat().st_size for path in published(dataset_path)) - (
        (dataset_path / "dataset.json").stat().st_size
    )


def test_webdataset_reads_a_spread_of_the_shards_or_all(dataset_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmk_data.verify.dataset._WALKED_SHARDS", 3)
    with ShardedDataset.open(dataset_path) as dataset:
        some, every = ([task.as_others_read for task in _tasks(dataset, True, thorough)] for thorough in (False, True))
    assert all(every)
    assert len(some) > 6
    assert some[0]
    assert 2 <= sum(some) <= 3


def test_what_webdataset_reads_otherwise_is_a_problem(dataset_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webdataset.tariterators.group_by_keys", lambda samples: iter([]))
    found = problems(dataset_path)
    assert found
    assert all("webdataset reads other samples" in problem.what for problem in found)


def test_a_flipped_bit_is_named_wherever_it_is(copy: Path) -> None:
    rng = random.Random(7)
    tars = [path for path in published(copy) if path.suffix == ".tar"]
    for path in [*published(copy), *rng.choices(tars, k=12)]:
        if path.name == "dataset.json":
            continue
        position = rng.randrange(path.stat().st_size)
        before = flip(path, position, rng.randrange(8))
        found = problems(copy)
        path.write_bytes(before)
        named = [p for p in found if p.location == str(path) and p.start is not None and p.end is not None]
        assert named, (path, position, found)
        assert named[0].start <= position < named[0].end  # type: ignore[operator]
        if path.suffix == ".tar":
            assert named[0].end - named[0].start < 20_000, "a sample, not the tar"  # type: ignore[operator]


def test_a_flipped_bit_of_the_manifest_is_noticed(copy: Path) -> None:
    rng, path = random.Random(8), copy / "dataset.json"
    for position in range(rng.randrange(23), path.stat().st_size, 23):
        before = flip(path, position, rng.randrange(8))
        try:
            found = problems(copy)
        except DatasetError as error:
            assert str(path) in str(error)  # noqa: PT017 - either way of saying it will do
        else:
            assert found, (position, before[max(0, position - 40) : position + 20])
        path.write_bytes(before)
    assert not problems(copy)


def test_a_shard_that_splits_name_otherwise_is_the_manifests_fault(copy: Path) -> None:
    path = copy / "dataset.json"
    manifest = json.loads(path.read_bytes())
    manifest["splits"]["train"]["shards"][1]["name"] = "shards/train/train-000009.tar"
    path.write_bytes(canonical_json(manifest) + b"\n")
    (problem,) = problems(copy)
    assert (problem.location, problem.what) == (str(path), "files are not those that splits and classes name")


def test_what_else_can_be_wrong(copy: Path) -> None:
    tar = copy / "shards" / "train" / "train-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1000])
    assert [(p.location, p.start) for p in problems(copy)] == [(str(tar), len(whole) - 1000)]
    tar.write_bytes(whole + b"x")
    assert [(p.location, p.start) for p in problems(copy)] == [(str(tar), len(whole))]
    tar.unlink()
    assert [p.location for p in problems(copy)] == [str(tar)]
    tar.write_bytes(whole)
    shutil.copy(tar, tar.with_name("train-000077.tar"))
    assert [p.what for p in problems(copy)] == ["is not in the manifest; remove it"]
    tar.with_name("train-000077.tar").unlink()
    for stray in ("index/more.parquet", "shards/more.tar", "shards/train/deeper/more.tar"):
        (copy / stray).parent.mkdir(exist_ok=True)
        shutil.copy(tar, copy / stray)
        assert [(p.location, p.what) for p in problems(copy)] == [
            (str(copy / stray), "is not in the manifest; remove it")
        ]
        (copy / stray).unlink()
    (tar.parent / ".DS_Store").touch()
    assert not problems(copy)
    (copy / "rejects.parquet").unlink()
    assert [p.location for p in problems(copy)] == [str(copy / "rejects.parquet")]


def rewritten(dataset: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> list[str]:
    """Change a table and the hashes of the manifest with it; return the problems."""
    pq.write_table(change(pq.read_table(dataset / name)), dataset / name)
    path = dataset / "dataset.json"
    manifest, data = json.loads(path.read_bytes()), (dataset / name).read_bytes()
    manifest["files"][name] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["content_sha256"] = content_sha256_of(manifest["files"])
    path.write_bytes(canonical_json(manifest) + b"\n")
    return [problem.what for problem in problems(dataset)]


def with_column(name: str, values: Callable[[pa.Table], list[object]]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(
            place, table.schema.field(place), pa.array(values(table), table.schema.field(place).type)
        )

    return change


def as_int32(table: pa.Table) -> pa.Table:
    place = table.column_names.index("landmark_id")
    return table.set_column(place, "landmark_id", table["landmark_id"].cast(pa.int32()))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("index/train.parquet", as_int32, "does not have the columns of the format"),
        ("index/val.parquet", with_column("original_bytes", lambda t: [0] * len(t)), "original_bytes is out of range"),
        ("rejects.parquet", with_column("reason", lambda t: ["because"] * len(t)), "a reason that the format does not"),
        ("rejects.parquet", with_column("split", lambda t: ["nowhere"] * len(t)), "a split that is none of train"),
        ("rejects.parquet", with_column("landmark_id", lambda t: [12345] * len(t)), "not its label's"),
        ("rejects.parquet", with_column("key", lambda t: ["same"] * len(t)), "a key that occurs twice"),
    ],
)
def test_what_a_reader_refuses_is_a_problem(
    copy: Path, name: str, change: Callable[[pa.Table], pa.Table], said: str
) -> None:
    assert any(said in what for what in rewritten(copy, name, change))


@pytest.mark.parametrize("splits", [{}, {"test": 0}])
def test_a_dataset_without_splits_or_with_an_empty_one_is_refused(copy: Path, splits: dict[str, int]) -> None:
    path = copy / "dataset.json"
    manifest = json.loads(path.read_bytes())
    manifest["splits"] = {
        split: {**manifest["splits"][split], "num_samples": 0, "num_bytes": 0, "shards": []} for split in splits
    }
    path.write_bytes(canonical_json(manifest) + b"\n")
    with pytest.raises(DatasetError, match=r"splits: there is none|splits\.test: has no samples"):
        ShardedDataset.open(copy)


def test_a_view_is_verified_with_the_pictures_that_it_uses(copy: Path, tmp_path: Path) -> None:
    with ShardedDataset.open(copy) as dataset:
        write_view(dataset, Selection(top=2), str(tmp_path / "view"))
    assert not problems(tmp_path / "view", quick=False)
    with ShardedDataset.open(tmp_path / "view") as view:
        row = view.index("train").iloc[0]
    tar = copy / row["shard"]
    flip(tar, int(row["jpg_offset"]) + 100, 3)
    (found,) = problems(tmp_path / "view")
    assert found.location == str(tar)
    assert row["key"] in found.what
    manifest = json.loads((copy / "dataset.json").read_bytes())
    manifest["files"]["README.md"]["sha256"] = "0" * 64
    manifest["content_sha256"] = content_sha256_of(manifest["files"])
    (copy / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="a view of another dataset"):
        verify(str(tmp_path / "view"), quiet=True)


def test_the_command_says_where_and_exits_1(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copy)]) == 0
    assert "good: " in capsys.readouterr().out
    tar = copy / "shards" / "val" / "val-000000.tar"
    flip(tar, 3, 1)
    assert main(["verify", str(copy), "--quick", "--quiet"]) == 1
    said = capsys.readouterr()
    assert f"{tar}: bytes 3 to 3:" in said.out
    assert said.err.count("\n") == 1
    os.remove(copy / "dataset.json")
    assert main(["verify", str(copy)]) == 1
    assert "the build is not finished, run it again" in capsys.readouterr().err


def test_the_shards_that_webdataset_reads_come_first(dataset_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import torch with webdataset, and joblib replaces those that grow after their first task."""
    read: list[bool] = []

    def noted(task: ShardToCheck) -> CheckedShard:
        read.append(task.as_others_read)
        return check_shard(task)

    monkeypatch.setattr(verify_dataset, "_WALKED_SHARDS", 2)
    monkeypatch.setattr(verify_dataset, "check_shard", noted)
    assert not verify(str(dataset_path), workers=1, quiet=True).problems
    assert len(read) > sum(read) == 2
    assert read == sorted(read, reverse=True)
