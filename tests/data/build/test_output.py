"""Which output folders a build accepts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmk_data.build import BuildOptions, build
from lmk_data.build.output import begin
from lmk_data.build.plan import PlanRule
from lmk_data.build.shard import read_receipt_table, write_shard
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.format import Recipe
from lmk_data.errors import BuildError, DatasetError, UserError
from lmk_data.system.storage import open_folder
from tests.published import hashes

Options = Callable[..., BuildOptions]


def test_another_build_in_the_same_folder_is_refused_with_the_difference(options: Options, tmp_path: Path) -> None:
    build(options())
    before = hashes(tmp_path / "shards")
    with pytest.raises(UserError, match=r"plan\.seed: 0 -> 5"):
        build(options(rule=PlanRule(seed=5, samples_per_shard=8)))
    assert hashes(tmp_path / "shards") == before
    result = build(options(recipe=Recipe(size=32), overwrite=True))
    assert result.manifest["recipe"]["size"] == 32
    ShardedDataset.open(tmp_path / "shards")


def test_a_damaged_manifest_is_refused_and_overwritten(options: Options, tmp_path: Path) -> None:
    build(options())
    expected = hashes(tmp_path / "shards")
    (tmp_path / "shards" / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="not JSON"):
        build(options())
    build(options(overwrite=True))
    assert hashes(tmp_path / "shards") == expected


@pytest.mark.parametrize("begun_at", ["start", "end"])
def test_a_task_of_a_build_that_was_given_up_replaces_nothing(begun_at: str) -> None:
    """A worker that heard of nothing goes on with it, while the folder holds another build already."""
    out = open_folder(f"memory://given-up/{begun_at}")
    row = {"key": "a", "label": 0, "landmark_id": 1, "source": "a", "original_width": 8, "original_height": 8}
    published: dict[str, bytes] = {}

    def another_build() -> None:
        begin(out, {"fingerprint": "another"}, overwrite=True)
        write_shard(out, "train", 0, "another", [dict(row)], iter([b"another picture"]))
        published.update(
            {name: out.read(name) for folder in ("shards/train", ".build/receipts") for name in out.sizes(folder)}
        )

    def pictures() -> Iterator[bytes]:
        if begun_at == "end":
            another_build()
        yield b"picture"

    begin(out, {"fingerprint": "this one"}, overwrite=False)
    if begun_at == "start":
        another_build()
    with pytest.raises(BuildError, match="another build began there"):
        write_shard(out, "train", 0, "this one", [dict(row)], pictures())
    assert len(published) == 2
    assert {name: out.read(name) for name in published} == published
    with pytest.raises(DatasetError, match="the receipt of another build"):
        read_receipt_table(out, "train", 0, "this one")


def test_second_build_in_a_folder_is_refused(options: Options, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "shards" / ".build").mkdir(parents=True)
    with open(tmp_path / "shards" / ".build" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another build is at work"):
            build(options())
    build(options())
