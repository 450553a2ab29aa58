"""What a dataset looks like: the HTML report and the figures behind it."""

from lmk_data.report.dataset import Report, terminal_summary, write_report

__all__ = ["Report", "terminal_summary", "write_report"]
