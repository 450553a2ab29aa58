"""The sections of the page of a dataset."""

import numpy as np
import pandas as pd
from markupsafe import Markup

from lmk_data.dataset.format import FEW_BELOW, MANY_ABOVE, SPLITS
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.report import page
from lmk_data.report.census import QUANTILES, Census
from lmk_data.report.figures import Band, DatasetFigures, RejectFigures
from lmk_data.report.pictures import class_rows, group_rows, odd_rows
from lmk_data.report.plots import class_size_plot, coverage_plot, margin_plot, picture_plots
from lmk_data.report.quality import Quality
from lmk_data.report.summary import image_accounts, origin_rows
from lmk_data.system.terminal import counted


def dataset_sections(dataset: ShardedDataset, figures: DatasetFigures) -> list[page.Section]:
    """Return the sections of the page in their order; reads the images that it shows."""
    census = figures.census
    long_tail = [
        class_size_plot(census.class_sizes),
        coverage_plot(census.coverage),
        _band_table(figures.bands),
        margin_plot(census.margins),
    ]
    return [
        page.Section("At a glance", [_key_figures(figures)]),
        page.Section("Where every image went", [_account_table(figures)]),
        page.Section("Splits", [_split_table(figures)]),
        page.Section("Long tail", long_tail),
        page.Section("Images of the largest, middle and smallest classes", [page.picture_rows(class_rows(dataset))]),
        page.Section("Duplicates and leakage", _duplicates(dataset, figures.quality)),
        page.Section("Source and stored images", _census_parts(dataset, census)),
        page.Section("Classes", _classes(dataset)),
        page.Section("Rejected images", _reject_table(figures.rejects)),
        page.Section("Provenance", [_provenance(figures)]),
        page.Section("Reading the dataset in Python", [_reading(figures)]),
    ]


def _key_figures(figures: DatasetFigures) -> Markup:
    classes = figures.classes
    megabytes = sum(figures.megabytes(split) for split in figures.splits.values())
    return page.key_figures(
        [
            (f"{figures.counts['written']:,}", "images"),
            (f"{classes.kept:,}", "classes"),
            (f"{classes.largest:,} to {classes.smallest:,}", "images per class"),
            (f"{classes.imbalance_ratio:,.0f} : 1", "imbalance"),
            (f"{classes.gini:.2f}", "Gini of class sizes"),
            (f"{megabytes:,.1f} MB", "of images" if figures.is_view else "in shards"),
        ]
    )


def _account_table(figures: DatasetFigures) -> Markup:
    accounts = image_accounts(figures)
    total = accounts[-1][1]
    return page.table(["images", "number", "share"], [(name, n, page.percent(n / total)) for name, n in accounts])


def _split_table(figures: DatasetFigures) -> Markup:
    size = "MB of images" if figures.is_view else "MB"
    header = ["split", "requested", "actual", "images", "classes", "shards", size]
    rows = [
        (
            name,
            page.percent(split.asked),
            page.percent(split.ratio),
            split.num_samples,
            split.num_classes,
            split.num_shards,
            round(figures.megabytes(split), 1),
        )
        for name, split in figures.splits.items()
    ]
    return page.table(header, rows)


def _band_table(bands: dict[str, Band]) -> Markup:
    names = {
        "many": f"many (over {MANY_ABOVE} training images)",
        "medium": f"medium ({FEW_BELOW} to {MANY_ABOVE})",
        "few": f"few (under {FEW_BELOW})",
    }
    rows = [(names[name], band.num_classes, band.num_train) for name, band in bands.items()]
    return page.table(["class size", "classes", "training images"], rows)


def _duplicates(dataset: ShardedDataset, quality: Quality) -> list[Markup]:
    """Return the number of duplicates, the leakage into validation and test, and the groups worth a look."""
    others = [split for split in dataset.splits if split != "train"]
    leaks = [f"{split} in train" for split in others]
    rows = []
    for kind, counts in quality.duplicates.items():
        shares = ((counts.leaked[split].num_samples, counts.leaked[split].share) for split in others)
        leaked = [page.Number(f"{number:,} ({page.percent(share)})") for number, share in shares]
        name = {"exact": "exact (same file)", "near": "exact or near"}[kind]
        superfluous, conflicts = counts.superfluous, counts.groups_with_several_labels
        rows.append((name, counts.groups, counts.samples, conflicts, *leaked, superfluous))
    explanation = (
        "Conflicts: groups with several labels. Superfluous: images that a view without duplicates leaves out, which "
        "are those in train too, and all but the first of a group in a split."
    )
    header = ["duplicates", "groups", "images", "conflicts", *leaks, "superfluous"]
    parts, where = [page.table(header, rows), page.paragraph(explanation)], dataset.location
    if quality.duplicate_groups:
        kind = "exact" if quality.duplicates["near"] == quality.duplicates["exact"] else "near"
        parts += [
            page.paragraph("To make a view without them:"),
            page.command("lmk-shard", "subset", where, "--out", f"{where}-clean", "--drop-duplicates", kind),
            page.paragraph("To look through all of them, and mark wrong labels:"),
            page.command("lmk-shard", "browse", where),
            page.paragraph("Groups worth a look:"),
            page.picture_rows(group_rows(dataset, quality.duplicate_groups)),
        ]
    return parts


