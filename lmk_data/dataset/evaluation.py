"""The tables that an evaluation of a run leaves, as others read them: their names and their greatest size."""

from lmk_data.system.parquet import TableLimits

LIMITS = TableLimits(max_rows=20_000_000, max_bytes=4 << 30)
AGAIN = "evaluate the split again with lmk-eval"  # how to mend a table that is damaged


def predictions_name(split: str) -> str:
    """Return the name of the table of predictions: key, target, the five best labels and their probabilities."""
    return f"predictions-{split}.parquet"


def per_class_name(split: str) -> str:
    """Return the name of the table with a row per class: support, precision, recall, F1."""
    return f"per-class-{split}.parquet"
