"""The look of every HTML page: one shell and its pieces as jinja2 templates, everything inlined, names escaped."""

import base64
import hashlib
import io
import math
import re
import shlex
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from lmk_data.decoding import checked_jpeg
from lmk_data.errors import DatasetError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ACCENT, MUTED = "#3d8bc4", "#b7793e"
_SCRIPTS = ("datatables/dataTables.min.js", "tables.js")
_INK = "#010203"  # stands for the text colour of the page, which depends on the reader's light or dark mode
_THUMBNAIL_PIXELS = 112
_ROWS_WITHOUT_SCRIPTS = 100
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True)
class Section:
    """A titled part of a page. Its parts come from the functions below, which escape them."""

    title: str
    parts: Sequence[Markup]


@dataclass(frozen=True)
class PictureRow:
    """Images side by side: a caption, a note beside it, and JPEGs."""

    caption: str
    note: str
    jpegs: Sequence[bytes]


@dataclass(frozen=True)
class Side:
    """A group of images of a comparison, with the name of what they show."""

    caption: str
    jpegs: Sequence[bytes]


@dataclass(frozen=True)
class Comparison:
    """Groups of images side by side: a caption, a note beside it, and the groups."""

    caption: str
    note: str
    sides: Sequence[Side]


class Number(str):
    """A number as text, such as `12.5 %`: tables align it to the right."""

    __slots__ = ()


def percent(share: float) -> Number:
    """Return a share as a percentage with two decimals."""
    return Number(f"{share:.2%}".replace("%", " %"))


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return a whole page, which loads nothing from the network and runs no scripts but the two inlined ones.

    What is not UTF-8, such as the name of a folder may be, is shown as question marks.
    """
    scripts = [_script(name) for name in _SCRIPTS]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    page = (
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
    return page.encode(errors="replace").decode()


def paragraph(text: str) -> Markup:
    """Return a paragraph of plain text."""
    return _piece("paragraph", text)


def code(text: str) -> Markup:
    """Return lines of code."""
    return _piece("code", text)


def command(*words: str) -> Markup:
    """Return a command line as code, quoted for a shell."""
    return code(shlex.join(words))


def key_figures(figures: Iterable[tuple[str, str]]) -> Markup:
    """Return large figures with their names: pairs of (value, name)."""
    return _piece("key_figures", figures)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table. Integers get thousands separators; integers, floats and `Number`s are aligned to the right."""
    return _piece("table", header, list(rows))


def sortable_table(header: Sequence[str], columns: Sequence[Sequence[object]]) -> Markup:
    """Return a table that the reader can sort, search and page through, whatever its length.

    `columns` holds strings, `Number`s or integers. A column of strings that are all numbers, such as ids, is sorted by
    value and shown as it is. If scripts do not run, the first 100 rows are shown.
    """
    kinds = [
        {
            "name": name,
            "number": bool(column) and _is_aligned_right(column[0]),
            "integer": bool(column) and isinstance(column[0], int),
            "sorts": "num" if _is_numeric(column) else "string",
        }
        for name, column in zip(header, columns, strict=True)
    ]
    rows = list(zip(*columns, strict=True))
    return _piece("sortable_table", {"columns": kinds, "rows": rows}, header, rows[:_ROWS_WITHOUT_SCRIPTS], len(rows))


def picture_rows(rows: Iterable[PictureRow]) -> Markup:
    """Return rows of images with their captions."""
    return _piece("picture_rows", rows)


def comparisons(rows: Iterable[Comparison]) -> Markup:
    """Return groups of images side by side, one row below the other."""
    return _piece("comparisons", rows)


def thumbnail(jpeg: bytes, size: int, location: str) -> bytes:
    """Return a small JPEG of a stored image, at most 112 pixels wide and high, to keep a page small.

    Args:
        jpeg: the stored image.
        size: its width and height in pixels.
        location: where it is, for messages.

    Raises DatasetError, which names `location`, if the image is damaged or of another size.
    """
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(checked_jpeg(jpeg, size)), formats=("JPEG",)) as image:
            image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
            image.save(buffer, "JPEG", quality=80)
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{location} is damaged ({error}); run `lmk-shard verify`") from error
    return buffer.getvalue()


def new_figure(height: float = 3.4) -> "tuple[Figure, Axes]":
    """Return an empty figure, 8 inches wide and `height` inches high, to draw on and to pass to `figure`."""
    drawn, (axes,) = new_figures(1, height)
    return drawn, axes


def new_figures(number: int, height: float, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return several small figures in one, in rows of `columns`, each row `height` inches high."""
    from matplotlib.figure import Figure

    rows = -(-number // columns)
    drawn = Figure(figsize=(8, height * rows), layout="constrained")
    parts = [drawn.add_subplot(rows, columns, position + 1) for position in range(number)]
    for axes in parts:
        axes.spines[["top", "right"]].set_visible(False)
    return drawn, parts


def label_log_axis(axis: "Axis", ratio: float, max_labels: int = 12) -> None:
    """Label a log axis, whose ends have this ratio, with plain numbers: 1, 2, 5, 10 ... or powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if 3 * math.log10(ratio) < max_labels else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))


def figure(drawn: "Figure", caption: str) -> Markup:
    """Return a figure as inline SVG in the text colour of the page; equal figures give equal bytes."""
    import matplotlib

    _set_ink(drawn)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lmk", "svg.fonttype": "none"}), warnings.catch_warnings():
        # Text stays text, which the reader's fonts draw: it does not matter what matplotlib's own font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font|Matplotlib currently does not support")
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for size in ("height", "width"):  # the page sets the size
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    # Drawn by matplotlib, which escapes the labels and names in it.
    return _piece("figure", Markup(svg), caption)  # noqa: S704


def _set_ink(drawn: "Figure") -> None:
    """Give every text and every axis of a figure the colour that stands for the text colour of the page."""
    from matplotlib.text import Text

    for axes in drawn.axes:
        axes.tick_params(which="both", colors=_INK)
        for spine in axes.spines.values():
            spine.set_color(_INK)
        if (legend := axes.get_legend()) is not None:
            legend.get_frame().set_alpha(0)
    for text in drawn.findobj(Text):
        text.set_color(_INK)


@cache
def _script(name: str) -> str:
    return (resources.files("lmk_data.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmk_data.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    environment.tests["aligned_right"] = _is_aligned_right
    environment.filters["shown"] = lambda value: f"{value:,}" if isinstance(value, int) else str(value)
    environment.filters["data_url"] = lambda jpeg: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return environment


@cache
def _pieces() -> Any:
    return _environment().get_template("pieces.html").module


def _piece(name: str, *arguments: object) -> Markup:
    """Return a piece of a page, made by the macro `name` of pieces.html."""
    piece: Markup = getattr(_pieces(), name)(*arguments)
    return piece.strip()


def _is_aligned_right(value: object) -> bool:
    return isinstance(value, int | float | Number)


def _is_numeric(column: Sequence[object]) -> bool:
    """Return whether every value of a column is a number or the text of one; empty texts are passed over."""
    return all(_NUMBER.fullmatch(str(value)) for value in column if value != "")