def _census_parts(dataset: ShardedDataset, census: Census) -> list[Markup]:
    """Return sizes of the sources and of what is stored, odd images, and how well labels are mixed over shards."""
    names = {
        "width": "source width, pixels",
        "height": "source height, pixels",
        "megapixels": "source megapixels",
        "aspect": "source width / height",
        "source_kb": "source KB",
        "stored_kb": "stored KB",
    }
    rows = [
        (names[name], *(page.Number(f"{quantiles[at]:,.4g}") for at in QUANTILES))
        for name, quantiles in census.pictures.items()
    ]
    odd, mixing = census.odd, census.mixing
    odd_counts = (
        f"Enlarged, because a side of the source is shorter than the stored one: {odd.enlarged:,}. Longer than 4 : 1: "
        f"{odd.elongated:,}. Under 2 KB as stored, so nearly uniform: {odd.nearly_uniform:,}."
    )
    mixed = (
        f"The labels in a shard of the {dataset.splits[0]} split have {mixing.entropy:.3f} bits of entropy on average; "
        f"in random order they would have {mixing.by_chance:.3f}."
    )
    return [
        page.table(["", "minimum", "5 %", "median", "95 %", "maximum"], rows),
        *picture_plots(census.histograms),
        page.paragraph(odd_counts),
        page.picture_rows(odd_rows(dataset, census.odd_ones)),
        page.paragraph(mixed),
    ]


def _classes(dataset: ShardedDataset) -> list[Markup]:
    """Return the commands that show classes and find wrong labels in them, and the table of all classes."""
    return [
        page.paragraph("To find wrong labels and outliers, and then to look at the pictures of any class:"),
        page.command("lmk-inspect", "--shards", dataset.location),
        page.command("lmk-shard", "browse", dataset.location),
        _class_table(dataset.classes),
    ]


def _class_table(classes: pd.DataFrame) -> Markup:
    header = ["label", "landmark", "name", "listed", *SPLITS, "rejected"]
    names = ["label", "landmark_id", "name", "listed", *SPLITS, "rejected"]
    columns = [classes[name].astype(str if name in ("landmark_id", "name") else np.int64).tolist() for name in names]
    return page.sortable_table(header, columns)


def _reject_table(rejects: dict[str, RejectFigures]) -> list[Markup]:
    if not rejects:
        return [page.paragraph("None: every planned image was written.")]
    rows = [(reason, rejected.count, ", ".join(rejected.examples)) for reason, rejected in rejects.items()]
    return [page.table(["reason", "images", "examples"], rows), page.paragraph("All of them: rejects.parquet.")]


def _provenance(figures: DatasetFigures) -> Markup:
    source, rule, recipe = figures.source, figures.plan, figures.recipe
    encoder = recipe["encoder"]
    size = f"{recipe['size']}x{recipe['size']}, {recipe['fit']}, {recipe['filter']}"
    rule_name = "rule" if figures.origin is None else "rule of the original dataset"
    rows = [
        *origin_rows(figures),
        ("label table", f"{source['labels']} ({source['layout']}), {counted(source['num_images'], 'image')}"),
        ("ids with two labels, left out", f"{source['conflicting']:,}"),
        (rule_name, f"at least {rule['min_samples']} images" + (f", top {rule['top']}" if rule["top"] else "")),
        ("seed", str(rule["seed"])),
        ("images", f"{size}, JPEG quality {recipe['quality']}, {recipe['subsampling']}"),
        ("encoder", f"{encoder['distribution']} {encoder['version']}, libjpeg-turbo {encoder['libjpeg_turbo']}"),
        ("licence", figures.license or "not stated"),
        ("fingerprint", figures.fingerprint),
        ("content", figures.content_sha256),
    ]
    return page.table(["", ""], rows)


def _reading(figures: DatasetFigures) -> Markup:
    lines = [
        "from lmk_data.dataset import ShardedDataset\n",
        'dataset = ShardedDataset.open("path/to/the/folder")',
        'sample = dataset.read("train", 0)            # key, label, landmark_id, jpeg',
        'samples = dataset.webdataset("train")        # a ready webdataset pipeline',
    ]
    return page.code("\n".join(lines[:-1] if figures.is_view else lines))
