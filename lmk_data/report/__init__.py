"""What a dataset looks like: the HTML report and its figures."""

from lmk_data.report.dataset import is_reported, write_report
from lmk_data.report.figures import DatasetFigures
from lmk_data.report.summary import terminal_summary

__all__ = ["DatasetFigures", "is_reported", "terminal_summary", "write_report"]
