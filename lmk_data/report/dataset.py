"""The dataset report: every figure as JSON, a page for people, a few lines for the terminal."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from markupsafe import Markup

from lmk_data.dataset.format import SPLITS, canonical_json, write_file
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import DatasetError
from lmk_data.report import page
from lmk_data.report.census import QUANTILES, OddOnes, odd_ones, read_pictures, take_census
from lmk_data.report.plots import frequency_plots, margin_plot, picture_plots
from lmk_data.report.quality import Quality, assess
from lmk_data.system.storage import Folder

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
    pictures = read_pictures(dataset)
    odd = [(found, _places(dataset, found.rows.index)) for found in odd_ones(pictures, _ODD_PICTURES)]
    title = " ".join(dataset.manifest["title"].split()) or "Image shards"
    figures = {
        "title": title,
        **summarize(dataset),
        **take_census(dataset, pictures),
        "odd_ones": [
            {"what": f.what, "samples": [{"split": p["split"], "row": p["row"], "key": p["key"]} for p in places]}
            for f, places in odd
        ],
        **quality.figures,
    }
    subtitle = (
        f"{figures['counts']['written']:,} images of {figures['classes']['kept']:,} classes, "
        f"{dataset.recipe.size}x{dataset.recipe.size} pixels"
    )
    html = page.render_page(title, subtitle, _sections(dataset, figures, quality, odd))
    write_file(out, "report.json", canonical_json(figures) + b"\n")
    write_file(out, "index.html", html.encode())
    out.sweep()
    return Report(title, figures)


def terminal_summary(report: Report) -> str:
    """The report in a few lines."""
    figures = report.figures
    *parts, (total_name, total) = _accounts(figures)
    (written_name, written), *left = parts
    lines = [f"  {what}: {told}" for what, told in _origin_rows(figures)]
    lines += [
        f"  {total:,} images {total_name} = {written:,} {written_name} + "
        + " + ".join(f"{number:,} {what}" for what, number in left),
        f"  {figures['classes']['kept']:,} classes of {figures['classes']['largest']:,} to "
        f"{figures['classes']['smallest']:,} images; {figures['classes']['dropped']:,} classes left out",
    ]
    for name, split in figures["splits"].items():
        lines.append(
            f"  {name:5} {split['num_samples']:>9,} images ({split['ratio']:.1%}) of {split['num_classes']:,} classes, "
            f"{split['num_shards']:,} shards, {_megabytes(figures, split):,.1f} MB"
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
        "view_of": manifest.get("view_of"),
        "source": manifest["source"],
        "plan": manifest["plan"],
        "recipe": manifest["recipe"],
        "license": manifest["license"],
        "fingerprint": manifest["fingerprint"],
        "content_sha256": manifest["content_sha256"],
        "counts": manifest["counts"],
        "classes": {
            "kept": len(classes),
            "dropped": len(dropped) + (origin["removed"]["classes"] if (origin := _origin(manifest)) else 0),
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
                "picture_bytes": int(pc.sum(dataset.index_table(name, ["jpg_size"])["jpg_size"]).as_py()),
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


def _origin(figures: Any) -> Any:
    """What a view or a copy states of the dataset that it was chosen from; None for any other dataset."""
    return figures.get("view_of") or figures["source"].get("subset_of")


def _accounts(figures: dict[str, Any]) -> list[tuple[str, int]]:
    """Where every image went: those written, then the others by reason, then all of them."""
    counts, rule = figures["counts"], figures["plan"]
    if (origin := _origin(figures)) is not None:
        removed = origin["removed"]
        left_out = sum(removed[split] for split in SPLITS)
        duplicates = sum(removed.get("duplicates", {}).values())
        return [
            ("chosen", counts["written"]),
            ("not chosen", left_out - duplicates),
            ("left out as duplicates", duplicates),
            ("in the dataset that they are from", counts["written"] + left_out),
        ]
    return [
        ("written", counts["written"]),
        (f"in classes under {rule['min_samples']}", counts["below_min_samples"]),
        ("outside the largest classes", counts["outside_top"]),
        ("rejected", counts["rejected"]),
        ("listed", counts["listed"]),
    ]


def _origin_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Of what a view is a view, or a copy a copy, and what was chosen of it."""
    if (origin := _origin(figures)) is None:
        return []
    content = f"content {origin['content_sha256'][:12]}"
    view = figures["view_of"]
    first = ("a view of", f"{view['path']}, {content}") if view else ("a copy out of a dataset of", content)
    return [first, ("chosen", "; then ".join(_in_words(step) for step in origin["selection"]) or "everything")]


