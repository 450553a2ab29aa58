"""Command lines of `lmk-shard`: what they parse to, which are refused, and dry runs."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk_data.build import BuildOptions
from lmk_data.cli import main, parse
from lmk_data.errors import UserError
from lmk_data.options import Build, PlanRule, Recipe, Selection, Subset
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
        "quality": ([*good, "--quality", "101"], "--quality 101: must be from 1 to 100"),
        "seed": ([*good, "--seed", "-1"], "--seed -1: must be from 0 to 2^63 - 1"),
        "rejected": ([*good, "--max-rejected", "2"], "--max-rejected 2.0: must be from 0 to 1"),
        "workers": ([*good, "--scheduler", "tcp://x:1", "--workers", "2"], "--workers 2: is for one machine"),
        "dask": ([*good, "--engine", "dask"], "--engine dask needs --scheduler ADDRESS"),
        "local": ([*good, "--engine", "local", "--scheduler", "tcp://x:1"], "--engine local contradicts --scheduler"),
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
        "quality",
        "seed",
        "rejected",
        "workers",
        "dask",
        "local",
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


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "build --frobnicate",
        "build --fit stretch",
        "build --top many",
        "build --engine spark",
        "build --filter box",  # a field of Recipe that is no option
        "build --rule.top 3",
        "build --plan.top 3",
        "subset x",
        "subset x --out y --selection.top 3",
    ],
)
def test_command_lines_that_do_not_parse_exit_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(line.split())
    assert exit_info.value.code == 2
    capsys.readouterr()


def test_a_command_line_is_the_options_that_the_work_takes() -> None:
    assert parse(["build"]) == Build(BuildOptions())
    line = "build --images a b --out o --top 3 --split 0.5 0.25 0.25 --fit pad --size 96 --title t --workers 2 --quiet"
    rule, recipe = PlanRule(top=3, split=(0.5, 0.25, 0.25)), Recipe(size=96, fit="pad")
    expected = BuildOptions(["a", "b"], "train.csv", "o", rule, recipe, title="t", workers=2, quiet=True)
    assert parse([*line.split(), "--no-report"]) == Build(expected, no_report=True)
    chosen = parse(["subset", "x", "--out", "y", "--top", "3", "--drop-duplicates", "near", "--classes", "mine.csv"])
    assert isinstance(chosen, Subset)
    assert (chosen.selection, chosen.classes) == (Selection(top=3, drop_duplicates="near"), "mine.csv")


def test_the_old_spelling_of_a_cluster_still_parses() -> None:
    for words in (["--scheduler", "tcp://x:1"], ["--engine", "dask", "--scheduler", "tcp://x:1"]):
        command = parse(["build", *words])
        assert isinstance(command, Build)
        assert command.options == BuildOptions(scheduler="tcp://x:1")
    for words in ([], ["--engine", "local"]):
        command = parse(["build", *words])
        assert isinstance(command, Build)
        assert command.options == BuildOptions()
    with pytest.raises(UserError, match="needs --scheduler"):
        parse(["build", "--engine", "dask"])


def test_the_report_of_a_finished_build_is_written_once(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    words = ["--images", collection / "train", "--labels", collection / "train.csv", "--out", out, "--size", 32]
    line = ["build", *map(str, words), "--workers", "1"]
    assert main(line) == 0
    page = out / "report" / "index.html"
    written = page.stat().st_mtime_ns
    capsys.readouterr()
    assert main(line) == 0
    said = capsys.readouterr().out
    assert f"{out}: this build is already complete (60 images of 5 classes); nothing to do\n" in said
    assert f"report: {page}\n" in said
    assert page.stat().st_mtime_ns == written
    page.unlink()
    assert main([*line, "--quiet"]) == 0
    assert page.exists()
    assert main([*line, "--quiet", "--title", "Other"]) == 0
    assert "<title>Other" in page.read_text()


def test_a_build_without_a_report(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = options(out=tmp_path / "it's")
    assert main(command(chosen, "--no-report")) == 0
    said = capsys.readouterr().out
    assert (Path(chosen.out) / "dataset.json").exists()
    assert not (Path(chosen.out) / "report").exists()
    assert "report: " not in said
    last = said.splitlines()[-1]
    assert shlex.split(last) == ["next:", "lmk-train", "--shards", str(chosen.out)], "it can be pasted"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["build", "--help"], ["--version"]])
def test_a_reader_that_stops_early_ends_the_program_without_a_line(words: list[str], unbuffered: str) -> None:
    """As `lmk-shard --help | head -1`: the pipe is closed before anything is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "lmk_data.cli", *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = "{'numpy', 'pandas', 'pyarrow', 'fsspec', 'joblib', 'PIL', 'torch', 'jinja2', 'matplotlib'}"
    check = f"import sys, lmk_data.cli; lmk_data.cli.parse(['build']); print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_a_worker_process_starts_without_heavy_libraries() -> None:
    heavy = "{'pandas', 'pyarrow.compute', 'fsspec', 'tqdm', 'jinja2', 'matplotlib', 'torch'}"
    check = f"import sys, lmk_data.build.shard; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed_do_not_end_a_build(collection: Path, tmp_path: Path, closed: str) -> None:
    given = f"--images {collection}/train --labels {collection}/train.csv --out {tmp_path}/shards --workers 2"
    program = f"{sys.executable} -m lmk_data.cli build {given} --samples-per-shard 10 --max-rejected 1 --no-report"
    done = subprocess.run(["sh", "-c", f"{program} {closed}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shards" / "dataset.json").exists()


def test_a_title_that_is_not_utf8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--title", "\udcff"]) == 1
    assert capsys.readouterr().err == "lmk-shard: error: --title and --license: must be text in UTF-8\n"


def test_a_file_url_may_name_a_new_folder(collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "shards"
    given = ["--images", str(collection / "train"), "--labels", str(collection / "train.csv"), "--max-rejected", "1"]
    assert main(["build", *given, "--out", out.as_uri(), "--workers", "1", "--no-report", "--quiet"]) == 0
    assert main(["verify", str(out), "--quiet", "--workers", "1"]) == 0


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
