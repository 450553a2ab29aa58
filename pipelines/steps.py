"""The steps of a recipe, run as commands. A finished step is not repeated; other settings in its folder are refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from lmk_data.errors import UserError
from lmk_data.system.terminal import EXIT_INTERRUPTED
from lmk_train.config.training import TrainConfig
from lmk_train.runs.folder import RunFolder

TRAINER = ("lmk-train",)


class _Children:
    """The commands that are running; once they are stopped, none is started any more."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def wait_for(self, process: subprocess.Popen[bytes]) -> int:
        self._running.add(process)
        if self._stopped:
            process.terminate()
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        finally:
            self._running.discard(process)

    def stop(self) -> None:
        self._stopped = True
        for process in list(self._running):
            process.terminate()

    def require_going(self) -> None:
        if self._stopped:
            raise SystemExit(EXIT_INTERRUPTED)


_children = _Children()


def run(*command: object, log: Path | None = None) -> None:
    """Print a command and run it from this environment; exit with its code if it fails.

    On Ctrl-C, send SIGTERM to the command and wait for it, so that a training saves a checkpoint. A command with a
    `log` runs beside others: it computes with one thread and prints into that file.
    """
    _children.require_going()
    words = [str(word) for word in command]
    print("\n$", " ".join(words), *(() if log is None else (f"> {log}",)), flush=True)
    program = Path(sys.executable).parent / words[0]
    with ExitStack() as opened:
        output = None if log is None else opened.enter_context(open(log, "ab"))
        environment = None if log is None else {**os.environ, "OMP_NUM_THREADS": "1"}
        process = opened.enter_context(
            subprocess.Popen([program, *words[1:]], stdout=output, stderr=output, env=environment)
        )
        code = _children.wait_for(process)
    if code:
        if log is not None and code != EXIT_INTERRUPTED:
            print(log.read_text(errors="replace").strip().rpartition("\n")[2], file=sys.stderr)
        raise SystemExit(code)


def side_by_side(tasks: Sequence[Callable[[], None]], jobs: int) -> None:
    """Do tasks, `jobs` at once; a single one in this thread. The first failure, or Ctrl-C, stops all of them."""
    if jobs == 1:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            _children.stop()
            pool.shutdown(cancel_futures=True)
            raise


def view(dataset: Path, out: Path, *arguments: object) -> Path:
    """Make a view of a dataset with `lmk-shard subset` and return its path.

    The command keeps an existing view that is the same, and refuses a different one.
    """
    run("lmk-shard", "subset", dataset, "--out", out, *arguments)
    return out


def train(
    dataset: Path, out: Path, *arguments: object, program: tuple[str, ...] = TRAINER, log: Path | None = None
) -> Path:
    """Train a run to its end, from the start or resumed from its last checkpoint, and return its folder.

    `program` takes the arguments of `lmk-train`; `log` is that of `run`.

    Raises UserError if the run was trained by another program, with other arguments or on other images.
    """
    asked, marker = _training(dataset, arguments, program), out / "trained"
    if not _is_done(marker, asked):
        resume = ("--resume",) if RunFolder(out).checkpoint("last").exists() else ()
        run(*program, "--shards", dataset, "--out", out, *arguments, *resume, log=log)
        marker.write_text(asked)
    return out


def train_head(dataset: Path, out: Path, *arguments: object) -> Path:
    """Train only the head, from the start or resumed, and return the folder of the run.

    The features of the frozen backbone are computed once, beside the run in `features-<dataset>`; pictures are not
    augmented. The arguments are those of `lmk-train`.

    Raises UserError like `train`, and if the features are of another backbone.
    """
    from lmk_train.data.features import compute_features
    from lmk_train.training.loop import train as train_on_features

    asked, marker = f"on features {_spelled(dataset, arguments)}", out / "trained"
    if not _is_done(marker, asked):
        words = ["--shards", str(dataset), "--out", str(out), *map(str, arguments), "--quiet"]
        print("\n$ on cached features: lmk-train", *words, flush=True)
        config = tyro.cli(TrainConfig, args=words, config=(tyro.conf.FlagCreatePairsOff,))
        frozen = replace(config, freeze_backbone_epochs=config.resolved().epochs, hflip=0.0, color_jitter=0.0)
        features = out.parent / f"features-{dataset.name}"
        compute_features(frozen.resolved(), features, print)
        resumed = replace(frozen, resume=RunFolder(out).checkpoint("last").exists())
        train_on_features(resumed, features=features, evaluate_test=False)
        marker.write_text(asked)
    return out


def inspect(dataset: Path, out: Path, marks: Path, *arguments: object) -> Path:
    """Inspect a dataset with `lmk-inspect`, have it write `marks`, and return the path of these.

    Raises UserError if the folder holds an inspection with other arguments or of another dataset.
    """
    asked, marker = _spelled(dataset, arguments), out / "inspected"
    if not _is_done(marker, asked):
        marks.unlink(missing_ok=True)  # left by an inspection that did not end; lmk-inspect would keep its marks
        run("lmk-inspect", "--shards", dataset, "--out", out, "--marks", marks, *arguments)
        marker.write_text(asked)
    return marks


def is_trained(dataset: Path, out: Path, *arguments: object, program: tuple[str, ...] = TRAINER) -> bool:
    """Return whether `train` has finished a run of these arguments; False where it was trained with others."""
    marker = out / "trained"
    return marker.exists() and marker.read_text() == _training(dataset, arguments, program)


def evaluate(run_folder: Path, split: str, dataset: Path | None = None, *, log: Path | None = None) -> dict[str, Any]:
    """Return the metrics of a run's best weights on a split of its own dataset, or of `dataset`.

    `log` is that of `run`.

    Raises UserError if the existing metrics are of other weights or another dataset.
    """
    path, marker = RunFolder(run_folder).evaluation(split), run_folder / f"evaluated-{split}"
    asked = "" if dataset is None else _spelled(dataset)
    if not _is_done(marker, asked) and (dataset or not path.exists()):
        run("lmk-eval", run_folder, "--split", split, *(("--shards", dataset) if dataset else ()), log=log)
        marker.write_text(asked)
    metrics: dict[str, Any] = json.loads(path.read_text())
    wanted = metrics["trained_on"] if dataset is None else _content(dataset)
    if metrics["checkpoint"] != "best" or metrics["dataset"] != wanted:
        of = f"of the {metrics['checkpoint']} weights on dataset {metrics['dataset'][:12]}"
        raise UserError(f"{path}: {of}, asked for the best on {wanted[:12]}; delete it to evaluate again")
    return metrics


def _is_done(marker: Path, asked: str) -> bool:
    """Return whether a step has left its marker. Raises UserError if it was done with other settings than `asked`."""
    if not marker.exists():
        return False
    if (done := marker.read_text()) != asked:
        where = f"{marker.parent}: {marker.name}"
        raise UserError(f"{where} with `{done}`, asked for `{asked}`; name another --out, or delete this folder")
    return True


def _training(dataset: Path, arguments: tuple[object, ...], program: tuple[str, ...]) -> str:
    trainer = () if program == TRAINER else (f"by {program[-1]}:",)
    return _spelled(dataset, (*trainer, *arguments))


def _spelled(dataset: Path, arguments: tuple[object, ...] = ()) -> str:
    return " ".join([*map(str, arguments), f"on {_content(dataset)[:12]}"])


def _content(dataset: Path) -> str:
    return str(json.loads((dataset / "dataset.json").read_text())["content_sha256"])
