"""Inspect a dataset: features, judgements, files, page and proposals; `lmk-inspect`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from lmk_data import __version__
from lmk_data.dataset import ShardedDataset
from lmk_data.dataset.inspection import FEATURES, PAGE
from lmk_data.errors import UserError
from lmk_data.system.files import check_no_link
from lmk_data.views.duplicates import find_duplicates
from lmk_train.config.commands import InspectConfig
from lmk_train.inspection.bulk import FALSE_ALARMS
from lmk_train.inspection.classes import judge_classes
from lmk_train.inspection.features import InspectedFeatures, open_precision
from lmk_train.inspection.folder import Findings, inspection_folder, write_findings
from lmk_train.inspection.labels import judge_labels
from lmk_train.inspection.network import FeatureNetwork, RunToInspect, published_network
from lmk_train.inspection.outliers import judge_outliers
from lmk_train.inspection.page import write_page
from lmk_train.inspection.proposals import DEFAULT_CONFIDENCE, SPLIT, Proposals, WrittenMarks, propose, write_marks
from lmk_train.inspection.rows import Samples
from lmk_train.inspection.thresholds import FALSE_ALARMS as FLAGGED_FALSE_ALARMS
from lmk_train.inspection.twins import shared_duplicates
from lmk_train.runtime.precision import Precision

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Inspection:
    """What a finished inspection has to say.

    Attributes:
        dataset: its location.
        base: the location of its pictures, if that was named.
        out: folder of the files.
        counts: what was found, by name.
        proposals: the marks that it proposes, and what became of them in the file; None without `--marks`.
    """

    dataset: str
    base: str | None
    out: Path
    counts: dict[str, int]
    proposals: tuple[Proposals, WrittenMarks] | None


def inspect_dataset(config: InspectConfig, announce: Announce) -> Inspection:
    """Inspect a dataset and write the files of the inspection; what is computed already is not computed again.

    Raises:
        UserError: run, dataset, splits and folder do not fit together, or the disk has no room.
    """
    run = None if config.run is None else RunToInspect(config.run, config.checkpoint)
    shards = config.shards or (run.dataset if run is not None else "")
    precision = open_precision(config)
    with ShardedDataset.open(shards, base=config.base) as dataset:
        splits = _splits(config, dataset)
        if config.marks is not None:
            write_marks(config.marks, {})  # a file that cannot be changed is told now, not after hours
        network = run.network(dataset.recipe.size) if run is not None else published_network(config, dataset)
        out = config.out or _default_folder(config, network)
        store = InspectedFeatures.of(out, dataset, network, precision)
        with inspection_folder(out, store):
            _compute(store, network, precision, splits, config, announce)
            findings = _judge(store, splits, precision.device, config, announce)
            description = _description(store, network, findings)
            write_findings(out, dataset, findings, description)
            write_page(out / PAGE, dataset, findings, description)
            proposals = None
            if config.marks is not None:
                confidence = DEFAULT_CONFIDENCE if config.min_confidence is None else config.min_confidence
                proposed = propose(dataset, findings, confidence)
                proposals = proposed, write_marks(config.marks, proposed.marks)
    return Inspection(shards, config.base, out, description["counts"], proposals)


def _splits(config: InspectConfig, dataset: ShardedDataset) -> tuple[str, ...]:
    """Return the splits to inspect, in their order in the dataset."""
    missing = [split for split in config.split if not dataset.num_samples(split)]
    if missing:
        raise UserError(
            f"--split {missing[0]}: {dataset.location} has no such split; it has {', '.join(dataset.splits)}"
        )
    splits = tuple(split for split in dataset.splits if not config.split or split in config.split)
    if config.marks is not None and SPLIT not in splits:
        raise UserError(f"--marks: proposals are for the training split only; add {SPLIT} to --split")
    return splits


def _default_folder(config: InspectConfig, network: FeatureNetwork) -> Path:
    if config.run is None:
        return Path("runs") / f"inspect-{network.model}"
    check_no_link(config.run / "inspect")  # the run may be a stranger's
    return config.run / "inspect"


def _compute(
    store: InspectedFeatures,
    network: FeatureNetwork,
    precision: Precision,
    splits: Sequence[str],
    config: InspectConfig,
    announce: Announce,
) -> None:
    """Announce what the features take, and compute those that are missing."""
    number = sum(store.dataset.num_samples(split) for split in splits)
    missing, size = store.missing_rows(splits), 2 * number * store.num_features
    size_text = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
    announce(
        f"{network.model}, {network.weights}: {store.num_features:,} features of {number:,} pictures ({size_text})"
    )
    if missing < number:
        announce(f"{number - missing:,} pictures have theirs in {store.folder.parent / FEATURES}")
    store.compute(network, precision, splits, config)


def _judge(
    store: InspectedFeatures, splits: tuple[str, ...], device: torch.device, config: InspectConfig, announce: Announce
) -> Findings:
    """Judge samples and classes by their features; labels and outliers on the device."""
    dataset, rows = store.dataset, store.read(splits)
    columns = [dataset.index_table(split, ["label"])["label"].to_numpy() for split in splits]
    labels = np.concatenate(columns).astype(np.int32)
    samples = Samples(rows, labels, dataset.num_classes)
    features = cast(NDArray[np.float16], rows)
    announce("judging labels, then outliers and classes")
    by_label = judge_labels(features, labels, dataset.num_classes, device=device)
    by_outlier = judge_outliers(features, labels, by_label.other_label, device=device)
    duplicates = find_duplicates(dataset, "near", workers=config.workers, quiet=config.quiet).samples
    shared = shared_duplicates(duplicates[duplicates["split"].isin(splits)])
    by_class = judge_classes(samples, by_label, shared, quiet=config.quiet)
    return Findings(splits, labels, by_label, by_outlier, by_class)


def _description(store: InspectedFeatures, network: FeatureNetwork, findings: Findings) -> dict[str, Any]:
    """Return what quality.json holds."""
    classes, splits = findings.by_class, findings.splits
    return {
        "lmk": __version__,
        "dataset": store.dataset.manifest["content_sha256"],
        "splits": {split: store.dataset.num_samples(split) for split in splits},
        "features": {"key": store.key, "weights_from": network.weights, **store.source},
        "thresholds": {
            "false_alarms_among_flagged_samples": FLAGGED_FALSE_ALARMS,
            "false_alarms_among_classes": FALSE_ALARMS,
            "parts_distance": round(classes.several_threshold, 6),
            "twin_distance": round(classes.twin_threshold, 6),
        },
        "counts": {
            "samples": len(findings.labels),
            "classes": store.dataset.num_classes,
            "wrong_labels": int(findings.by_label.wrong_label.sum()),
            "outliers": int(findings.by_outlier.outlier.sum()),
            "several": int(classes.several.sum()),
            "twins": int(classes.twin.sum()),
        },
    }
