"""Pictures that end the process that decodes them. tests/test_faults.py has the real deaths."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lmk_data.build import BuildOptions, build, crashes
from lmk_data.build.crashes import Note
from lmk_data.errors import DeadWorkerError
from lmk_data.options import PlanRule
from lmk_data.system.storage import NOTES_FOLDER, PLAN_TABLE
from tests.drawing import write_labels

Options = Callable[..., BuildOptions]


@pytest.mark.parametrize(("error", "left"), [(None, 0), (OSError, 0), (KeyboardInterrupt, 0), (MemoryError, 1)])
def test_a_note_stays_only_if_its_process_died(tmp_path: Path, error: type[BaseException] | None, left: int) -> None:
    def work() -> None:
        with Note(str(tmp_path / "notes")) as note:
            note.at("first")
            note.at("2nd")
            (path,) = (tmp_path / "notes").iterdir()
            assert path.read_text().rstrip() == "2nd"
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    assert len(os.listdir(tmp_path / "notes")) == left


def test_what_is_known_to_crash_is_rejected_unread_until_it_is_tried_again(options: Options, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    manifest = build(options()).manifest
    key = pq.read_table(out / "index" / "train.parquet")["key"][3].as_py()
    (out / "dataset.json").unlink()
    for path in (out / ".build" / "receipts").iterdir():
        path.unlink()
    crashes = out / ".build" / "crashes.json"
    crashes.write_text(json.dumps({"fingerprint": manifest["fingerprint"], "pictures": {key: "it ends"}}))
    assert build(options()).manifest["counts"]["rejected"] == manifest["counts"]["rejected"] + 1
    rejects = {row["key"]: (row["reason"], row["detail"]) for row in pq.read_table(out / "rejects.parquet").to_pylist()}
    assert rejects[key] == ("crash", "it ends")
    assert build(options(retry_rejected=True)).manifest == manifest
    assert not crashes.exists()


def test_a_path_that_leads_out_is_not_read_after_a_death_either(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labels(tmp_path / "labels.csv", [("../secret", 5), ("inside", 5)])
    (tmp_path / "in").mkdir()
    for name in ("secret.jpg", "in/inside.jpg"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    out, rule = tmp_path / "shards", PlanRule(min_samples=1)
    asked = options(labels=str(tmp_path / "labels.csv"), images=[str(tmp_path / "in")], rule=rule, max_rejected=1.0)
    build(asked)
    (out / "dataset.json").unlink()
    notes = out / NOTES_FOLDER
    notes.mkdir()
    for number, key in enumerate(pq.read_table(out / PLAN_TABLE)["key"].to_pylist()):
        (notes / f"{number:016x}").write_text(key)
    tried: list[str] = []

    def trying(work: object, trials: list[Any]) -> None:
        tried.extend(trial.source for trial in trials)

    monkeypatch.setattr(crashes, "how_it_ends", trying)
    build(asked)
    assert tried == ["inside.jpg"]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"fingerprint": "of another build", "pictures": {}}'])
def test_a_list_of_crashes_of_another_build_does_not_count(options: Options, tmp_path: Path, content: str) -> None:
    (tmp_path / "shards" / ".build").mkdir(parents=True)
    manifest = build(options()).manifest
    (tmp_path / "shards" / "dataset.json").unlink()
    (tmp_path / "shards" / ".build" / "crashes.json").write_text(content)
    assert build(options()).manifest == manifest


@pytest.mark.slow
def test_memory_that_runs_out_on_an_honest_picture_names_it(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder fails here, as under a limit of memory, and not in the process that tries the picture alone."""

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("simplejpeg.decode_jpeg", no_memory)
    with pytest.raises(DeadWorkerError, match=r"ran out of memory; .*; it was at .*\.jpg, which can be decoded alone"):
        build(options())
    assert not (tmp_path / "shards" / ".build" / "decoding").exists()
