"""The files of an evaluation read back: each is checked against its declaration when it is opened."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pandas as pd
import pyarrow as pa

from lmk_data.dataset.evaluation import AGAIN, LIMITS
from lmk_data.errors import UserError, one_line
from lmk_data.system.parquet import read_parquet
from lmk_train.runs.folder import RunFolder
from lmk_train.runs.plain_file import checked, open_regular, read_json

_TEXT = (pa.types.is_string, pa.types.is_large_string)
_IS = {
    "text": lambda kind: any(is_kind(kind) for is_kind in _TEXT),
    "whole": pa.types.is_integer,
    "real": pa.types.is_floating,
    "id": lambda kind: any(is_kind(kind) for is_kind in (*_TEXT, pa.types.is_integer)),
}
_PREDICTIONS = {"key": "text", "target": "whole", "label_1": "whole", "probability_1": "real"}
_PER_CLASS = {"label": "whole", "landmark_id": "id", "name": "text"}
_COUNTS = ("train", "support", "predicted", "correct")
_PER_CLASS |= dict.fromkeys(_COUNTS, "whole")
_PER_CLASS |= dict.fromkeys(("precision", "recall", "f1"), "real")
_CONFUSION = dict.fromkeys(("target", "prediction", "count"), "whole")

Text = Annotated[str, msgspec.Meta(max_length=10_000)]
Value = float | int | None


class _Evaluation(msgspec.Struct):
    """What eval-<split>.json has at least."""

    dataset: Text
    trained_on: Text
    shards: Text
    checkpoint: Text
    num_samples: Annotated[int, msgspec.Meta(ge=1)]
    accuracy: Value
    top5_accuracy: Value
    macro_f1: Value
    gap: Value


class _Row(msgspec.Struct):
    tau: float
    accuracy: float
    macro_f1: float


class _OtherRow(msgspec.Struct):
    tau: float | None
    accuracy: float
    macro_f1: float
    macro_recall: float


class _Other(msgspec.Struct):
    picked: float | None
    sweep: Annotated[list[_OtherRow], msgspec.Meta(min_length=1, max_length=1000)]


class Sweep(msgspec.Struct):
    """What tau-<split>.json has: logit adjustment, and the other post-hoc methods by their names."""

    picked: float | None
    picked_on: Text | None
    sweep: Annotated[list[_Row], msgspec.Meta(min_length=1, max_length=1000)]
    others: Annotated[dict[Text, _Other], msgspec.Meta(max_length=100)] = {}


def read_evaluation(path: Path) -> dict[str, Any]:
    """Return eval-<split>.json: texts that say what was evaluated, and metrics, which are numbers or None.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is anything else.
    """
    found = read_json(path, dict[str, str | int | float | None], "an evaluation")
    try:
        checked(found, _Evaluation)
        texts = {name for name, value in found.items() if isinstance(value, str)} - set(_Evaluation.__struct_fields__)
        if texts:
            raise ValueError(f"{min(texts)[:80]!r} is text")
    except ValueError as error:
        raise UserError(f"{path}: not an evaluation ({one_line(error)}); {AGAIN}") from None
    return found


def read_sweep(path: Path) -> Sweep:
    """Return tau-<split>.json. Raises as `read_evaluation` does."""
    return read_json(path, Sweep, "a sweep over tau")


def read_tables(folder: RunFolder, split: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return the predictions for a split, its figures by class and its sparse confusion matrix.

    Raises UserError for a file that is absent, damaged or does not fit the others.
    """
    predictions = _read_table(folder.predictions(split), _PREDICTIONS, nullable="target")
    classes = _read_table(folder.per_class(split), _PER_CLASS, nullable="name")
    confusion = _read_table(folder.confusion(split), _CONFUSION, nullable=None)
    if classes["label"].tolist() != list(range(len(classes))):
        raise UserError(f"{folder.per_class(split)}: its labels are not 0, 1, 2 and so on; {AGAIN}")
    if not (classes[list(_COUNTS)] >= 0).all(axis=None) or not classes["support"].any():
        raise UserError(f"{folder.per_class(split)}: its counts are no counts of images; {AGAIN}")
    labels = [(folder.predictions(split), predictions[name].dropna()) for name in ("target", "label_1")]
    labels += [(folder.confusion(split), confusion[name]) for name in ("target", "prediction")]
    for path, column in labels:
        if not column.between(0, len(classes) - 1).all():
            raise UserError(f"{path}: has labels of classes that {folder.per_class(split).name} lacks; {AGAIN}")
    return predictions, classes, confusion


def _read_table(path: Path, columns: dict[str, str], *, nullable: str | None) -> pd.DataFrame:
    """Return a Parquet file whose columns have these kinds, all filled except for the one that may be null."""
    try:
        with open_regular(path) as source:
            table = read_parquet(source, None, LIMITS)
        for name, kind in columns.items():
            if name not in table.column_names or not _IS[kind](table.schema.field(name).type):
                raise ValueError(f"has no column {name} of the right type")
            if name != nullable and table[name].null_count:
                raise ValueError(f"{name} has empty places")
        frame: pd.DataFrame = table.to_pandas()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {AGAIN}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise UserError(f"{path}: not a table of an evaluation ({one_line(error)}); {AGAIN}") from None
    return frame
