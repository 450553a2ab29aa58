"""Views and copies of marks and lists of keys: what is left, counted and stated, and what verify says of it."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk_data.build import BuildOptions, build
from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.format import SPLITS, canonical_json, content_sha256_of
from lmk_data.errors import DatasetError, UserError
from lmk_data.mark import Mark
from lmk_data.options import PlanRule, Recipe, Selection
from lmk_data.report.figures import read_figures
from lmk_data.report.summary import terminal_summary
from lmk_data.verify.dataset import verify
from lmk_data.views.marks import marks_csv, parse_marks
from lmk_data.views.selection import select
from lmk_data.views.view import write_view
from tests.data.views.members import members
from tests.drawing import draw

Samples = dict[str, tuple[str, int]]  # split and landmark id by key, in the order of the indexes


def samples_of(dataset: ShardedDataset) -> Samples:
    frames = {split: dataset.index(split, ["key", "landmark_id"]) for split in dataset.splits}
    return {key: (split, i) for split, frame in frames.items() for key, i in frame.itertuples(index=False)}


def chosen_by_hand(samples: Samples, listed: Counter[int], selection: Selection) -> Samples:
    """What a selection leaves, rule by rule."""
    marks, left = selection.marks or {}, {}
    sizes = Counter(listed)
    for key, (split, landmark_id) in samples.items():
        mark = marks.get(key)
        excluded = (mark and mark.action == "exclude") or key in (selection.exclude or ())
        sizes[landmark_id] -= 1
        if excluded or (selection.include is not None and key not in selection.include):
            continue
        left[key] = split, int(mark.landmark_id) if mark else landmark_id
        sizes[left[key][1]] += 1
    for landmark_id in set(listed) - {i for _, i in left.values()}:
        sizes[landmark_id] = 0
    classes = [i for i in listed if sizes[i] >= (selection.min_samples or 0)]
    classes = sorted(classes, key=lambda i: -sizes[i])[: selection.top]
    kept, seen = {}, Counter[int]()
    for key, (split, landmark_id) in left.items():
        seen[landmark_id] += split == "train"
        is_over = split == "train" and seen[landmark_id] > (selection.max_per_class or 99)
        if landmark_id in classes and not is_over:
            kept[key] = split, landmark_id
    return kept


@settings(max_examples=12)
@given(st.data())
def test_any_marks_leave_what_a_person_would_and_counts_reconcile(dataset_path: Path, data: st.DataObject) -> None:
    dataset = ShardedDataset.open(dataset_path)
    samples = samples_of(dataset)
    listed = Counter(
        dict(zip(dataset.classes["landmark_id"].tolist(), dataset.classes["listed"].tolist(), strict=True))
    )
    some_keys, ids = st.lists(st.sampled_from(sorted(samples)), max_size=15, unique=True), [str(i) for i in listed]
    a_mark = st.one_of(st.just(Mark("exclude")), st.sampled_from(ids).map(lambda i: Mark("relabel", i)))
    marks = {key: data.draw(a_mark) for key in data.draw(some_keys)}
    excluded = {key for key in data.draw(some_keys) if key not in marks}
    pool = data.draw(st.none() | st.just(tuple(sorted(samples)[3:])))
    top, cap = data.draw(st.sampled_from([None, 2, 4])), data.draw(st.sampled_from([None, 3]))
    least = data.draw(st.sampled_from([None, 8]))
    selection = Selection(pool, tuple(excluded), marks, min_samples=least, top=top, max_per_class=cap)
    expected = chosen_by_hand(samples, listed, selection)
    if not any(split == "train" for split, _ in expected.values()):
        return
    subset = select(dataset, selection)
    kept = {
        key: (split, landmark_id)
        for split, table in subset.rows.items()
        for key, landmark_id in zip(table["key"].to_pylist(), table["landmark_id"].to_pylist(), strict=True)
    }
    assert list(kept.items()) == list(expected.items())
    classes = subset.classes
    assert classes["label"].tolist() == list(range(len(classes)))
    ids_of_labels = classes["landmark_id"].tolist()
    for split, table in subset.rows.items():
        assert [ids_of_labels[label] for label in table["label"].to_pylist()] == table["landmark_id"].to_pylist()
        assert Counter(table["label"].to_pylist()) == {i: n for i, n in classes[split].items() if n}
    gone = [split for key, (split, _) in samples.items() if key in excluded or (pool and key not in pool)]
    gone += [samples[key][0] for key, mark in marks.items() if mark.action == "exclude" and (not pool or key in pool)]
    removed: dict[str, Any] = {**subset.removed}
    assert removed["marked"] == {split: gone.count(split) for split in SPLITS}
    for split in SPLITS:
        assert removed[split] == dataset.num_samples(split) - classes[split].sum() >= removed["marked"][split]
    moved = [split for key, (split, landmark_id) in kept.items() if samples[key][1] != landmark_id]
    assert subset.relabelled is not None
    assert {name: n for name, n in subset.relabelled.items() if name in SPLITS} == {s: moved.count(s) for s in SPLITS}
    assert (classes["counted"] >= classes["listed"]).all()


@pytest.fixture
def marks(dataset: ShardedDataset) -> dict[str, Mark]:
    """The class 7 becomes empty, the class 113209 the largest, and a sample of each split changes its class."""
    samples = samples_of(dataset)
    made = {key: Mark("exclude", note="a, plan") for key, (_, landmark_id) in samples.items() if landmark_id == 7}
    for split in SPLITS:
        keys = [key for key, place in samples.items() if place == (split, 138982)]
        made |= {key: Mark("relabel", "113209") for key in keys[: 14 if split == "train" else 1]}
    return made


def test_a_marked_view_is_a_dataset_as_any_other(
    dataset: ShardedDataset, marks: dict[str, Mark], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "marks.csv").write_bytes(marks_csv(marks))
    (tmp_path / "renamed.csv").write_bytes(marks_csv({k: Mark(m.action, m.landmark_id) for k, m in marks.items()}))
    subset = ["subset", dataset.location, "--out", str(tmp_path / "view"), "--marks"]
    assert main([*subset, str(tmp_path / "marks.csv")]) == 0
    said = capsys.readouterr().out
    assert "left out by marks and lists of keys: 5 of train, 1 of val, 1 of test" in said
    assert "relabelled: 14 of train, 1 of val, 1 of test" in said
    view_of = json.loads((tmp_path / "view" / "dataset.json").read_bytes())["view_of"]
    assert view_of["removed"]["marked"] == {"train": 5, "val": 1, "test": 1}
    assert [view_of["relabelled"][split] for split in SPLITS] == [14, 1, 1]
    before = (tmp_path / "view" / "dataset.json").stat().st_mtime_ns
    assert main([*subset, str(tmp_path / "renamed.csv"), "--quiet"]) == 0, "the same marks, by content"
    assert (tmp_path / "view" / "dataset.json").stat().st_mtime_ns == before
    assert main([*subset, str(tmp_path / "marks.csv"), "--top", "2", "--quiet"]) == 1
    assert main(["verify", str(tmp_path / "view"), "--quiet", "--workers", "1"]) == 0
    with ShardedDataset.open(tmp_path / "view") as view:
        assert 7 not in view.classes["landmark_id"].tolist()
        assert all(view.sample(key).landmark_id == 113209 for key, mark in marks.items() if mark.action == "relabel")
        said = terminal_summary(read_figures(view, workers=1))
    assert "chosen: marks that leave out 7 samples and relabel 16" in said
    assert "+ 7 left out by marks" in said
    assert "relabelled: 14 of train, 1 of val, 1 of test" in said


@pytest.mark.slow
def test_a_copy_writes_the_labels_that_marks_gave(
    dataset: ShardedDataset, marks: dict[str, Mark], tmp_path: Path
) -> None:
    (tmp_path / "marks.csv").write_bytes(marks_csv(marks))
    words = ["--marks", str(tmp_path / "marks.csv"), "--quiet"]
    assert main(["subset", dataset.location, "--out", str(tmp_path / "view"), *words]) == 0
    assert main(["subset", dataset.location, "--out", str(tmp_path / "copy"), "--copy", "--workers", "1", *words]) == 0
    assert members(tmp_path / "copy") == members(tmp_path / "view")
    assert main(["verify", str(tmp_path / "copy"), "--quiet", "--workers", "1"]) == 0
    with ShardedDataset.open(tmp_path / "copy") as copy:
        assert copy.classes["landmark_id"][0] == 113209
        labels = {str(i): label for label, i in enumerate(copy.classes["landmark_id"])}
        in_tars = {one["__key__"]: (one["cls"], json.loads(one["json"])) for one in copy.webdataset("train")}
        assert {key: labels["113209"] for key in marks if key in in_tars} == {
            key: int(cls)
            for key, (cls, described) in in_tars.items()
            if key in marks and described["label"] == int(cls)
        }
        view_of = json.loads((tmp_path / "view" / "dataset.json").read_bytes())["view_of"]
        assert {"path": view_of["path"], **copy.manifest["source"]["subset_of"]} == view_of
    assert main(["export", str(tmp_path / "copy"), "--to", "timm", "--quiet"]) == 0


def test_a_view_of_a_marked_view_is_as_if_marked_at_once(
    dataset: ShardedDataset, marks: dict[str, Mark], tmp_path: Path
) -> None:
    rule: dict[str, Any] = {"min_samples": 8, "top": 2, "max_per_class": 6}
    write_view(dataset, Selection(marks=marks), str(tmp_path / "marked"))
    at_once = write_view(dataset, Selection(marks=marks, **rule), str(tmp_path / "at-once"))
    with ShardedDataset.open(tmp_path / "marked") as marked:
        later = write_view(marked, Selection(**rule), str(tmp_path / "later"))
        with pytest.raises(
            UserError, match=r"--marks: not in .*marked: 7 keys, such as .*; keys are in the column key"
        ):
            write_view(marked, Selection(marks=marks), str(tmp_path / "again"))
        again = write_view(marked, Selection(marks=marks, ignore_unknown=True), str(tmp_path / "again"))
    for name in ("classes.parquet", *(f"index/{split}.parquet" for split in SPLITS)):
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "at-once" / name).read_bytes()
    for field in ("removed", "relabelled", "path", "content_sha256"):
        assert later["view_of"][field] == at_once["view_of"][field]  # type: ignore[literal-required]
    assert later["view_of"]["selection"] == [{"marks": at_once["view_of"]["selection"][0]["marks"]}, rule]
    assert again["content_sha256"] == ShardedDataset.open(tmp_path / "marked").manifest["content_sha256"]
    back = {key: Mark("relabel", "138982") for key, mark in marks.items() if mark.action == "relabel"}
    with ShardedDataset.open(tmp_path / "marked") as marked:
        undone = write_view(marked, Selection(marks=back), str(tmp_path / "undone"))
    assert sum(undone["view_of"]["relabelled"][split] for split in SPLITS) == 0  # type: ignore[literal-required]
    for name in ("later", "undone"):
        assert not verify(str(tmp_path / name), workers=1, quick=True, quiet=True).problems


def test_keys_are_read_from_lists_of_any_form(
    dataset: ShardedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = dataset.index("train")["key"].tolist()
    (tmp_path / "plain.txt").write_text(f"{keys[0]}\r\n\r\n {keys[1]}\n")
    pd.DataFrame({"key": keys[2:4], "other": ["x", "y"]}).to_csv(tmp_path / "list.csv")
    pd.DataFrame({"key": keys[3:5]}).to_parquet(tmp_path / "list.parquet")
    lists = [str(tmp_path / name) for name in ("plain.txt", "list.csv", "list.parquet")]
    words = ["subset", dataset.location, "--quiet", "--out"]
    given = ["--exclude", *lists[:2], "--exclude", lists[2]]
    assert main([*words, str(tmp_path / "without"), *given]) == 0
    with ShardedDataset.open(tmp_path / "without") as view:
        assert view.index("train")["key"].tolist() == keys[5:]
    assert main([*words, str(tmp_path / "only"), "--include", *lists, "--exclude", lists[0]]) == 0
    with ShardedDataset.open(tmp_path / "only") as view:
        assert view.index("train")["key"].tolist() == keys[2:5]
        assert view.splits == ("train",)
    (tmp_path / "marks.csv").write_text(f"key,action\n{keys[0]},exclude\n")
    assert main([*words, str(tmp_path / "x"), "--exclude", str(tmp_path / "marks.csv")]) == 1
    assert "so it is a file of marks; give it with --marks" in capsys.readouterr().err
    pd.DataFrame({"id": keys}).to_parquet(tmp_path / "ids.parquet")
    assert main([*words, str(tmp_path / "x"), "--exclude", str(tmp_path / "ids.parquet")]) == 1
    assert "not a list of keys: " in capsys.readouterr().err
    assert main([*words, str(tmp_path / "x"), "--include", lists[0], "--exclude", lists[0]]) == 1
    assert "leaves no training image; choose more" in capsys.readouterr().err


def test_what_is_unknown_or_contradicts_is_refused_or_ignored(
    dataset: ShardedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = dataset.index("train")["key"].tolist()
    header = "key,action,landmark_id\n"
    (tmp_path / "a.csv").write_text(f"{header}{keys[0]},exclude,\n{keys[1]},exclude,\n{keys[2]},exclude,\n")
    (tmp_path / "b.csv").write_text(f"{header}{keys[1]},relabel,7.0\n{keys[3]},relabel,7.0\nnobody,relabel,12\n")
    (tmp_path / "keys.txt").write_text(f"{keys[3]}\n{keys[4]}\nnowhere\n")
    words = ["subset", dataset.location, "--out", str(tmp_path / "view"), "--marks"]
    both = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    assert main([*words, *both]) == 1
    assert f"a.csv {both[1]}: different marks for 1 key, such as {keys[1]}; keep one" in capsys.readouterr().err
    assert main([*words, both[1]]) == 1
    assert f"--marks: not in {dataset.location}: 1 key, such as nobody; keys are in" in capsys.readouterr().err
    more = ["--exclude", str(tmp_path / "keys.txt")]
    assert main([*words, both[1], *more]) == 1
    assert f"leave out and relabel 1 key, such as {keys[3]}; keep one of both" in capsys.readouterr().err
    assert main([*words, *both, *more, "--ignore-unknown"]) == 0
    said = capsys.readouterr()
    assert len([line for line in said.err.splitlines() if line.endswith("; these are ignored")]) == 4
    assert "left out by marks and lists of keys: 3 of train, 0 of val, 0 of test" in said.out
    with ShardedDataset.open(tmp_path / "view") as view:
        assert view.index("train")["key"].tolist() == [keys[1], keys[3], *keys[5:]]
    (tmp_path / "c.csv").write_text(f"{header}{keys[1]},relabel,999\n")
    assert main([*words, str(tmp_path / "c.csv"), "--ignore-unknown", "--overwrite"]) == 1
    assert f"1 landmark id of no class in {dataset.location}, such as 999 (for {keys[1]})" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words[:-1], "--ignore-unknown", "--top", "2", "--unheard-of"])
    assert main([*words[:-1], "--ignore-unknown", "--top", "2"]) == 1
    assert "--ignore-unknown: is for --marks, --exclude and --include" in capsys.readouterr().err


def rewrite(view: Path, split: str, change: Callable[[pd.DataFrame], None]) -> None:
    """Change an index of a view, and the hashes of the manifest that cover it."""
    path = view / "index" / f"{split}.parquet"
    table = pq.read_table(path)
    frame = table.to_pandas()
    change(frame)
    frame["shard"] = frame["shard"].astype("category")
    pq.write_table(table.from_pandas(frame, table.schema, preserve_index=False), path, compression="zstd")
    manifest = json.loads((view / "dataset.json").read_bytes())
    data = path.read_bytes()
    manifest["files"][f"index/{split}.parquet"] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_bytes": len(data),
    }
    manifest["content_sha256"] = content_sha256_of(manifest["files"])
    (view / "dataset.json").write_bytes(canonical_json(manifest) + b"\n")


def test_verify_notices_another_label_in_the_index_of_a_view(
    dataset: ShardedDataset, marks: dict[str, Mark], tmp_path: Path
) -> None:
    def exchange(frame: pd.DataFrame) -> None:  # the counts of all classes stay
        first, second = (frame.index[frame["landmark_id"] == i][-1] for i in (138982, 113209))
        for name in ("label", "landmark_id"):
            a, b = frame[name][first], frame[name][second]
            frame.loc[first, name], frame.loc[second, name] = b, a

    def other_source(frame: pd.DataFrame) -> None:
        frame.loc[0, "source"] = "elsewhere.jpg"

    for name, selection in (("marked", Selection(marks=marks)), ("plain", Selection(min_samples=6))):
        for change, said in ((exchange, "relabelled"), (other_source, "its source is not that of the base")):
            view = tmp_path / f"{name}-{change.__name__}"
            write_view(dataset, selection, str(view))
            rewrite(view, "train", change)
            problems = verify(str(view), workers=1, quick=True, quiet=True).problems
            assert len(problems) == 1
            assert said in str(problems[0])


def test_verify_notices_a_damaged_index_of_the_base(dataset_path: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_path, tmp_path / "base")
    with ShardedDataset.open(tmp_path / "base") as base:
        write_view(base, Selection(top=2), str(tmp_path / "view"))
    with open(tmp_path / "base" / "index" / "val.parquet", "ab") as file:
        file.write(b"x")
    problems = verify(str(tmp_path / "view"), workers=1, quick=True, quiet=True).problems
    assert [problem.what for problem in problems] == ["is not the file that the manifest of the base lists"]


def test_marks_and_datasets_may_be_behind_urls(dataset_path: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{dataset_path}/", "/marked/shards/", recursive=True)
    key = ShardedDataset.open(dataset_path).index("train")["key"][0]
    memory.pipe("/marked/marks.csv", f"key,action,landmark_id\n{key},relabel,7\n".encode())
    words = ["subset", "memory://marked/shards", "--marks", "memory://marked/marks.csv", "--quiet", "--out"]
    assert main([*words, "memory://marked/view"]) == 0
    assert main(["verify", "memory://marked/view", "--quick", "--quiet", "--workers", "1"]) == 0
    with ShardedDataset.open("memory://marked/view") as view:
        assert view.sample(key).landmark_id == 7
    assert main([*words[:-1], "--exclude", "memory://marked/nothing.txt", "--out", str(tmp_path / "view")]) == 1


def test_class_names_are_compared_as_people_type_them(tmp_path: Path) -> None:
    for number, name in enumerate(("K\u00f6ln, Dom", "1.0", "1")):
        for i in range(2):
            draw(tmp_path / "train" / name / f"{number}{i}.jpg", number, i)
    options = BuildOptions(
        [str(tmp_path / "train")], "classes", tmp_path / "shards", PlanRule(1), Recipe(size=32), workers=1, quiet=True
    )
    build(options)
    with ShardedDataset.open(tmp_path / "shards") as dataset:
        first = dataset.index("train").groupby("landmark_id")["key"].first()
        typed = {first["1"]: Mark("relabel", " Ko\u0308ln, Dom"), first["1.0"]: Mark("relabel", "1")}
        subset = select(dataset, Selection(marks=parse_marks(marks_csv(typed), "marks.csv").marks))
        given = subset.rows["train"].to_pandas().set_index("key")["landmark_id"]
        assert [given[first["1"]], given[first["1.0"]]] == ["K\u00f6ln, Dom", "1"]


def test_sizes_that_contradict_the_counts_are_refused(dataset: ShardedDataset, tmp_path: Path) -> None:
    write_view(dataset, Selection(marks={}), str(tmp_path / "view"))
    path = tmp_path / "view" / "classes.parquet"
    table = pq.read_table(path)
    for values in ([0] * table.num_rows, [None] * table.num_rows):
        changed = table.set_column(table.column_names.index("counted"), "counted", pa.array(values, pa.int32()))
        pq.write_table(changed, path)
        with pytest.raises(DatasetError, match="counted"):
            ShardedDataset.open(tmp_path / "view")
