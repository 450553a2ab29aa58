"""What `lmk-predict` writes: a line of text or of JSON for each picture, a table as CSV, or a submission to Kaggle."""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from lmk_data.errors import UserError
from lmk_data.system.files import atomic_file
from lmk_data.system.storage import is_url
from lmk_data.system.terminal import without_secrets
from lmk_train.predict import Guess, Prediction

_URL_END = re.compile("[?#]")  # where the path of a URL ends
_QUOTED = set(',"\r\n')  # a cell with one of these is written in quotes
SUBMISSION_COLUMNS = ("id", "landmarks")


def text_line(prediction: Prediction) -> str:
    """Return the landmarks of a picture with their probabilities in one line."""
    said = ", ".join(f"{_named(guess)} {guess.probability:.3f}" for guess in prediction.guesses)
    return f"{prediction.image}: {said}"


def json_line(prediction: Prediction) -> str:
    """Return the prediction for a picture as one line of JSON: `image`, `predictions`."""
    guesses = [asdict(guess) for guess in prediction.guesses]
    return json.dumps({"image": prediction.image, "predictions": guesses})


def _named(guess: Guess) -> str:
    return str(guess.landmark_id) if guess.name is None else f"{guess.name} ({guess.landmark_id})"


@contextmanager
def csv_file(path: Path, top: int | None) -> Iterator[Callable[[Prediction], object]]:
    """Write a CSV at `path` once the block ends without an error; yield the function that adds a picture's row.

    Args:
        path: of the file.
        top: landmarks of a row, see `table_row`; None for the form of a submission, see `submission_row`.

    Raises UserError if there is no folder for the file.
    """
    if path.is_dir():
        raise UserError(f"--csv {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"--csv {path}: there is no folder {path.parent}; make it first")
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")  # names of files are bytes
        text.write(csv_line(SUBMISSION_COLUMNS if top is None else table_columns(top)))
        yield lambda prediction: text.write(
            csv_line(submission_row(prediction) if top is None else table_row(prediction, top))
        )
        text.flush()
        text.detach()


def table_columns(top: int) -> list[str]:
    """Return the names of the columns of `table_row`."""
    return ["image", *(f"{name}_{place}" for place in range(1, top + 1) for name in ("landmark_id", "probability"))]


def table_row(prediction: Prediction, top: int) -> list[str]:
    """Return the cells of a picture: its name, and `top` landmarks with probabilities, empty where none is named."""
    named = [cell for guess in prediction.guesses for cell in (str(guess.landmark_id), _number(guess.probability))]
    return [without_secrets(prediction.image), *named, *[""] * (2 * top - len(named))]


def submission_row(prediction: Prediction) -> list[str]:
    """Return the cells of a picture in the form of Kaggle's landmark recognition challenge: id and landmarks.

    The landmarks are the most probable one and its probability with a space between, or empty without an answer.
    """
    best = [f"{guess.landmark_id} {_number(guess.probability)}" for guess in prediction.guesses[:1]]
    return [picture_id(prediction.image), *(best or [""])]


def csv_line(cells: Iterable[str]) -> str:
    """Return one line of a CSV; cells are quoted where they have to be."""
    quoted = ('"' + cell.replace('"', '""') + '"' if _QUOTED & set(cell) else cell for cell in cells)
    return ",".join(quoted) + "\n"


def picture_id(name: str) -> str:
    """Return the id of a picture in a submission: the name of its file without folder and suffix."""
    return PurePosixPath(_URL_END.split(name)[0] if is_url(name) else name).stem


def with_unique_ids(names: Iterable[str]) -> Iterator[str]:
    """Yield the names of pictures. Raises UserError for two with the same id, which a submission names once."""
    seen: dict[str, str] = {}
    for name in names:
        own = picture_id(name)
        if own in seen:
            raise UserError(
                f"--submission: {seen[own]} and {name} have the same id, {own}; a submission has one row for each id, "
                "so leave one of them out"
            )
        seen[own] = name
        yield name


def _number(probability: float) -> str:
    """Return a probability with the nine digits that tell all float32 apart: rankings are by it."""
    return f"{probability:.9g}"
