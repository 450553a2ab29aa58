"""The report of a run: one page for each evaluated split."""

from pathlib import Path

from lmk_data.dataset import ShardedDataset
from lmk_data.report import page
from lmk_data.system.files import make_folder, write_bytes
from lmk_train.evaluation.evaluated import read_metrics, read_record
from lmk_train.evaluation.report_sections import run_sections
from lmk_train.runs.folder import RunFolder


def write_run_report(run: Path, dataset: ShardedDataset, split: str) -> Path:
    """Write report/index.html for the test split, or report/<split>.html for another one, and return its path.

    The pages of other splits are written again if the same checkpoint was evaluated on the same dataset, because each
    page shows the metrics of all these splits.

    Args:
        run: Folder of the run, in which the split has been evaluated.
        dataset: The dataset that was evaluated, which has the images to show.
        split: The evaluated split.
    """
    for other in read_metrics(run, split):
        if other != split and RunFolder(run).report(other).exists():
            _write_page(run, dataset, other)
    return _write_page(run, dataset, split)


def _write_page(run: Path, dataset: ShardedDataset, split: str) -> Path:
    record = read_record(run, split)
    source, num_samples = record.evaluated.source, record.evaluated.metrics["num_samples"]
    subtitle = f"{record.config['model']}, {record.config['loss']}, on {num_samples:,} {split} images"
    if source["dataset"] != source["trained_on"]:
        subtitle += f" of another dataset than it was trained on: {source['shards']}"
    path = RunFolder(run).report(split)
    make_folder(path.parent)
    write_bytes(path, page.render_page(run.resolve().name, subtitle, run_sections(record, dataset, run)).encode())
    return path
