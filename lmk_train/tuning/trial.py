"""One trial of a search, in a process of its own: `python -m lmk_train.trial SPEC`; it ends with its search.

SPEC is a JSON file with the trial's training configuration and the folder of features to train on, or null. The test
split is not touched. Standard input is held open by the search: at its end the trial saves what it has and ends.
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
from lmk_train.runs.checkpoint import LAST, checkpoint_path
from lmk_train.runtime.precision import running_out_in_a_line
from lmk_train.training.loop import train


def main(spec: Path) -> int:
    """Train, or go on with the trial where its last checkpoint stands; returns an exit code as `lmk-train` does."""
    threading.Thread(target=_end_with_the_search, daemon=True).start()

    def run() -> None:
        said = json.loads(spec.read_text())
        config = TrainConfig.from_json(said["config"]).resolved()
        assert config.out is not None
        going_on = checkpoint_path(config.out, LAST).exists()
        if config.out.exists() and not going_on:
            shutil.rmtree(config.out)  # it was interrupted before its first checkpoint
        features = None if said["features"] is None else Path(said["features"])
        with running_out_in_a_line():
            train(replace(config, resume=going_on), print, features=features, evaluate_test=False)

    return run_command("trial", run)


def _end_with_the_search() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
