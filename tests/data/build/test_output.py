"""Which output folders a build accepts, and what stays there."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmk_data.build import BuildOptions, build
from lmk_data.build.output import writing
from lmk_data.build.receipts import read_receipt_table
from lmk_data.build.shard import ShardPlace, write_shard
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.manifest import Provenance
from lmk_data.errors import BuildError, DatasetError, UserError
from lmk_data.options import PlanRule, Recipe
from lmk_data.system.files import file_lock
from lmk_data.system.storage import LOCK, Folder, open_folder
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


def begin(out: Folder, fingerprint: str, *, overwrite: bool = False) -> None:
    with writing(out, overwrite=overwrite) as output:
        output.begin(Provenance(fingerprint, {}, {}, {}, title="", license=""))


@pytest.mark.parametrize("begun_at", ["start", "end"])
def test_a_task_of_a_build_that_was_given_up_replaces_nothing(begun_at: str) -> None:
    """A worker that heard of nothing goes on with it, while the folder holds another build already."""
    out = open_folder(f"memory://given-up/{begun_at}")
    row = {"key": "a", "label": 0, "landmark_id": 1, "source": "a", "original_width": 8, "original_height": 8}
    published: dict[str, bytes] = {}

    def another_build() -> None:
        begin(out, "another", overwrite=True)
        write_shard(ShardPlace(out, "train", 0, "another"), [row], [b"another picture"])
        published.update(
            {name: out.read(name) for folder in ("shards/train", ".build/receipts") for name in out.sizes(folder)}
        )

    def pictures() -> Iterator[bytes]:
        if begun_at == "end":
            another_build()
        yield b"picture"

    begin(out, "this one")
    if begun_at == "start":
        another_build()
    with pytest.raises(BuildError, match="another build began there"):
        write_shard(ShardPlace(out, "train", 0, "this one"), [row], pictures())
    assert len(published) == 2
    assert {name: out.read(name) for name in published} == published
    with pytest.raises(DatasetError, match="the receipt of another build"):
        read_receipt_table(out, "train", 0, "this one")


def test_second_build_in_a_folder_is_refused(options: Options, tmp_path: Path) -> None:
    (tmp_path / "shards" / ".build").mkdir(parents=True)
    with (
        file_lock(tmp_path / "shards" / LOCK, wait_seconds=0),
        pytest.raises(UserError, match="another build is at work"),
    ):
        build(options())
    build(options())


def test_a_command_that_wrote_nothing_leaves_nothing_behind(tmp_path: Path) -> None:
    existing = tmp_path / "existing"
    existing.mkdir()
    for folder in (existing, tmp_path / "new" / "shards"):
        with writing(open_folder(folder), overwrite=False):
            assert (folder / LOCK).exists()
        assert not (folder / ".build").exists()
    assert existing.exists()
    assert not (tmp_path / "new" / "shards").exists()


def test_rows_given_to_a_shard_are_not_changed() -> None:
    out = open_folder("memory://rows-not-changed")
    begin(out, "f")
    written = {"key": "a", "label": 0, "landmark_id": 1, "source": "a", "original_width": 8, "original_height": 9}
    rejected = {"key": "b", "label": 0, "landmark_id": 1, "source": "b", "reason": "empty", "detail": "no bytes"}
    rows = [rejected, written]
    before = [dict(row) for row in rows]
    receipt = write_shard(ShardPlace(out, "train", 0, "f"), rows, [b"picture"])
    assert rows == before
    assert (receipt.num_planned, receipt.num_samples, receipt.reasons) == (2, 1, {"empty": 1})
    table = read_receipt_table(out, "train", 0, "f").to_pylist()
    assert [(row["key"], row["position"], row["reason"]) for row in table] == [("b", None, "empty"), ("a", 0, None)]
    offset, size = table[1]["jpg_offset"], table[1]["jpg_size"]
    assert out.read_range(receipt.name, offset, size) == b"picture"
    with pytest.raises(ValueError, match="zip"):
        write_shard(ShardPlace(out, "train", 0, "f"), rows, [b"picture", b"of no row"])


def precious(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "files",
    [
        {".build/checkouts/a": "another tool's", "README.md": "mine", "index/a": "mine"},
        {".build/plan.json": '{"fingerprint": "of another tool"}', "README.md": "mine"},
        {".build/lock": "", "README.md": "mine"},
        {".build/yours": "mine"},
        {"dataset.json": '{"name": "mine"}', "shards/a": "mine", "report/b": "mine", "README.md": "mine"},
        {"dataset.json": "{", "shards/train/train-000000.tar": "mine"},
        {"dataset.json": "[1]", ".build/checkouts/a": "another tool's"},
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_another_program_is_never_built_in(
    options: Options, tmp_path: Path, files: dict[str, str], overwrite: bool
) -> None:
    for name, content in files.items():
        path = tmp_path / "shards" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    before = precious(tmp_path / "shards")
    with pytest.raises((UserError, DatasetError), match=r"holds something else|not JSON|not the manifest"):
        build(options(overwrite=overwrite))
    assert precious(tmp_path / "shards") == before


def test_overwriting_a_build_leaves_what_no_build_writes(options: Options, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    build(options())
    own = (
        "shards/notes.txt",
        "shards/train/train-000000.tar.bak",
        "report/slides.html",
        ".build/receipts/mine",
        "a.txt",
    )
    for name in own:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    build(options(recipe=Recipe(size=32), rule=PlanRule(samples_per_shard=30), overwrite=True))
    assert [(out / name).read_text() for name in own] == ["mine"] * len(own)
    assert len(list((out / "shards" / "train").glob("*.tar"))) == len(ShardedDataset.open(out).shards("train"))


def test_nothing_is_written_through_a_link(options: Options, tmp_path: Path) -> None:
    """A stranger's folder, which a git clone or an archive brings with its links."""
    build(options())
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "unfinished").mkdir(parents=True)
    (elsewhere / "unfinished" / "a").write_text("mine")
    out = tmp_path / "shards"
    for name in (".build", "shards", "index", "shards/train"):
        shutil.move(out / name, tmp_path / "moved")
        (out / name).symlink_to(elsewhere)
        before = precious(elsewhere)
        with pytest.raises(UserError, match=r"is a symbolic link|holds another build|holds something else"):
            build(options(overwrite=True, recipe=Recipe(size=32)))
        assert precious(elsewhere) == before
        (out / name).unlink()
        shutil.move(tmp_path / "moved", out / name)
    build(options(overwrite=True))
    linked = tmp_path / "linked"  # the folder itself may be a link: the user named it
    linked.symlink_to(out)
    assert build(options(out=linked)).already_complete
    (out / LOCK).unlink()
    (out / LOCK).symlink_to(elsewhere / "made")
    with pytest.raises(UserError, match="is a symbolic link"):
        build(options())
    assert not (elsewhere / "made").exists()


def test_a_folder_with_what_systems_leave_is_empty(tmp_path: Path) -> None:
    for name in ("lost+found", "@eaDir"):
        (tmp_path / name).mkdir()
    for name in ("desktop.ini", ".DS_Store", "._x"):
        (tmp_path / name).touch()
    with writing(open_folder(tmp_path), overwrite=False):
        pass
    (tmp_path / "recycled").touch()
    with pytest.raises(UserError, match="holds something else"), writing(open_folder(tmp_path), overwrite=False):
        pass
