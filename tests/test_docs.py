"""What the docs show is true: their Python runs in a folder that has a dataset `shards` and its exports, their
`lmk-shard` commands in one like Kaggle's, every other command parses, and links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tyro

import lmk_data.cli
from lmk_data.cli import main
from lmk_train.config import TrainConfig
from lmk_train.options import EvalConfig, ExportConfig, PredictConfig, TuneConfig
from lmk_train.search_space import read_space

DOCS = Path(__file__).resolve().parents[1] / "docs"
WRITTEN = [DOCS.parent / "README.md", DOCS.parent / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
PROGRAMS = {
    "lmk-train": TrainConfig,
    "lmk-eval": EvalConfig,
    "lmk-predict": PredictConfig,
    "lmk-export": ExportConfig,
    "lmk-tune": TuneConfig,
}
PAGES = ("reading.md", "reuse.md")
BLOCKS = [
    pytest.param(page, code, id=f"{page}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL))
]
OPTIONAL = ("datasets", "duckdb", "megatron", "mlcroissant", "polars", "timm")


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
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=200,
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


def commands(page: Path) -> list[list[str]]:
    """The words of every command of ours in the indented blocks of a page; of a pipe or a launcher, ours alone."""
    found = []
    for line in re.sub(r"\\\n\s*", "", page.read_text()).splitlines():
        shown = re.match(r"    (?:.*\| |torchrun .*--no-python )?(lmk-\w+ .*)", line)
        if shown and not shown[1].endswith("..."):
            found.append(shlex.split(shown[1], comments=True))
    return found


ALL_COMMANDS = [pytest.param(words, id=" ".join(words)[:60]) for page in WRITTEN for words in commands(page)]


def test_commands_are_found_at_all() -> None:
    assert len(ALL_COMMANDS) >= 15


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_command_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "lmk-shard":
        monkeypatch.setattr(lmk_data.cli, "run_command", lambda *_: 0)
        assert main(words[1:]) == 0
    else:
        tyro.cli(PROGRAMS[words[0]], args=words[1:], config=(tyro.conf.FlagCreatePairsOff,))


@pytest.mark.slow
def test_sharding_commands_run_in_a_folder_like_kaggles(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "train.csv"):
        (tmp_path / name).symlink_to(collection / name)
    (tmp_path / "mine.csv").write_text("landmark_id\n20409\n83144\n")
    monkeypatch.chdir(tmp_path)
    shown = commands(DOCS / "sharding.md")
    assert shown[0][:2] == ["lmk-shard", "build"]
    for words in shown:
        assert main([*words[1:], "--quiet"]) == 0, words


def test_the_search_space_that_is_shown_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", (DOCS / "tuning.md").read_text(), re.DOTALL)
    (tmp_path / "space.toml").write_text(shown)
    space = read_space(tmp_path / "space.toml", TrainConfig("shards", epochs=8))
    assert set(space.parameters) == set(tomllib.loads(shown)["search"])


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target
