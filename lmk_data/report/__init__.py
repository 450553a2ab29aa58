"""What a dataset looks like: the HTML report and its figures."""

from lmk_data.report.dataset import write_report
from lmk_data.report.figures import DatasetFigures
from lmk_data.report.summary import terminal_summary

__all__ = ["DatasetFigures", "terminal_summary", "write_report"]
