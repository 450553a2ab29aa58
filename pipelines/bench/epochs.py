"""What choosing the best epoch on the test set is worth: a network's accuracy there after each of its last epochs.

    python -m pipelines.bench.epochs RUN TEST [--first 158] [--last 200]

Start it beside the `lmk-train` that writes RUN. It copies the checkpoint of every epoch from --first on into a folder
beside RUN, until the training is complete, then evaluates each copy on the test split of the dataset TEST. Copies of an
earlier call are kept. The reference code of the LDAM paper reports the best epoch on the test set, and
`pipelines.cifar10_lt` the last one.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from lmk_data.system.terminal import run_command
from lmk_train.config.commands import EvalConfig
from lmk_train.evaluation.evaluate import evaluate_run
from lmk_train.runs.checkpoint import load_checkpoint
from lmk_train.runs.folder import RunFolder

_POLL_SECONDS = 2.0


def finished(run: Path) -> tuple[int, int]:
    """Return the last epoch that a run has finished and the step at its end, (0, 0) before that."""
    metrics = RunFolder(run).metrics
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return max(((line["epoch"], line["step"]) for line in lines if line["kind"] == "epoch"), default=(0, 0))


def kept_copies(run: Path, first: int, last: int) -> Iterator[Path]:
    """Yield a folder with the checkpoint of each epoch from `first` to `last`, as the training writes them.

    An epoch that was over before the call is left out.
    """
    for epoch in range(first, last + 1):
        kept = run.with_name(f"{run.name}-epochs") / f"{epoch:03d}"
        while not RunFolder(kept).checkpoint("last").exists():
            at, step = finished(run)
            if at > epoch:
                break
            if at == epoch and load_checkpoint(run, "last")["progress"]["step"] == step:
                copy = RunFolder(kept).checkpoint("last")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(RunFolder(run).checkpoint("last"), copy)
            else:
                time.sleep(_POLL_SECONDS)
        else:
            yield kept


def judged(copies: list[Path], test: str) -> list[tuple[int, float]]:
    """Return the epoch of each copy and its test accuracy in %."""
    found = []
    for copy in copies:
        metrics = evaluate_run(EvalConfig(copy, test, checkpoint="last", quiet=True))[-1].metrics
        found.append((int(copy.name), 100 * float(metrics["accuracy"] or 0)))
    return found


def main() -> int:
    """Wait for the training, and print the accuracy of each epoch, of the best and of the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("test", metavar="TEST")
    parser.add_argument("--first", type=int, default=158, help="the first epoch that is kept")
    parser.add_argument("--last", type=int, default=200, help="the last epoch of the training")
    given = parser.parse_args()

    def work() -> None:
        found = judged(list(kept_copies(given.run, given.first, given.last)), given.test)
        for epoch, accuracy in found:
            print(f"epoch {epoch}: {accuracy:.2f} %")
        if found:
            epoch, best = max(found, key=lambda one: one[1])
            print(f"best: {best:.2f} % (epoch {epoch}); last: {found[-1][1]:.2f} %")

    return run_command("epochs", work)


if __name__ == "__main__":
    raise SystemExit(main())
