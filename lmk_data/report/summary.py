"""The figures of a dataset in words: a summary for the terminal, and rows that the page shares with it."""

from lmk_data.dataset.format import SelectionStep
from lmk_data.report.figures import DatasetFigures
from lmk_data.system.terminal import counted, printable


def terminal_summary(figures: DatasetFigures) -> str:
    """Return a few lines: what became of the images, classes, splits, duplicates and rejects."""
    *parts, (total_name, total) = image_accounts(figures)
    (written_name, written), *others = parts
    classes = figures.classes
    lines = [f"  {name}: {value}" for name, value in origin_rows(figures)]
    lines += [
        f"  {counted(total, 'image')} {total_name} = {written:,} {written_name} + "
        + " + ".join(f"{number:,} {name}" for name, number in others),
        f"  {counted(classes.kept, 'class')} of {classes.largest:,} to {counted(classes.smallest, 'image')}; "
        f"{counted(classes.dropped, 'class')} left out",
    ]
    for name, split in figures.splits.items():
        lines.append(
            f"  {name:5} {split.num_samples:>9,} images ({split.ratio:.1%}) of {counted(split.num_classes, 'class')}, "
            f"{counted(split.num_shards, 'shard')}, {figures.megabytes(split):,.1f} MB"
        )
    duplicates = figures.quality.duplicates
    for kind, counts in duplicates.items():
        if counts.groups and (kind == "exact" or counts != duplicates["exact"]):
            leaked = ", ".join(f"{part.share:.1%} of {split}" for split, part in counts.leaked.items())
            words = {"exact": "exact", "near": "exact or near"}[kind]
            lines.append(f"  {counts.groups:,} groups of {words} duplicates; also in training: {leaked or 'none'}")
    for reason, rejected in figures.rejects.items():
        lines.append(f"  rejected {rejected.count:,}: {reason} ({', '.join(rejected.examples)})")
    return "\n".join(map(printable, lines))


def image_accounts(figures: DatasetFigures) -> list[tuple[str, int]]:
    """Return what became of the images: those written, the others by reason, and last the total."""
    counts = figures.counts
    if (origin := figures.origin) is not None:
        removed = origin["removed"]
        left_out = removed["train"] + removed["val"] + removed["test"]
        duplicates, marked = sum(removed.get("duplicates", {}).values()), sum(removed.get("marked", {}).values())
        return [
            ("chosen", counts["written"]),
            ("not chosen", left_out - duplicates - marked),
            *([("left out by marks", marked)] if "marked" in removed else []),
            ("left out as duplicates", duplicates),
            ("in the original dataset", counts["written"] + left_out),
        ]
    return [
        ("written", counts["written"]),
        (f"in classes under {figures.plan['min_samples']}", counts["below_min_samples"]),
        ("outside the largest classes", counts["outside_top"]),
        ("rejected", counts["rejected"]),
        ("listed", counts["listed"]),
    ]


def origin_rows(figures: DatasetFigures) -> list[tuple[str, str]]:
    """Return rows (name, value) about the dataset that a view or a copy was chosen from, and about the choice."""
    if (origin := figures.origin) is None:
        return []
    content = f"content {origin['content_sha256'][:12]}"
    view = figures.view_of
    first = ("a view of", f"{view['path']}, {content}") if view else ("a copy from a dataset of", content)
    rows = [first, ("chosen", "; then ".join(_describe(step) for step in origin["selection"]) or "everything")]
    if moved := origin.get("relabelled"):
        rows.append(("relabelled", f"{moved['train']:,} of train, {moved['val']:,} of val, {moved['test']:,} of test"))
    return rows


def _describe(step: SelectionStep) -> str:
    """Return the rules of one selection in words, in the order in which they apply."""
    words = {
        "include": "{0[num_keys]:,} listed samples",
        "exclude": "without {0[num_keys]:,} listed samples",
        "marks": "marks that leave out {0[num_excluded]:,} samples and relabel {0[num_relabelled]:,}",
        "classes": "{0[num_classes]:,} listed classes",
        "min_samples": "classes of at least {0:,} images",
        "top": "the {0:,} largest classes",
        "drop_duplicates": "no {0} duplicates",
        "max_per_class": "at most {0:,} training images per class",
    }
    rules: dict[str, object] = {**step}
    return ", ".join(text.format(rules[rule]) for rule, text in words.items() if rule in rules)
