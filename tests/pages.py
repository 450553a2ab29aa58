"""Parts of the pages of reports."""

import re
from pathlib import Path


def header(report: Path) -> list[str]:
    """The head of the table of metrics."""
    (row,) = re.findall(r"<tr><th>metric</th>.*?</tr>", report.read_text())
    return re.findall(r"<th[^>]*>(.*?)</th>", row)


def sections(report: Path) -> dict[str, str]:
    """The parts of a page by their titles."""
    return dict(re.findall(r"<h2>(.*?)</h2>(.*?)</section>", report.read_text(), re.DOTALL))
