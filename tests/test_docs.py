"""What the docs show is true: Python, SQL and the commands of the pages in RUN run on drawn data, in a folder like
Kaggle's; every other command is parsed by the program that it is for, with the reason here; links lead somewhere."""

import argparse
import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

import lmk_data.cli
from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from lmk_data.views.marks import Mark, MarksFile, read_marks
from lmk_train.cli import eval_main, export_main, inspect_main, predict_main, train_main
from lmk_train.config.commands import EvalConfig, ExportConfig, InspectConfig, PredictConfig, TuneConfig
from lmk_train.config.option import options_of
from lmk_train.config.training import TrainConfig
from lmk_train.tuning.space import read_space
from tests.drawing import draw

DOCS = Path(__file__).resolve().parents[1] / "docs"
WRITTEN = [DOCS.parent / "README.md", DOCS.parent / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
PROGRAMS = {
    "lmk-train": TrainConfig,
    "lmk-eval": EvalConfig,
    "lmk-predict": PredictConfig,
    "lmk-inspect": InspectConfig,
    "lmk-export": ExportConfig,
    "lmk-tune": TuneConfig,
}
MAINS = {
    "lmk-shard": main,
    "lmk-train": train_main,
    "lmk-eval": eval_main,
    "lmk-predict": predict_main,
    "lmk-inspect": inspect_main,
    "lmk-export": export_main,
}
RUN = ("quickstart.md", "evaluation.md", "sharding.md", "curation.md")
ONLY_PARSED = {
    "make ": "sets up, or runs these tests; .ci/run has them all",
    ". .venv": "of the shell",
    "lmk-shard build --min-samples 6": "the quick start's",
    "lmk-train --shards shards": "the quick start's; with its own model and epochs it takes minutes or hours",
    "lmk-shard browse": "serves until Ctrl-C; tests/data/browse/test_browser.py",
    "lmk-inspect ": "minutes on a CPU; tests/train/inspection/test_inspect.py has a small dataset",
    "lmk-tune ": "hours; tests/train/tuning/test_tune.py has small searches",
    "python -m pipelines.table": "hours; tests/test_pipelines.py has it with --smoke",
    "python -m pipelines.cifar10_lt": "hours; tests/test_pipelines.py has one epoch of it",
    "python -m pipelines.landmarks_lt": "minutes; tests/test_pipelines.py has it on drawn pictures",
    "python -m pipelines.clean_and_retrain": "minutes; tests/test_curation.py has it on drawn pictures",
    "cifar": "CIFAR-10, which is not drawn; tests/data/build/test_pipeline.py builds from class folders",
    "--images monuments/train": "photographs, which are not drawn; tests/test_main_job.py builds them",
    "python -m pipelines.bench.": "measures for minutes or hours",
    "s3://": "a bucket; tests/test_object_store.py has a server of its own",
    "--scheduler ": "a cluster; tests/test_cluster.py has one of its own",
    "dask ": "a cluster; tests/test_cluster.py starts its own",
    "torchrun --nproc-per-node 4": "four devices; tests/train/training/test_distributed.py has two processes",
    "torchrun --nnodes 4": "four machines; tests/test_cluster_scripts.py has two nodes",
}
NOT_RUN = {
    "cluster.md": "dask_jobqueue: a SLURM cluster",
    "curation.md": "queries: run below, after an inspection",
    "tuning.md": "TOML: read as a search space below",
}


def blocks(page: Path) -> list[str]:
    """The fenced Python and TOML of a page."""
    return re.findall(r"```(?:python|toml)\n(.*?)```", page.read_text(), re.DOTALL)


OPTIONAL = ("datasets", "duckdb", "megatron", "mlcroissant", "polars", "timm")
ANOTHER_TOOL = re.compile(rf"^(?:from|import) (?:wids|{'|'.join(OPTIONAL)})\b", re.MULTILINE)
BLOCKS = [
    pytest.param(
        page.name,
        code,
        id=f"{page.name}-{number}",
        marks=[pytest.mark.slow] if ANOTHER_TOOL.search(code) else [],
    )
    for page in WRITTEN
    for number, code in enumerate(blocks(page))
    if page.name not in (*NOT_RUN, "evaluation.md")
]


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_snippet(page: str, code: str, dataset_path: Path, tmp_path: Path, old_webdataset: Path | None) -> None:
    for name in OPTIONAL:
        if re.search(rf"^(?:from|import) {name}\b", code, re.MULTILINE):
            pytest.importorskip(name, reason="the extra `interop` is not installed")
    if "import wids" in code and old_webdataset is None:
        pytest.skip("webdataset 0.2, which has wids, cannot be installed here")
    (tmp_path / "shards").symlink_to(dataset_path)
    for dialect in re.findall(r"shards-(wids|timm|energon|croissant)", code):
        exported = ["--to", dialect, "--out", str(tmp_path / f"shards-{dialect}"), "--quiet"]
        assert main(["export", str(dataset_path), *exported]) == 0
    paths = [str(old_webdataset)] if "import wids" in code else []
    done = subprocess.run(
        [sys.executable, "-c", code + _CHECK],
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HOME": str(tmp_path),
            "WIDS_CACHE": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(paths),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]


_CHECK = """
found = globals()
if "jpeg" in found:
    assert jpeg[:2] == bytes([0xFF, 0xD8])
if "image" in found:
    assert image.size == (64, 64), image
    assert 0 <= int(label) < 5
if "images" in found:
    assert tuple(images.shape) == (8, 3, 64, 64) and len(labels) == 8
"""


def commands(page: Path, more: str = "") -> list[str]:
    """Every command in the indented blocks of a page, and what the pattern `more` finds beside them, in order."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    programs = r"(?:lmk-\w+|python|make|torchrun|find|dask|\.) [^`\n]+"
    found = re.findall(rf"(?:^ {{4,}}{more})({programs})", text, re.MULTILINE)
    shown = (re.split(r"\s+# ", line)[0].rstrip() for line in found)
    return [line for line in shown if not line.endswith("...")]


ALL_COMMANDS = [
    pytest.param(page.name, line, id=f"{page.name}: {line}"[:70]) for page in WRITTEN for line in commands(page)
]


def test_every_fence_is_of_a_kind_that_is_run_or_is_text() -> None:
    """Nothing runs `text`; test_architecture holds the pictures (`mermaid`) against the imports."""
    kinds = {"python", "toml", "text", "mermaid"}
    for page in WRITTEN:
        assert set(re.findall(r"^```(\w+)$", page.read_text(), re.MULTILINE)) <= kinds, page.name


def test_every_program_is_shown() -> None:
    shown = {line.split()[0] for page in WRITTEN for line in commands(page)}
    assert {"lmk-shard", *PROGRAMS, "make", "torchrun"} <= shown


class ParsedError(Exception):
    """Raised in place of what a program does once its command line is parsed."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
@pytest.mark.parametrize(("page", "line"), ALL_COMMANDS)
def test_command_parses(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page in RUN or any(part in line for part in ONLY_PARSED), "run it, or say above why it is only parsed"
    parse(shlex.split(line.rsplit(" | ", maxsplit=1)[-1]), monkeypatch)


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the program parse its command line, and do nothing more."""
    program, *given = words
    if program == "lmk-shard":
        lmk_data.cli.parse(given)
    elif program in PROGRAMS:
        tyro.cli(PROGRAMS[program], args=given, config=(tyro.conf.FlagCreatePairsOff,))
    elif program == "python":
        original = argparse.ArgumentParser.parse_args

        def parse_and_stop(*arguments: object, **named: object) -> None:
            original(*arguments, **named)  # type: ignore[call-overload]
            raise ParsedError

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        monkeypatch.setattr(sys, "argv", given[1:])
        with pytest.raises(ParsedError):
            runpy.run_module(given[1], run_name="__main__")
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        launched = get_args_parser().parse_args(given)
        parse([launched.training_script, *launched.training_script_args], monkeypatch)
    elif program == "dask":
        pytest.importorskip("distributed", reason="the extra `dask` is not installed")
        __import__(f"distributed.cli.dask_{given[0]}", fromlist=["main"]).main.make_context(given[0], given[1:])
    elif program == "make":
        subprocess.run(["make", "--dry-run", given[0]], cwd=DOCS.parent, capture_output=True, check=True)
    else:
        assert words == [".", ".venv/bin/activate"]


def flags_of(command: str) -> set[str]:
    """The flags that `lmk-shard COMMAND --help` lists."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        lmk_data.cli.parse([command, "--help"])
    return set(re.findall(r"^\W+(?:-h, )?(--[a-z0-9-]+)", shown.getvalue(), re.MULTILINE))


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_flags_in_the_text_exist(page: Path) -> None:
    """Of commands within a sentence, which may be parts of one: the program, its subcommand and the flags."""
    for program, rest in re.findall(r"`(lmk-\w+) ([^`]+)`", page.read_text()):
        words = shlex.split(rest)
        if program == "lmk-shard":
            known = flags_of(words[0])
        else:
            known = {f"--{name.replace('_', '-')}" for name in options_of(PROGRAMS[program])} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, f"{program} {rest}"


@pytest.fixture(scope="module")
def started(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like Kaggle's where the quick start's commands were run in order, those within its sentences too: with
    small pictures, ResNet-32 from random weights in place of EfficientNet-B0, one epoch, and fewer pictures drawn."""
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    smaller = {
        "build": ["--size", "64", "--workers", "1"],
        "verify": ["--workers", "1"],
        "sample": ["--classes", "6", "--images", "60", "--workers", "1"],
        "lmk-train": ["--model", "resnet32", "--weights", "none", "--epochs", "1", "--batch-size", "8"],
    }
    folder = tmp_path_factory.mktemp("kaggle")
    for name in ("train", "train.csv"):
        (folder / name).symlink_to(collection / name)
    shutil.copy(max(collection.rglob("*.jpg")), folder / "photo.jpg")
    for number in range(24):  # of its own pictures, in two class folders
        place = folder / "photos" / f"class-{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64)).save(place / f"{number}.jpg")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmk_train.training.profile_input._SECONDS", 0.3)
        for line in commands(DOCS / "quickstart.md", more="|`"):
            words = shlex.split(line)
            if words[0] not in MAINS:
                continue
            words += smaller.get(words[0], []) + smaller.get(words[1], [])
            if words[0] == "lmk-train" and "--out" not in words:
                words += ["--out", "runs/efficientnet-b0-balanced-softmax"]
            assert MAINS[words[0]](words[1:]) == 0, words
    return folder


@pytest.mark.slow
def test_the_quick_start_leads_to_a_model(started: Path) -> None:
    run = started / "runs" / "efficientnet-b0-balanced-softmax"
    for path in (started / "shards" / "report" / "index.html", run / "eval-test.json", run / "model.onnx"):
        assert path.stat().st_size > 0
    assert (started / "runs" / "top20" / "eval-test.json").exists()
    assert (started / "demo" / "train.csv").exists()


@pytest.mark.slow
def test_evaluation_commands_run_after_the_quick_start(started: Path) -> None:
    (started / "elsewhere").symlink_to("shards")
    for name in ("holiday", "photos"):
        (started / name).mkdir(exist_ok=True)
        shutil.copy(started / "photo.jpg", started / name)
    for name in ("a", "b"):
        (started / "runs" / name).symlink_to("efficientnet-b0-balanced-softmax")
    for line in commands(DOCS / "evaluation.md"):
        if (words := shlex.split(line))[0] in MAINS:
            with contextlib.chdir(started):
                assert MAINS[words[0]](words[1:]) == 0, line
        else:
            shell(line, started)
    assert (started / "runs" / "efficientnet-b0-balanced-softmax" / "tau-test.json").exists()


@pytest.mark.slow
def test_evaluation_snippets_run_after_the_quick_start(started: Path) -> None:
    named, exported = (
        shell(shlex.join([sys.executable, "-c", code]), started) for code in blocks(DOCS / "evaluation.md")
    )
    assert "photo.jpg" in named
    assert 0 < float(exported.split()[-1]) <= 1
    duckdb = pytest.importorskip("duckdb", reason="the extra `interop` is not installed")
    (query,) = re.findall(r"^    (SELECT .*)", (DOCS / "evaluation.md").read_text(), re.MULTILINE)
    with contextlib.chdir(started):
        assert duckdb.sql(query).fetchall()


def shell(line: str, folder: Path) -> str:
    """What a command line says on stdout; this environment's programs come first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(DOCS.parent)}
    command = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{line}: {done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_sharding_commands_run_in_a_folder_like_kaggles(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "train.csv"):
        (tmp_path / name).symlink_to(collection / name)
    (tmp_path / "mine.csv").write_text("landmark_id\n20409\n83144\n")
    key = next(line for line in (collection / "train.csv").read_text().split() if line.endswith(",20409")).split(",")[0]
    (tmp_path / "marks.csv").write_text(f"key,action,landmark_id,note\n{key},relabel,83144,another building\n")
    monkeypatch.chdir(tmp_path)
    for line in commands(DOCS / "sharding.md"):
        words = shlex.split(line)[1:]
        assert main([*words, "--quiet", *(["--workers", "1"] if words[0] in ("build", "verify") else [])]) == 0, line


@pytest.mark.slow
def test_curation_commands_and_queries_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`browse` serves until it is ended, so a mark is made in its place; the recipes have tests of their own."""
    pytest.importorskip("duckdb", reason="the extra `interop` is not installed")
    for number in range(3):
        for i in range(16):
            size = (96, 72) if i == 0 else (160, 120)
            draw(tmp_path / "photos" / f"class {number}" / f"{i}.jpg", number, i, size)
    smaller = {
        "build": ["--size", "64", "--workers", "1"],
        "lmk-train": ["--model", "resnet32", "--weights", "none", "--epochs", "1", "--batch-size", "8"],
    }
    page = DOCS / "curation.md"
    monkeypatch.chdir(tmp_path)
    for line in commands(page):
        words = shlex.split(line)
        if words[1] == "browse":
            with ShardedDataset.open(words[2]) as dataset:
                MarksFile(Path(words[-1])).apply({dataset.index("train")["key"][0]: Mark("exclude")})
        if words[0] not in MAINS or words[1] == "browse":
            continue
        if "small.csv" in words:
            for query in blocks(page):
                exec(compile(query, page.name, "exec"), {})
        assert MAINS[words[0]]([*words[1:], *smaller.get(words[0], []), *smaller.get(words[1], [])]) == 0, line
    assert set(read_marks("small.csv").values()) == {Mark("exclude", note="too small")}
    with ShardedDataset.open("cleaned-by-sql") as cleaned:
        assert min(cleaned.index(split)["original_height"].min() for split in cleaned.splits) == 120


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_lines_of_prose_end_at_100_characters(path: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
    assert not [line for line in prose if len(line) > 100 and not line.startswith(("|", "    ", "!["))]


def test_the_search_space_that_is_shown_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", (DOCS / "tuning.md").read_text(), re.DOTALL)
    (tmp_path / "space.toml").write_text(shown)
    space = read_space(tmp_path / "space.toml", TrainConfig("shards", epochs=8))
    assert set(space.parameters) == set(tomllib.loads(shown)["search"])


def test_messages_that_are_explained_are_those_of_the_programs() -> None:
    """Every part between the `...` of a quoted message stands in one literal of the sources, values left out."""
    sources = "".join(
        path.read_text()
        for pattern in ("lmk_data/**/*.py", "lmk_train/**/*.py", "lmk_data/browse/static/*.js")
        for path in DOCS.parent.glob(pattern)
    )
    literals = re.sub(r"\{[^{}\n]*\}", "...", re.sub(r'"\s*\n\s*f?"', "", sources))
    table = re.findall(r"^\| (`.*?) \| ", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [message for cell in table for message in re.findall("`([^`]+)`", cell)]
    assert len(quoted) >= 30
    for message in quoted:
        for part in message.split("..."):
            assert part.strip(" :,;") in literals, f"{message!r}: {part!r}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["lmk_data.build", "lmk_data.dataset"])
def test_what_a_package_imports_when_it_is_asked_for_is_on_the_pages_of_the_api(name: str) -> None:
    """pdoc takes the names of `__all__` from what the package holds."""
    package = importlib.import_module(name)
    for public in package.__all__:
        value = getattr(package, public)
        assert vars(package)[public] is value