def _in_words(step: dict[str, Any]) -> str:
    """The rules of one selection, in the order in which they apply."""
    words = {
        "classes": "{0[num_classes]:,} listed classes",
        "min_samples": "classes of at least {0:,} images",
        "top": "the {0:,} largest classes",
        "drop_duplicates": "no {0} duplicates",
        "max_per_class": "at most {0:,} training images of a class",
    }
    return ", ".join(text.format(step[rule]) for rule, text in words.items() if rule in step)


def _megabytes(figures: dict[str, Any], split: dict[str, Any]) -> float:
    """Of a split's shards, or of a view's pictures: its shards hold others too."""
    return float(split["picture_bytes" if figures["view_of"] else "num_bytes"] / 1e6)


def _sections(
    dataset: ShardedDataset, figures: dict[str, Any], quality: Quality, odd: list[tuple[OddOnes, list["_Place"]]]
) -> list[page.Section]:
    counts, sizes = figures["counts"], figures["classes"]
    megabytes = sum(_megabytes(figures, split) for split in figures["splits"].values())
    key = [
        (f"{counts['written']:,}", "images"),
        (f"{sizes['kept']:,}", "classes"),
        (f"{sizes['largest']:,} to {sizes['smallest']:,}", "images in a class"),
        (f"{sizes['imbalance_ratio']:,.0f} : 1", "imbalance"),
        (f"{sizes['gini']:.2f}", "Gini of class sizes"),
        (f"{megabytes:,.1f} MB", "of pictures" if figures["view_of"] else "in shards"),
    ]
    return [
        page.Section("At a glance", [page.key_figures(key)]),
        page.Section("Where every image went", [_reconciliation(figures)]),
        page.Section("Splits", [_split_table(figures)]),
        page.Section("The long tail", [*frequency_plots(figures), _band_table(figures), margin_plot(figures)]),
        page.Section("Pictures", [page.picture_rows(_mosaic(dataset))]),
        page.Section("Duplicates and leakage", _duplicates(dataset, figures, quality)),
        page.Section("The sources and what is stored", _census_parts(dataset, figures, odd)),
        page.Section("Classes", [_class_table(dataset.classes)]),
        page.Section("Rejected images", _reject_table(figures)),
        page.Section("How it was made", [_provenance(figures)]),
        page.Section("How to read it", [_reading(figures)]),
    ]


def _reconciliation(figures: dict[str, Any]) -> Markup:
    *_, (_, total) = accounts = _accounts(figures)
    rows = [(what, number, _percent(number / total)) for what, number in accounts]
    return page.table(["images", "number", "share"], rows)


