"""What a page offers: the links that narrow and order a list, and the columns of the table of classes."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from lmk_data.browse.pages import Address
from lmk_data.browse.records import ClassFilter, ClassQuery, ClassRow, Facts, PictureQuery

_SEEDS = 1_000_000
_FILTERS: dict[ClassFilter, str] = {
    "suspects": "suspects",
    "outliers": "outliers",
    "several": "several things",
    "twin": "twins",
    "duplicates": "duplicates",
    "conflicts": "conflicts",
    "marked": "marks",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
    "no-val": "no val",
    "no-test": "no test",
}
_NEEDS_QUALITY = ("suspects", "outliers", "several", "twin", "suspect", "outlier", "suspicion")


@dataclass(frozen=True, slots=True)
class Option:
    """One way to narrow or order a list: the text of its link, where it leads, and whether it holds now."""

    text: str
    href: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of options."""

    title: str
    options: list[Option]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of classes: `value` makes the text of a cell; `sort` is None if it orders nothing."""

    title: str
    sort: str | None
    number: bool
    value: Callable[[ClassRow], str]

    def next_order(self, query: ClassQuery) -> str:
        """Return the order that a click on its head asks for: numbers begin with the largest."""
        if query.sort == self.sort:
            return "up" if query.descending else "down"
        return "down" if self.number else "up"


def class_choices(query: ClassQuery, address: Address, facts: Facts) -> list[Choice]:
    """Return the row of links that narrow the table of classes; what nothing is known of has none."""
    kept = [(name, text) for name, text in _FILTERS.items() if facts.quality or name not in _NEEDS_QUALITY]
    return [
        Choice(
            "Only with", [Option(text, address.toggled("filter", name), name in query.filters) for name, text in kept]
        )
    ]


def picture_choices(query: PictureQuery, address: Address, facts: Facts) -> list[Choice]:
    """Return the rows of links that narrow and order a list of pictures."""
    flags: list[tuple[str | None, str]] = [("duplicate", "duplicates"), ("conflict", "conflicts")]
    flags = [("suspect", "suspects"), ("outlier", "outliers"), *flags] if facts.quality else flags
    flags = [*flags, ("misclassified", "misclassified")] if facts.run else flags
    flags = [(flag, text) for flag, text in flags if text != query.queue]
    states = [("none", "unmarked"), ("any", "marked"), ("exclude", "excluded"), ("relabel", "relabelled")]
    orders: list[tuple[str | None, str]] = [(None, "worst first" if query.queue and not query.group else "index")]
    if not query.queue:
        orders += [("suspicion", "suspicion")] if facts.quality or facts.run else []
        orders += [("outlier", "outliers")] if facts.quality else []
    rows: list[tuple[str, str, list[tuple[str | None, str]]]] = [
        ("Split", "split", [(None, "all"), *((split, split) for split in facts.splits)]),
        ("Show", "flag", [(None, "all"), *flags]),
        ("Marks", "mark", [(None, "all"), *states]),
        ("Order", "sort", orders),
    ]
    choices = [
        Choice(title, [Option(text, address.but(**{name: value}), _is(query, name, value)) for value, text in values])
        for title, name, values in rows
    ]
    at_random = address.but(sort="random", seed=new_seed())
    choices[-1].options.append(Option("at random", at_random, query.sort == "random"))
    return choices


def class_columns(facts: Facts) -> list[Column]:
    """Return the columns of the table of classes; what neither a run nor an inspection says has none."""
    columns = [Column("class", "name", False, lambda row: row.name), _counted("pictures", "size", "num_samples")]
    columns += [_counted(split, None, split) for split in facts.splits]
    if facts.f1_split is not None:
        columns.append(Column(f"F1 ({facts.f1_split})", "f1", True, lambda row: _decimals(row.f1, 3)))
    if facts.quality is not None:
        columns.append(Column("purity", "purity", True, lambda row: _decimals(row.purity, 2)))
        columns += [_counted("suspects", "suspects", "suspects"), _counted("outliers", "outliers", "outliers")]
    columns += [_counted("duplicates", "duplicates", "duplicates"), _counted("conflicts", "conflicts", "conflicts")]
    return [*columns, Column("marked", "marked", True, lambda row: f"{row.excluded + row.relabelled:,}")]


def new_seed() -> int:
    """Return a seed for an order at random, another one each time."""
    return secrets.randbelow(_SEEDS)


def _is(query: PictureQuery, name: str, value: str | None) -> bool:
    return bool(getattr(query, name) == value)


def _counted(title: str, sort: str | None, field: str) -> Column:
    def value(row: ClassRow) -> str:
        number = getattr(row, field)
        return "" if number is None else f"{number:,}"

    return Column(title, sort, True, value)


def _decimals(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
