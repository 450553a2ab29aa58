"""What the docs show runs: their Python, in a folder that has a dataset `shards` and its exports."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmk_data.cli import main

DOCS = Path(__file__).resolve().parents[1] / "docs"
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
