"""The look of every HTML page: one jinja2 shell, figures and pictures inlined, names escaped, light and dark."""

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCENT, MUTED = "#3d8bc4", "#b7793e"
_SCRIPTS = ("datatables/dataTables.min.js", "tables.js")
_INK = "#010203"  # stands for the page's text colour, which a figure cannot know when it is drawn


@dataclass(frozen=True)
class Section:
    """A titled part of a page; its parts come from the functions below and are escaped already."""

    title: str
    parts: Sequence[Markup]


@dataclass(frozen=True)
class PictureRow:
    """Pictures of one kind side by side: a caption, a note beside it, and JPEGs."""

    caption: str
    note: str
    jpegs: Sequence[bytes]


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A whole page that needs no network, may load nothing from it, and runs only the two scripts it came with."""
    scripts = [_script(name) for name in _SCRIPTS]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            subtitle=subtitle,
            sections=sections,
            script_sources=" ".join(f"'sha256-{digest}'" for digest in hashes),
            scripts=[Markup(script) for script in scripts],  # noqa: S704 - files of this package
        )
    )


def paragraph(text: str) -> Markup:
    """A paragraph of plain text."""
    return Markup("<p>{}</p>").format(text)


def code(text: str) -> Markup:
    """Lines of code."""
    return Markup("<pre>{}</pre>").format(text)


def key_figures(figures: Iterable[tuple[str, str]]) -> Markup:
    """Large figures with what they are: pairs of (value, name)."""
    cells = [Markup("<div><b>{}</b><span>{}</span></div>").format(value, name) for value, name in figures]
    return Markup('<div class="key">{}</div>').format(Markup("").join(cells))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; integers get thousands separators, numbers are set right."""
    columns = list(rows)
    head = Markup("").join(_cell("th", name, _is_number(_first(columns, i))) for i, name in enumerate(header))
    body = [Markup("").join(_cell("td", _shown(v), _is_number(v)) for v in row) for row in columns]
    lines = Markup("").join(Markup("<tr>{}</tr>\n").format(line) for line in [head, *body])
    return Markup('<div class="box"><table>{}</table></div>').format(lines)


def sortable_table(header: Sequence[str], columns: Sequence[Sequence[object]], shown: int = 100) -> Markup:
    """A table that the reader can sort, search and leaf through, however long: `columns` of strings or integers.

    Strings that are all integers, such as ids, are sorted as numbers and shown as they are. Where scripts do not run
    its first `shown` rows are there.
    """
    kinds = [
        {"name": name, "number": bool(column) and _is_number(column[0]), "sorts": _sorts_as(column)}
        for name, column in zip(header, columns, strict=True)
    ]
    rows = list(zip(*columns, strict=True))
    data = {"columns": kinds, "rows": rows}
    plain = table(header, rows[:shown])
    more = paragraph(f"The first {shown} of {len(rows):,}; scripts do not run here.") if len(rows) > shown else ""
    return Markup(
        '<div class="box"><table class="sortable"></table><script type="application/json">{}</script></div>'
        "<noscript>{}{}</noscript>"
    ).format(htmlsafe_json_dumps(data, separators=(",", ":"), ensure_ascii=False), more, plain)


def picture_rows(rows: Iterable[PictureRow]) -> Markup:
    """Rows of pictures with their captions."""
    parts = []
    for row in rows:
        images = Markup("").join(
            Markup('<img alt="" src="data:image/jpeg;base64,{}">').format(base64.b64encode(jpeg).decode())
            for jpeg in row.jpegs
        )
        heading = Markup("<h3>{} <span>{}</span></h3>").format(row.caption, row.note)
        parts.append(Markup('<div>{}<div class="pictures">{}</div></div>').format(heading, images))
    return Markup('<div class="rows">{}</div>').format(Markup("").join(parts))


def new_figure(height: float = 3.4) -> "tuple[Figure, Axes]":
    """An empty figure 8 inches wide, to be drawn on and given to `figure`."""
    drawn, (axes,) = new_figures(1, height)
    return drawn, axes


def new_figures(number: int, height: float, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """Several small figures in one, in rows of `columns`, each row of this height in inches."""
    from matplotlib.figure import Figure

    rows = -(-number // columns)
    drawn = Figure(figsize=(8, height * rows), layout="constrained")
    parts = [drawn.add_subplot(rows, columns, place + 1) for place in range(number)]
    for axes in parts:
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        for spine in axes.spines.values():
            spine.set_color(_INK)
        axes.tick_params(which="both", colors=_INK)
    return drawn, parts


def figure(drawn: "Figure", caption: str) -> Markup:
    """A figure as inline SVG in the page's text colour, the same bytes each time."""
    import matplotlib

    for axes in drawn.axes:
        if (legend := axes.get_legend()) is not None:
            for label in legend.get_texts():
                label.set_color(_INK)
            legend.get_frame().set_alpha(0)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lmk", "svg.fonttype": "none"}), warnings.catch_warnings():
        # Text stays text, which the reader's fonts draw: what matplotlib's own font lacks does not matter.
        warnings.filterwarnings("ignore", "Glyph .* missing from font|Matplotlib currently does not support")
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    # Drawn by matplotlib from numbers, labels and names, in which it escapes what needs it.
    drawing = Markup(svg)  # noqa: S704
    return Markup('<figure><div class="box">{}</div><figcaption>{}</figcaption></figure>').format(drawing, caption)


@cache
def _script(name: str) -> str:
    return (resources.files("lmk_data.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.PackageLoader("lmk_data.report"), autoescape=True, trim_blocks=True)


def _first(rows: Sequence[Sequence[object]], column: int) -> object:
    return rows[0][column] if rows else ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and value.endswith(" %"))


def _sorts_as(column: Sequence[object]) -> str:
    integers = all(str(value).removeprefix("-").isdecimal() for value in column)
    return "num" if integers or (column and _is_number(column[0])) else "string"


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(tag: str, text: str, is_number: bool) -> Markup:
    kind = Markup(' class="number"') if is_number else Markup("")
    return Markup("<{tag}{kind}>{text}</{tag}>").format(tag=tag, kind=kind, text=text)
