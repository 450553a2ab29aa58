"""The dataset report: every figure as JSON, and a page for people."""

from lmk_data.dataset.format import canonical_json, write_file
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.report import page
from lmk_data.report.figures import DatasetFigures, read_figures
from lmk_data.report.sections import dataset_sections
from lmk_data.system.storage import Folder


def write_report(
    dataset: ShardedDataset, out: Folder, *, workers: int | None = None, quiet: bool = True
) -> DatasetFigures:
    """Write `index.html` and `report.json` into `out` and return the figures.

    Near duplicates are compared by `workers` threads. Raises DatasetError if a file of the dataset cannot be read.
    """
    figures = read_figures(dataset, workers=workers, quiet=quiet)
    size = dataset.recipe.size
    subtitle = f"{figures.counts['written']:,} images of {figures.classes.kept:,} classes, {size}x{size} pixels"
    html = page.render_page(figures.title, subtitle, dataset_sections(dataset, figures))
    write_file(out, "report.json", canonical_json(figures.as_json()) + b"\n")
    write_file(out, "index.html", html.encode())
    out.sweep()
    return figures
