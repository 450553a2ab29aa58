"""What `lmk-predict` writes: a line of text or of JSON for each picture, a table as CSV, or a submission to Kaggle."""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lmk_data.errors import UserError
from lmk_data.system.files import atomic_file
from lmk_data.system.storage import is_url
from lmk_data.system.terminal import without_secrets
from lmk_train.predict import Guess, Neighbour, Prediction

_URL_END = re.compile("[?#]")  # where the path of a URL ends
_STARTS = (b"image,", b"id,landmarks")  # of the tables
_QUOTED = set(',"\r\n')  # a cell with one of these is written in quotes


def text_line(prediction: Prediction) -> str:
    """Return the landmarks of a picture with their probabilities in one line, and its nearest training pictures."""
    said = ", ".join(f"{_named(guess)} {guess.probability:.3f}" for guess in prediction.guesses)
    if prediction.left_out is not None:
        said = f"no landmark is probable enough (the best has {prediction.left_out:.3f})"
    near = ", ".join(f"{one.key} ({_named(one)}) {one.similarity:.3f}" for one in prediction.neighbours)
    return f"{prediction.image}: {said}" + (f"; nearest: {near}" if near else "")


def json_line(prediction: Prediction) -> str:
    """Return the prediction for a picture as one line of JSON.

    It has `image` and `predictions`; `neighbours` if they were asked for; and `left_out`, the probability of the best
    landmark, if none is named.
    """
    said: dict[str, Any] = {
        "image": prediction.image,
        "predictions": [asdict(guess) for guess in prediction.guesses],
    }
    if prediction.neighbours:
        said["neighbours"] = [asdict(one) for one in prediction.neighbours]
    if prediction.left_out is not None:
        said["left_out"] = prediction.left_out
    return json.dumps(said)


def _named(one: Guess | Neighbour) -> str:
    return str(one.landmark_id) if one.name is None else f"{one.name} ({one.landmark_id})"


@dataclass(frozen=True)
class Table:
    """The columns of a CSV: `top` landmarks with probabilities, and `neighbours` training pictures."""

    top: int
    neighbours: int = 0

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        landmarks = [f"{name}_{place + 1}" for place in range(self.top) for name in ("landmark_id", "probability")]
        near = ("neighbour_key", "neighbour_landmark_id", "similarity")
        return ["image", *landmarks, *(f"{name}_{place + 1}" for place in range(self.neighbours) for name in near)]

    def row(self, prediction: Prediction) -> list[str]:
        """Return the cells of a picture, empty where nothing is named."""
        landmarks = [(str(guess.landmark_id), _number(guess.probability)) for guess in prediction.guesses]
        near = [(one.key, str(one.landmark_id), _number(one.similarity)) for one in prediction.neighbours]
        return [
            without_secrets(prediction.image),
            *(cell for cells in landmarks for cell in cells),
            *[""] * (2 * (self.top - len(landmarks))),
            *(cell for cells in near for cell in cells),
            *[""] * (3 * (self.neighbours - len(near))),
        ]


class Submission:
    """The columns of Kaggle's landmark recognition challenge."""

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        return ["id", "landmarks"]

    def row(self, prediction: Prediction) -> list[str]:
        """Return the id of a picture, and its most probable landmark and the probability with a space between.

        The second is empty without an answer.
        """
        best = [f"{guess.landmark_id} {_number(guess.probability)}" for guess in prediction.guesses[:1]]
        return [picture_id(prediction.image), *(best or [""])]


@contextmanager
def csv_file(path: Path, form: Table | Submission) -> Iterator[Callable[[Prediction], object]]:
    """Write a CSV at `path` once the block ends without an error; yield the function that adds a picture's row.

    Raises UserError if there is no folder for the file, or if something is there that is no such table.
    """
    if path.is_dir():
        raise UserError(f"--csv {path}: is a folder; name a file")
    if path.is_symlink():
        raise UserError(f"--csv {path}: is a link; name the file itself")
    if path.exists() and not _is_table(path):
        raise UserError(f"--csv {path}: exists and is no table of predictions; name another file, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"--csv {path}: there is no folder {path.parent}; make it first")
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")  # names of files are bytes
        text.write(csv_line(form.columns()))
        yield lambda prediction: text.write(csv_line(form.row(prediction)))
        text.flush()
        text.detach()


def _is_table(path: Path) -> bool:
    """Return whether a file may be replaced by a table: an earlier one of either form, or an empty file."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(15).removeprefix(codecs.BOM_UTF8).startswith(_STARTS) or not path.stat().st_size


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
