"""The dataset report: every figure as JSON, and a page for people."""

import json
from pathlib import Path
from typing import Any

from lmk_data.dataset.format import Manifest, canonical_json, write_file
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.report import page
from lmk_data.report.figures import DatasetFigures, read_figures
from lmk_data.report.sections import dataset_sections
from lmk_data.system.storage import Folder, LocalFolder, held
from lmk_data.system.terminal import counted

_FIGURES, _PAGE = "report.json", "index.html"
_MAX_FIGURES_BYTES = 256 << 20


def write_report(
    dataset: ShardedDataset, out: Folder, *, workers: int | None = None, quiet: bool = True
) -> DatasetFigures:
    """Write `index.html` and `report.json` into `out` and return the figures.

    Near duplicates are compared by `workers` threads. Raises DatasetError if a file of the dataset cannot be read,
    UserError if the folder holds a page that is no report, or if another report is at work there.
    """
    _check_out(dataset, out)
    with held(out, "another report is at work there"):
        return _write(dataset, out, workers, quiet)


def _check_out(dataset: ShardedDataset, out: Folder) -> None:
    """Raise UserError if a page in the folder is not a report's, or if the folder is a link inside the dataset."""
    within = dataset.folder
    if isinstance(out, LocalFolder) and isinstance(within, LocalFolder) and Path(within.root) in Path(out.root).parents:
        within.check_writable(Path(out.root))
    for name in (_FIGURES, _PAGE):
        if out.is_file(name) and not _has_figures(out):
            raise UserError(f"--out {out.root}: holds {name}, which is no report's; name another folder")


def is_reported(manifest: Manifest, out: Folder) -> bool:
    """Return whether a folder holds the report of a dataset with this manifest, page and all."""
    return _figures(out).get("content_sha256") == manifest["content_sha256"] and out.is_file(_PAGE)


def _has_figures(out: Folder) -> bool:
    """Return whether a folder holds the figures of a report; they are written before its page."""
    return {"counts", "classes"} <= _figures(out).keys()


def _figures(out: Folder) -> dict[str, Any]:
    """Return the JSON object in a report's folder; empty if there is none."""
    try:
        figures = json.loads(out.read(_FIGURES)) if out.size(_FIGURES) <= _MAX_FIGURES_BYTES else None
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return figures if isinstance(figures, dict) else {}


def _write(dataset: ShardedDataset, out: Folder, workers: int | None, quiet: bool) -> DatasetFigures:
    figures = read_figures(dataset, workers=workers, quiet=quiet)
    size = dataset.recipe.size
    images, classes = counted(figures.counts["written"], "image"), counted(figures.classes.kept, "class")
    subtitle = f"{images} of {classes}, {size}x{size} pixels"
    html = page.render_page(figures.title, subtitle, dataset_sections(dataset, figures))
    out.remove(_PAGE)  # if this ends here, the old page is not taken for that of the new figures
    write_file(out, _FIGURES, canonical_json(figures.as_json()) + b"\n")
    write_file(out, _PAGE, html.encode())
    out.sweep()
    return figures
