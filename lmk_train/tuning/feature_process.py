"""Compute the cached features of a search in a process of its own: `python -m lmk_train.tuning.feature_process FOLDER`.

A process that has computed on a GPU keeps hundreds of megabytes of it until it ends, and a search outlives its features
by far. The search writes the configuration as a line of JSON on standard input, which it then holds open: when that
closes, the process ends. It reports on standard output, one JSON object per line.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lmk_data import errors
from lmk_data.errors import LmkError, TrainingError, storage_failure
from lmk_data.system.terminal import EXIT_INTERRUPTED
from lmk_train.config.training import ResolvedConfig
from lmk_train.data.features import compute_features, has_features
from lmk_train.runtime.oom import oom_as_training_error
from lmk_train.runtime.stopping import stop_with_stdin

_MEMORY_ADVICE = "leave more memory of the device free, or choose a smaller --model"


def ensure_features(config: ResolvedConfig, folder: Path, lock: int, announce: Callable[[str], None]) -> None:
    """Compute the features of a resolved configuration unless they are in `folder`.

    Args:
        config: of the trials.
        folder: of the features.
        lock: descriptor of the search's lock, which the process holds as long as it lives.
        announce: is given a line about the backbone.

    Raises LmkError as `compute_features` does, and TrainingError if the process was killed.
    """
    if has_features(config, folder):
        return
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "lmk_train.tuning.feature_process", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the search alone, which then ends this process
        pass_fds=(lock,),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # it has ended already
            process.stdin.write(json.dumps(config.json()) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            said = json.loads(line)
            if "error" in said:
                raise getattr(errors, said["error"])(said["message"])
            announce(said["announce"])
        if code := process.wait():
            reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise TrainingError(f"the process that computes features {reason}; run it again with --resume")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()


def main(folder: Path) -> int:
    """Compute the features of the configuration on standard input; return an exit code."""
    described = sys.stdin.readline()
    if not described:  # the search has ended
        return EXIT_INTERRUPTED
    config = ResolvedConfig.from_json(json.loads(described))
    stop_with_stdin()
    try:
        with oom_as_training_error(_MEMORY_ADVICE):
            compute_features(config, folder, lambda line: _report(announce=line))
    except (LmkError, OSError) as error:
        failure = storage_failure(error, str(folder)) if isinstance(error, OSError) else error
        _report(error=type(failure).__name__, message=str(failure))
        return 1
    return 0


def _report(**said: str) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
