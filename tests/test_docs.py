"""What the docs show runs: the Python of docs/reading.md, in a folder that has a dataset."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "reading.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_reading(
    number: int, dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "import duckdb" in BLOCKS[number]:
        pytest.importorskip("duckdb", reason="the extra `interop` is not installed")
    (tmp_path / "shards").symlink_to(dataset_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(BLOCKS[number], "docs/reading.md", "exec"), names)
    if "jpeg" in names:
        assert bytes(names["jpeg"]).startswith(b"\xff\xd8")  # type: ignore[arg-type]
    capsys.readouterr()
