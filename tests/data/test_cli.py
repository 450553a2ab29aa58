"""Command lines of `lmk-shard` that are refused, and dry runs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk_data.build import BuildOptions
from lmk_data.cli import main
from tests.published import hashes

Options = Callable[..., BuildOptions]


def command(options: BuildOptions, *more: str) -> list[str]:
    rule = options.rule
    words = ["build", "--images", *options.images, "--labels", options.labels, "--out", str(options.out)]
    words += ["--size", str(options.recipe.size), "--samples-per-shard", str(rule.samples_per_shard)]
    return [*words, "--title", options.title, *more]


def refusals(options: BuildOptions, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    good = command(options)
    (tmp_path / "bad.csv").write_text("name,class\nx,1\n")
    (tmp_path / "empty.csv").write_text("id,landmark_id\n")
    (tmp_path / "other.csv").write_text("id,landmark_id\n" + "".join(f"{i:016x},1\n" for i in range(9)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("mine")
    return {
        "columns": ([*good, "--labels", str(tmp_path / "bad.csv")], "no column id; found name, class"),
        "empty": ([*good, "--labels", str(tmp_path / "empty.csv")], "lists no image"),
        "absent": ([*good, "--labels", str(tmp_path / "none.csv")], "no such label table"),
        "no image": ([*good, "--labels", str(tmp_path / "other.csv")], "is --images right?"),
        "no folder": ([*good, "--images", str(tmp_path / "nowhere")], "no such folder"),
        "output": ([*good, "--out", str(tmp_path / "full")], "holds something else"),
        "top": ([*good, "--top", "0"], "--top 0"),
        "split": ([*good, "--split", "0.5", "0.2", "0.2"], "must sum to 1"),
        "size": ([*good, "--size", "0"], "--size 0"),
        "min": ([*good, "--min-samples", "1000"], "leaves no class"),
        "version": (["report", str(tmp_path / "future")], "format version 2, this lmk reads 1"),
        "unfinished": (["report", str(tmp_path / "full")], "not a dataset"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "columns",
        "empty",
        "absent",
        "no image",
        "no folder",
        "output",
        "top",
        "split",
        "size",
        "min",
        "version",
        "unfinished",
    ],
)
def test_mistakes_are_one_line_and_exit_1(
    name: str, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "future").mkdir()
    (tmp_path / "future" / "dataset.json").write_text('{"format": "lmk-shards", "version": 2}')
    words, said = refusals(options(), tmp_path)[name]
    before = hashes(tmp_path)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("lmk-shard: error: ")
    assert error.count("\n") == 1
    assert hashes(tmp_path) == before, "nothing lost, nothing half-written"


def test_command_lines_that_do_not_parse_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["build", "--frobnicate"], ["nonsense"], ["build", "--fit", "stretch"], ["build", "--top", "many"]):
        with pytest.raises(SystemExit) as exit_info:
            main(words)
        assert exit_info.value.code == 2
    capsys.readouterr()


def test_dry_run_needs_only_the_labels(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nothing"
    assert main(["build", "--labels", str(collection / "train.csv"), "--out", str(out), "--dry-run"]) == 0
    assert "would write 62 images of 5 classes" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.slow
def test_full_scale_plan_has_every_published_number(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "train.csv"
    tool = shared.parent / "tools" / "make_glr_labels.py"
    subprocess.run([sys.executable, str(tool), str(labels)], check=True, capture_output=True)
    for rule, said in (
        (["--min-samples", "6"], "1,490,153 images of 57,042 classes"),
        (["--top", "12"], "19,999 images of 12 classes"),
        (["--top", "20"], "26,779 images of 20 classes"),
    ):
        assert main(["build", "--labels", str(labels), "--dry-run", *rule]) == 0
        assert said in capsys.readouterr().out
