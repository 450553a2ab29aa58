"""Data quality as figures: duplicates by kind, those under several labels, leakage, and the groups worth a look."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from lmk_data.dataset.reader import ShardedDataset
from lmk_data.options import DuplicateKind
from lmk_data.views.duplicates import Duplicates, find_duplicates

_KINDS: tuple[DuplicateKind, ...] = ("exact", "near")
_SHOWN_GROUPS, _SHOWN_PICTURES = 8, 8


@dataclass(frozen=True)
class Quality:
    """`figures` for report.json; `groups`: the samples of the groups worth a look, each with what is the matter."""

    figures: dict[str, Any]
    groups: list[tuple[str, pd.DataFrame]]


def assess(dataset: ShardedDataset, *, workers: int | None = None, quiet: bool = True) -> Quality:
    """Look for exact and near duplicates in a dataset or a view; DatasetError if a picture cannot be read."""
    exact, near = (find_duplicates(dataset, kind, workers=workers, quiet=quiet) for kind in _KINDS)
    figures = {found.kind: _figures(dataset, found) for found in (exact, near)}
    groups = _worth_a_look(near)
    shown = [
        {"what": what, "samples": samples[["split", "row", "label", "key"]].to_dict("records")}
        for what, samples in groups
    ]
    return Quality({"duplicates": figures, "duplicate_groups": shown}, groups)


def _figures(dataset: ShardedDataset, found: Duplicates) -> dict[str, Any]:
    leaked = found.leaked()["split"].value_counts()
    conflicts = found.conflicts()
    return {
        "groups": found.num_groups,
        "samples": len(found.samples),
        "superfluous": len(found.superfluous()),
        "groups_with_several_labels": int(conflicts["group"].nunique()),
        "leaked": {
            split: {
                "num_samples": int(leaked.get(split, 0)),
                "share": round(int(leaked.get(split, 0)) / dataset.num_samples(split), 6),
            }
            for split in dataset.splits
            if split != "train"
        },
    }


def _worth_a_look(found: Duplicates) -> list[tuple[str, pd.DataFrame]]:
    """Groups under several labels first, then leaking ones, then others; the largest first."""
    samples = found.samples
    if samples.empty:
        return []
    several = samples.groupby("group")["label"].nunique() > 1
    leaking = samples["group"].isin(found.leaked()["group"]).groupby(samples["group"]).any()
    size = samples.groupby("group").size()
    order = pd.DataFrame({"several": several, "leaking": leaking, "size": size}).sort_values(
        ["several", "leaking", "size"], ascending=False, kind="stable"
    )
    shown = []
    for group, row in order.head(_SHOWN_GROUPS).iterrows():
        matters = [text for text, holds in (("several labels", row["several"]), ("leakage", row["leaking"])) if holds]
        what = f"{row['size']} pictures" + (f": {', '.join(matters)}" if matters else "")
        shown.append((what, samples[samples["group"] == group].head(_SHOWN_PICTURES)))
    return shown
