"""The SLURM scripts run, with an `srun` that starts what it is given once for each of two nodes of this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from tests.ports import free_port

SCRIPTS = Path(__file__).resolve().parents[1] / "pipelines" / "cluster"
pytest.importorskip("distributed", reason="the extra `dask` is not installed")


_SRUN = """#!/bin/sh
"$@" & first=$!
"$@" & second=$!
trap "kill $first $second; wait; exit 143" TERM
wait $first; code=$?
wait $second && exit $code
"""


def run_script(name: str, folder: Path, **variables: object) -> None:
    """Run a script as SLURM does, in `folder`."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "srun").write_text(_SRUN)
    (programs / "hostname").write_text("#!/bin/sh\necho 127.0.0.1\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PORT": str(free_port()), **{k: str(v) for k, v in variables.items()}}
    command = ["bash", str(SCRIPTS / name)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_the_build_on_two_nodes_is_that_of_one_machine(collection: Path, tmp_path: Path) -> None:
    images, labels, out = str(collection / "train"), str(collection / "train.csv"), tmp_path / "shards"
    here = build(BuildOptions([images], labels, tmp_path / "here", quiet=True)).manifest
    run_script("build_on_dask.sh", tmp_path, IMAGES=images, LABELS=labels, OUT=out, WORKERS_PER_NODE=1)
    with ShardedDataset.open(out) as built:
        assert built.manifest["content_sha256"] == here["content_sha256"]


@pytest.mark.slow
def test_the_training_on_two_nodes_goes_on_when_it_is_submitted_again(dataset_path: Path, tmp_path: Path) -> None:
    options = "--model resnet32 --epochs 1 --batch-size 8 --workers 1 --device cpu --amp off"
    chosen = {"SHARDS": dataset_path, "RUN": tmp_path / "run", "PROCESSES_PER_NODE": 1, "OPTIONS": options}
    run_script("train_on_two_nodes.sh", tmp_path, **chosen, OMP_NUM_THREADS=1)
    first = json.loads((tmp_path / "run" / "eval-test.json").read_text())
    shutil.rmtree(tmp_path / "bin")
    (tmp_path / "run" / "eval-test.json").unlink()
    run_script("train_on_two_nodes.sh", tmp_path, **chosen, OMP_NUM_THREADS=1)
    again = json.loads((tmp_path / "run" / "eval-test.json").read_text())
    assert again == first, "a finished training is only evaluated again"
