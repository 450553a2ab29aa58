"""calibration.json: the temperature of a run's probabilities, and what it was fitted on."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lmk_data.errors import UserError
from lmk_data.system.files import check_no_link, write_bytes
from lmk_train.runs.folder import RunFolder
from lmk_train.runs.plain_file import read_json

LOWEST, HIGHEST = 0.1, 10.0  # temperatures
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Calibration(msgspec.Struct, frozen=True):
    """A temperature, and how well the probabilities of validation pictures fit before and after.

    Attributes:
        temperature: that the logits are divided by.
        weights_sha256: of the weights whose logits these are.
        dataset: content hash of the dataset whose validation split it was fitted on.
        split: of that dataset.
        num_samples: pictures that it was fitted on.
        loss_before: mean of -log(probability of the target) at temperature 1.
        loss_after: the same at `temperature`.
        error_before: expected calibration error at temperature 1.
        error_after: the same at `temperature`.
    """

    temperature: Annotated[float, msgspec.Meta(ge=LOWEST, le=HIGHEST)]
    weights_sha256: Sha256
    dataset: Sha256
    split: Literal["val"]
    num_samples: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    loss_before: float
    loss_after: float
    error_before: float
    error_after: float


def write_calibration(run: Path, calibration: Calibration) -> None:
    """Write calibration.json of a run."""
    path = RunFolder(run).calibration
    check_no_link(path)
    write_bytes(path, json.dumps(msgspec.structs.asdict(calibration), indent=2).encode() + b"\n")


def read_calibration(run: Path, weights_sha256: str) -> Calibration | None:
    """Return the calibration of these weights; None if the run has none, or one of other weights.

    Raises UserError for a file that is no calibration.
    """
    path = RunFolder(run).calibration
    try:
        found = read_json(path, Calibration, "a calibration")
    except FileNotFoundError:
        return None
    if not math.isfinite(found.temperature):
        raise UserError(f"{path}: not a calibration (temperature {found.temperature}); remove the file")
    return found if found.weights_sha256 == weights_sha256 else None
