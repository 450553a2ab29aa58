"""One trial of a search, in its own process: `python -m lmk_train.tuning.trial SPEC`; it ends with its search.

SPEC is a JSON file with the training configuration of the trial and the folder of cached features, or null. The test
split is not used. The search holds standard input open: when that closes, the trial saves a checkpoint and ends.
"""

import json
import os
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from lmk_data.system.terminal import run_command
from lmk_train.config.training import TrainConfig
from lmk_train.runs.folder import RunFolder
from lmk_train.runtime.oom import oom_as_training_error
from lmk_train.training.loop import train

_MEMORY_ADVICE = (
    "grad_accum = 2 under [fixed] in --search needs less, with the same updates; so does a smaller batch_size"
)


def main(spec: Path) -> int:
    """Train a trial, or resume it from its last checkpoint; return an exit code as `lmk-train` does."""
    threading.Thread(target=_stop_when_search_ends, daemon=True).start()

    def train_trial() -> None:
        described = json.loads(spec.read_text())
        config = TrainConfig.from_json(described["config"])
        run = config.resolved().out
        resume = RunFolder(run).checkpoint("last").exists()
        if run.exists() and not resume:
            shutil.rmtree(run)  # the trial was interrupted before its first checkpoint
        features = None if described["features"] is None else Path(described["features"])
        with oom_as_training_error(_MEMORY_ADVICE):
            train(replace(config, resume=resume), print, features=features, evaluate_test=False)

    return run_command("trial", train_trial)


def _stop_when_search_ends() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