def _split_table(figures: dict[str, Any]) -> Markup:
    header = [
        "split",
        "asked",
        "actual",
        "images",
        "classes",
        "shards",
        "MB of pictures" if figures["view_of"] else "MB",
    ]
    rows = [
        (
            name,
            _percent(split["asked"]),
            _percent(split["ratio"]),
            split["num_samples"],
            split["num_classes"],
            split["num_shards"],
            round(_megabytes(figures, split), 1),
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
    for i, label in enumerate(chosen):
        part = ("head", "middle", "tail")[3 * i // len(chosen)]
        found = index[index["label"] == label]
        places = zip(found["shard"], found["jpg_offset"], found["jpg_size"], strict=True)
        jpegs = [_thumbnail(dataset, str(shard), int(offset), int(size)) for shard, offset, size in places]
        row = classes.loc[label]
        rows.append(page.PictureRow(str(row["name"]), f"{part}: {row['landmark_id']}, {row['listed']:,} images", jpegs))
    return rows


def _census_parts(
    dataset: ShardedDataset, figures: dict[str, Any], odd: list[tuple[OddOnes, list["_Place"]]]
) -> list[Markup]:
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
    counts, mixing = figures["odd"], figures["mixing"]
    told = (
        f"Enlarged, because a side of the source is shorter than the stored one: {counts['enlarged']:,}. Longer than "
        f"four times their width or height: {counts['elongated']:,}. Under 2 KB as stored, so nearly uniform: "
        f"{counts['nearly_uniform']:,}."
    )
    mixed = (
        f"Labels in a shard of the {dataset.splits[0]} split have {mixing['entropy']:.3f} bits of entropy on average; "
        f"shuffled by chance they would have {mixing['by_chance']:.3f}."
    )
    return [
        page.table(header, rows),
        *picture_plots(figures),
        page.paragraph(told),
        page.picture_rows(page.PictureRow(f.what, f.note, _thumbnails(dataset, places)) for f, places in odd),
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
    jpegs = _thumbnails(dataset, _places(dataset, zip(samples["split"], samples["row"], strict=True)))
    shown = ", ".join(dict.fromkeys(str(names[label]) for label in samples["label"]))
    return page.PictureRow(shown, f"{what}; in {', '.join(dict.fromkeys(samples['split']))}", jpegs)


_Place = dict[str, Any]


def _places(dataset: ShardedDataset, rows: Iterable[Any]) -> list[_Place]:
    """Split, row, key and place in its shard of each of these samples (split, row)."""
    columns = ["key", "shard", "jpg_offset", "jpg_size"]
    wanted = [(str(split), int(row)) for split, row in rows]
    tables = {split: dataset.index_table(split, columns) for split in dict.fromkeys(split for split, _ in wanted)}
    return [{"split": split, "row": row, **tables[split].slice(row, 1).to_pylist()[0]} for split, row in wanted]


def _thumbnails(dataset: ShardedDataset, places: list[_Place]) -> list[bytes]:
    return [_thumbnail(dataset, place["shard"], place["jpg_offset"], place["jpg_size"]) for place in places]


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
    rule_name = "rule" if _origin(figures) is None else "rule of that dataset"
    rows = [
        *_origin_rows(figures),
        ("label table", f"{source['labels']} ({source['layout']}), {source['num_images']:,} images"),
        ("ids with two labels, left out", f"{source['conflicting']:,}"),
        (rule_name, f"at least {rule['min_samples']} images" + (f", top {rule['top']}" if rule["top"] else "")),
        ("seed", str(rule["seed"])),
        ("pictures", f"{size}, JPEG quality {recipe['quality']}, {recipe['subsampling']}"),
        ("encoder", f"{encoder['distribution']} {encoder['version']}, libjpeg-turbo {encoder['libjpeg_turbo']}"),
        ("licence", figures["license"] or "not stated"),
        ("fingerprint", figures["fingerprint"]),
        ("content", figures["content_sha256"]),
    ]
    return page.table(["", ""], rows)


def _reading(figures: dict[str, Any]) -> Markup:
    lines = [
        "from lmk_data.dataset import ShardedDataset\n",
        'dataset = ShardedDataset.open("path/to/the/folder")',
        'sample = dataset.read("train", 0)            # key, label, landmark_id, jpeg',
        'samples = dataset.webdataset("train")        # a ready webdataset pipeline',
    ]
    return page.code("\n".join(lines[:-1] if figures["view_of"] else lines))


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")
