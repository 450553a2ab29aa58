"""No Arrow thread holds memory or a file of Python, which would abort the interpreter's end."""

import re
from pathlib import Path

import pytest

from lmk_data.system.arrow import arrow_reader

ROOT = Path(__file__).resolve().parents[3]
# What lets Arrow's threads keep bytes or files of Python: they belong into `arrow_reader`, or take use_threads=False.
HOLDS_PYTHON = re.compile(r"\bpa\.(BufferReader|py_buffer|PythonFile)\(|\bpq\.read_table\((?!arrow_reader)")
READS = re.compile(r"\.read_row_group\((?![^\n]*use_threads=False)|ParquetFile\(.*\)\.read\((?![^\n]*use_threads=)")


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 40])
def test_a_reader_gives_the_bytes_from_memory_that_is_not_pythons(data: bytes) -> None:
    assert arrow_reader(data).read() == data
    buffer = arrow_reader(data).read_buffer()
    assert type(buffer).__name__ == "Buffer"
    assert buffer.to_pybytes() == data


def test_every_read_of_the_packages_goes_that_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("lmk_data", "lmk_train")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "arrow.py"
        for line in path.read_text().splitlines()
        if HOLDS_PYTHON.search(line) or READS.search(line)
    ]
    assert not wrong
