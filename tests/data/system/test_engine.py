import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lmk_data.system.engine import LocalEngine, workers_started

_PROGRAM = """
import os, sys, time
from lmk_data.system.engine import LocalEngine, workers_started

def process(_):
    time.sleep(0.02)
    return os.getpid()

if __name__ == "__main__":
    import psutil
    started, run, module = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with workers_started(started, module):
        workers = [c.pid for c in psutil.Process().children(recursive=True) if "LokyProcess" in " ".join(c.cmdline())]
        used = set(LocalEngine(run).run(process, [0] * 32))
        print(len(workers), len(used & set(workers)) == min(started, run), used <= set(workers))
"""


def _run(tmp_path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    return subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True, check=False)


def _worker_processes() -> list[int]:
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "LokyProcess" in " ".join(child.cmdline())]


def test_the_engine_takes_over_workers_that_were_started_before(tmp_path: Path) -> None:
    done = _run(tmp_path, "2", "2", "json")
    assert (done.stdout, done.stderr) == ("2 True True\n", "")


@pytest.mark.parametrize("words", [("2", "3", "json"), ("3", "2", "json"), ("2", "2", "lmk_data.no_such_module")])
def test_other_workers_than_were_started_do_the_same_work_in_silence(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = _run(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{words[0]} ")


def test_workers_end_with_whatever_they_were_started_for() -> None:
    def fail() -> None:
        with workers_started(2, "json"):
            assert len(_worker_processes()) == 2
            raise ValueError("the plan failed")

    with pytest.raises(ValueError, match="plan failed"):
        fail()
    assert not _worker_processes()
    assert list(LocalEngine(2).run(os.path.basename, ["a/b", "a/b"])) == ["b", "b"]
