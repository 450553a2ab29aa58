"""The dataset report: every figure as JSON, a page for people, a few lines for the terminal."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from lmk_data import page
from lmk_data.census import QUANTILES, odd_ones, read_pictures, take_census
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import DatasetError
from lmk_data.format import SPLITS, canonical_json, write_file
from lmk_data.plots import frequency_plots, margin_plot, picture_plots
from lmk_data.quality import Quality, assess
from lmk_data.storage import Folder

MANY_ABOVE, FEW_BELOW = 100, 20
_MOSAIC_CLASSES, _MOSAIC_PICTURES, _ODD_PICTURES = 4, 8, 8
_EXAMPLES = 5
_THUMBNAIL = 112


@dataclass(frozen=True)
class Report:
    """The figures of a dataset, as report.json has them."""

    title: str
    figures: dict[str, Any]


def write_report(dataset: ShardedDataset, out: Folder, *, workers: int | None = None, quiet: bool = True) -> Report:
    """Write `index.html` and `report.json` into `out`; `workers` threads compare pictures for near duplicates.

    Raises DatasetError if a file of the dataset cannot be read.
    """
    quality = assess(dataset, workers=workers, quiet=quiet)
    figures = {**summarize(dataset), **take_census(dataset), **quality.figures}
    title = " ".join(dataset.manifest["title"].split()) or "Image shards"
    subtitle = (
        f"{figures['counts']['written']:,} images of {figures['classes']['kept']:,} classes, "
        f"{dataset.recipe.size}x{dataset.recipe.size} pixels"
    )
    html = page.render_page(title, subtitle, _sections(dataset, figures, quality))
    write_file(out, "report.json", canonical_json(figures) + b"\n")
    write_file(out, "index.html", html.encode())
    out.sweep()
    return Report(title, figures)


def terminal_summary(report: Report) -> str:
    """The report in a few lines."""
    figures, counts = report.figures, report.figures["counts"]
    left = [
        f"{counts['below_min_samples']:,} in classes under {figures['plan']['min_samples']}",
        f"{counts['outside_top']:,} outside the largest classes",
        f"{counts['rejected']:,} rejected",
    ]
    lines = [
        f"  {counts['listed']:,} images listed = {counts['written']:,} written + {' + '.join(left)}",
        f"  {figures['classes']['kept']:,} classes of {figures['classes']['largest']:,} to "
        f"{figures['classes']['smallest']:,} images; {figures['classes']['dropped']:,} classes left out",
    ]
    for name, split in figures["splits"].items():
        lines.append(
            f"  {name:5} {split['num_samples']:>9,} images ({split['ratio']:.1%}) of {split['num_classes']:,} classes, "
            f"{split['num_shards']:,} shards, {split['num_bytes'] / 1e6:,.1f} MB"
        )
    for kind, found in figures["duplicates"].items():
        leaked = ", ".join(f"{part['share']:.1%} of {split}" for split, part in found["leaked"].items())
        if found["groups"] and (kind == "exact" or found != figures["duplicates"]["exact"]):
            words = {"exact": "exact", "near": "exact or near"}[kind]
            lines.append(f"  {found['groups']:,} groups of {words} duplicates; in training too: {leaked or 'nothing'}")
    for reason, number in figures["rejects"].items():
        lines.append(f"  rejected {number['count']:,}: {reason} ({', '.join(number['examples'])})")
    return "\n".join(lines)


def summarize(dataset: ShardedDataset) -> dict[str, Any]:
    """Every figure of the report, from the manifest and the Parquet files in columns."""
    manifest, classes, dropped = dataset.manifest, dataset.classes, dataset.dropped_classes()
    listed = np.sort(classes["listed"].to_numpy(np.int64))[::-1]
    everyone = np.sort(np.concatenate([listed, dropped["listed"].to_numpy(np.int64)]))[::-1]
    total = len(dataset)
    return {
        "source": manifest["source"],
        "plan": manifest["plan"],
        "recipe": manifest["recipe"],
        "license": manifest["license"],
        "fingerprint": manifest["fingerprint"],
        "content_sha256": manifest["content_sha256"],
        "counts": manifest["counts"],
        "classes": {
            "kept": len(classes),
            "dropped": len(dropped),
            "largest": int(listed.max()),
            "smallest": int(listed.min()),
            "median": float(np.median(listed)),
            "imbalance_ratio": round(float(listed.max() / listed[listed > 0].min()), 4),
            "gini": round(gini(listed), 4),
            "gini_before_the_rule": round(gini(everyone), 4),
            "half_of_images_in": int(np.searchsorted(listed.cumsum(), listed.sum() / 2) + 1),
        },
        "bands": _bands(classes),
        "splits": {
            name: {
                "asked": manifest["plan"]["split"][name],
                "ratio": round(split["num_samples"] / total, 6),
                "num_samples": split["num_samples"],
                "num_classes": int((classes[name] > 0).sum()),
                "num_shards": len(split["shards"]),
                "num_bytes": split["num_bytes"],
            }
            for name, split in ((name, manifest["splits"][name]) for name in dataset.splits)
        },
        "rejects": _rejects(dataset),
    }


def gini(counts: "np.ndarray[Any, np.dtype[np.int64]]") -> float:
    """The Gini coefficient of class sizes: 0 if all are equal, near 1 if one class has nearly everything."""
    ascending = np.sort(counts)
    ranks = np.arange(1, len(counts) + 1)
    return float((2 * ranks - len(counts) - 1) @ ascending / (len(counts) * ascending.sum()))


def _bands(classes: pd.DataFrame) -> dict[str, dict[str, int]]:
    train = classes["train"]
    chosen = {
        "many": train > MANY_ABOVE,
        "medium": train.between(FEW_BELOW, MANY_ABOVE),
        "few": train < FEW_BELOW,
    }
    return {
        name: {"num_classes": int(rows.sum()), "num_train": int(train[rows].sum())} for name, rows in chosen.items()
    }


def _rejects(dataset: ShardedDataset) -> dict[str, dict[str, Any]]:
    rejects = dataset.rejects()
    return {
        str(reason): {"count": len(rows), "examples": rows["key"].head(_EXAMPLES).tolist()}
        for reason, rows in rejects.groupby("reason")
    }


def _sections(dataset: ShardedDataset, figures: dict[str, Any], quality: Quality) -> list[page.Section]:
    counts, sizes = figures["counts"], figures["classes"]
    key = [
        (f"{counts['written']:,}", "images"),
        (f"{sizes['kept']:,}", "classes"),
        (f"{sizes['largest']:,} to {sizes['smallest']:,}", "images in a class"),
        (f"{sizes['imbalance_ratio']:,.0f} : 1", "imbalance"),
        (f"{sizes['gini']:.2f}", "Gini of class sizes"),
        (f"{sum(s['num_bytes'] for s in figures['splits'].values()) / 1e6:,.1f} MB", "in shards"),
    ]
    return [
        page.Section("At a glance", [page.key_figures(key)]),
        page.Section("Where every image went", [_reconciliation(figures)]),
        page.Section("Splits", [_split_table(figures)]),
        page.Section("The long tail", [*frequency_plots(dataset), _band_table(figures), margin_plot(dataset)]),
        page.Section("Pictures", [page.picture_rows(_mosaic(dataset))]),
        page.Section("Duplicates and leakage", _duplicates(dataset, figures, quality)),
        page.Section("The sources and what is stored", _census_parts(dataset, figures)),
        page.Section("Classes", [_class_table(dataset.classes)]),
        page.Section("Rejected images", _reject_table(figures)),
        page.Section("How it was made", [_provenance(figures)]),
        page.Section("How to read it", [_reading()]),
    ]


def _reconciliation(figures: dict[str, Any]) -> Markup:
    counts, rule = figures["counts"], figures["plan"]
    rows = [
        ("written", counts["written"]),
        (f"in classes of fewer than {rule['min_samples']} images", counts["below_min_samples"]),
        ("outside the largest classes", counts["outside_top"]),
        ("rejected", counts["rejected"]),
        ("listed in all", counts["listed"]),
    ]
    return page.table(["images", "number", "share"], [(n, v, _percent(v / counts["listed"])) for n, v in rows])


def _split_table(figures: dict[str, Any]) -> Markup:
    header = ["split", "asked", "actual", "images", "classes", "shards", "MB"]
    rows = [
        (
            name,
            _percent(split["asked"]),
            _percent(split["ratio"]),
            split["num_samples"],
            split["num_classes"],
            split["num_shards"],
            round(split["num_bytes"] / 1e6, 1),
        )
        for name, split in figures["splits"].items()
    ]
    return page.table(header, rows)


def _band_table(figures: dict[str, Any]) -> Markup:
    names = {
        "many": f"many (over {MANY_ABOVE} training images)",
        "medium": f"medium ({FEW_BELOW} to {MANY_ABOVE})",
        "few": f"few (under {FEW_BELOW})",
    }
    rows = [(names[n], band["num_classes"], band["num_train"]) for n, band in figures["bands"].items()]
    return page.table(["size", "classes", "training images"], rows)


def _mosaic(dataset: ShardedDataset) -> list[page.PictureRow]:
    """Some classes of the head, the middle and the tail, with some of their pictures, of training if there is any."""
    classes = dataset.classes
    count = len(classes)
    if count <= 3 * _MOSAIC_CLASSES:
        chosen = list(range(count))
    else:
        middle = count // 2 - _MOSAIC_CLASSES // 2
        starts = (0, middle, count - _MOSAIC_CLASSES)
        chosen = [label for start in starts for label in range(start, start + _MOSAIC_CLASSES)]
    index = dataset.index(dataset.splits[0], ["label", "shard", "jpg_offset", "jpg_size"])
    index = index[index["label"].isin(chosen)].groupby("label").head(_MOSAIC_PICTURES)
    rows = []
    for label in chosen:
        found = index[index["label"] == label]
        places = zip(found["shard"], found["jpg_offset"], found["jpg_size"], strict=True)
        jpegs = [_thumbnail(dataset, str(shard), int(offset), int(size)) for shard, offset, size in places]
        row = classes.loc[label]
        rows.append(page.PictureRow(str(row["name"]), f"{row['landmark_id']}, {row['listed']:,} images", jpegs))
    return rows


def _census_parts(dataset: ShardedDataset, figures: dict[str, Any]) -> list[Markup]:
    """Sizes of the sources and of what is stored, the odd ones, and how well labels are mixed over shards."""
    names = {
        "width": "source width, pixels",
        "height": "source height, pixels",
        "megapixels": "source megapixels",
        "aspect": "source width / height",
        "source_kb": "source KB",
        "stored_kb": "stored KB",
    }
    header = ["", "least", "5 %", "half", "95 %", "most"]
    rows = [(names[name], *(f"{found[at]:,.4g}" for at in QUANTILES)) for name, found in figures["pictures"].items()]
    odd, mixing = figures["odd"], figures["mixing"]
    told = (
        f"Enlarged, because a side of the source is shorter than the stored one: {odd['enlarged']:,}. Longer than four "
        f"times their width or height: {odd['elongated']:,}. Under 2 KB as stored, so nearly uniform: "
        f"{odd['nearly_uniform']:,}."
    )
    mixed = (
        f"Labels in a shard of the {dataset.splits[0]} split have {mixing['entropy']:.3f} bits of entropy on average; "
        f"shuffled by chance they would have {mixing['by_chance']:.3f}."
    )
    pictures = read_pictures(dataset)
    return [
        page.table(header, rows),
        *picture_plots(pictures),
        page.paragraph(told),
        page.picture_rows(
            page.PictureRow(
                odd.what, odd.note, [_sample_thumbnail(dataset, split, row) for split, row in odd.rows.index]
            )
            for odd in odd_ones(pictures, _ODD_PICTURES)
        ),
        page.paragraph(mixed),
    ]


def _duplicates(dataset: ShardedDataset, figures: dict[str, Any], quality: Quality) -> list[Markup]:
    """How many pictures come twice, how much of validation and test is in training, and the worst groups."""
    splits = [split for split in dataset.splits if split != "train"]
    header = ["duplicates", "groups", "images in them", "groups with several labels"]
    header += [f"{split} also in train" for split in splits] + ["a clean view leaves out"]
    rows = [
        (
            {"exact": "exact (the same file)", "near": "exact or near"}[kind],
            found["groups"],
            found["samples"],
            found["groups_with_several_labels"],
            *(f"{found['leaked'][s]['num_samples']:,} ({_percent(found['leaked'][s]['share'])})" for s in splits),
            found["superfluous"],
        )
        for kind, found in figures["duplicates"].items()
    ]
    parts = [page.table(header, rows)]
    if quality.groups:
        kinds = "exact" if figures["duplicates"]["near"] == figures["duplicates"]["exact"] else "near"
        parts.append(page.paragraph("A view without them:"))
        parts.append(page.code(f"lmk-shard subset DATASET --out CLEAN --drop-duplicates {kinds}"))
        parts.append(page.paragraph("The groups most worth a look:"))
        parts.append(page.picture_rows([_group_row(dataset, what, samples) for what, samples in quality.groups]))
    return parts


def _group_row(dataset: ShardedDataset, what: str, samples: pd.DataFrame) -> page.PictureRow:
    names = dataset.classes["name"]
    rows = zip(samples["split"], samples["row"], strict=True)
    jpegs = [_sample_thumbnail(dataset, split, row) for split, row in rows]
    shown = ", ".join(dict.fromkeys(str(names[label]) for label in samples["label"]))
    return page.PictureRow(shown, f"{what}; in {', '.join(dict.fromkeys(samples['split']))}", jpegs)


def _sample_thumbnail(dataset: ShardedDataset, split: str, row: int) -> bytes:
    place = dataset.index_table(split, ["shard", "jpg_offset", "jpg_size"]).slice(int(row), 1).to_pylist()[0]
    return _thumbnail(dataset, place["shard"], place["jpg_offset"], place["jpg_size"])


def _thumbnail(dataset: ShardedDataset, shard: str, offset: int, num_bytes: int) -> bytes:
    """A smaller JPEG of a stored picture, so that the page stays small."""
    from PIL import Image

    buffer = io.BytesIO()
    try:
        jpeg = dataset.read_bytes(shard, offset, num_bytes)
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            image.save(buffer, "JPEG", quality=80)
    except (OSError, SyntaxError, ValueError) as error:
        where = dataset.shards_folder.location(shard)
        raise DatasetError(
            f"{where}: the picture at {offset:,} is damaged ({error}); run `lmk-shard verify`"
        ) from error
    return buffer.getvalue()


def _class_table(classes: pd.DataFrame) -> Markup:
    header = ["label", "landmark", "name", "listed", *SPLITS, "rejected"]
    names = ["label", "landmark_id", "name", "listed", *SPLITS, "rejected"]
    columns = [classes[name].astype(str if name in ("landmark_id", "name") else np.int64).tolist() for name in names]
    return page.sortable_table(header, columns)


def _reject_table(figures: dict[str, Any]) -> list[Markup]:
    if not figures["rejects"]:
        return [page.paragraph("None: every planned image was written.")]
    rows = [(name, row["count"], ", ".join(row["examples"])) for name, row in figures["rejects"].items()]
    return [page.table(["reason", "images", "for example"], rows), page.paragraph("All of them: rejects.parquet.")]


def _provenance(figures: dict[str, Any]) -> Markup:
    source, rule, recipe = figures["source"], figures["plan"], figures["recipe"]
    encoder = recipe["encoder"]
    size = f"{recipe['size']}x{recipe['size']}, {recipe['fit']}, {recipe['filter']}"
    rows = [
        ("label table", f"{source['labels']} ({source['layout']}), {source['num_images']:,} images"),
        ("ids with two labels, left out", f"{source['conflicting']:,}"),
        ("rule", f"at least {rule['min_samples']} images" + (f", top {rule['top']}" if rule["top"] else "")),
        ("seed", str(rule["seed"])),
        ("pictures", f"{size}, JPEG quality {recipe['quality']}, {recipe['subsampling']}"),
        ("encoder", f"{encoder['distribution']} {encoder['version']}, libjpeg-turbo {encoder['libjpeg_turbo']}"),
        ("licence", figures["license"] or "not stated"),
        ("fingerprint", figures["fingerprint"]),
        ("content", figures["content_sha256"]),
    ]
    return page.table(["", ""], rows)


def _reading() -> Markup:
    return page.code(
        "from lmk_data.dataset import ShardedDataset\n\n"
        'dataset = ShardedDataset.open("path/to/the/folder")\n'
        'sample = dataset.read("train", 0)            # key, label, landmark_id, jpeg\n'
        'samples = dataset.webdataset("train")        # a ready webdataset pipeline'
    )


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")
