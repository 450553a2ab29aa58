"""One trial of a search, in its own process: `python -m lmk_train.tuning.trial SPEC`; it ends with its search.

SPEC is a JSON file with the training configuration of the trial and the folder of cached features, or null. The first
line of standard input is JSON too: where the dataset lies, since URLs may hold secrets that no file keeps. The test
split is not used. The search holds standard input open: when that closes, the trial saves a checkpoint and ends.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from lmk_data.system.terminal import run_command
from lmk_train.config.training import TrainConfig
from lmk_train.runs.folder import RunFolder, remove_interrupted_start
from lmk_train.runs.plain_file import checked, read_json
from lmk_train.runtime.oom import oom_as_training_error
from lmk_train.runtime.stopping import stop_with_stdin
from lmk_train.training.loop import train

_MEMORY_ADVICE = (
    "grad_accum = 2 under [fixed] in --search needs less, with nearly the same updates; so does a smaller batch_size"
)


class _Spec(TypedDict):
    config: dict[str, Any]
    features: str | None


class _Place(TypedDict):
    shards: str
    base: str | None


def main(spec: Path) -> int:
    """Train a trial, or resume it from its last checkpoint; return an exit code as `lmk-train` does."""
    place = sys.stdin.readline()
    stop_with_stdin()

    def train_trial() -> None:
        if not place:
            raise KeyboardInterrupt  # the search has ended
        described = read_json(spec, _Spec, "the settings of a trial")
        config = replace(TrainConfig.from_json(described["config"]), **checked(json.loads(place), _Place))
        run = config.resolved().out
        resume = RunFolder(run).checkpoint("last").exists()
        if run.exists() and not resume:
            remove_interrupted_start(run)  # with the best weights too, since all in it is the search's
        features = None if described["features"] is None else Path(described["features"])
        with oom_as_training_error(_MEMORY_ADVICE):
            train(replace(config, resume=resume), print, features=features, evaluate_test=False)

    return run_command("trial", train_trial)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
