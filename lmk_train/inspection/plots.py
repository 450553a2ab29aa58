"""The plots of the page of an inspection: how scores are distributed, and from where on they are flagged."""

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lmk_data.report import page

_BINS = 40
_LOG_FROM = 100  # times as many in the largest bin as in an average one: counts are drawn on a log scale


def score_plot(scores: NDArray[np.float32], flagged: NDArray[np.bool_], axis: str, unit: str) -> Markup:
    """Return a histogram of scores, those of flagged ones in the second colour.

    Args:
        scores: 0 to 1, [N]; NaN where there is none.
        flagged: [N].
        axis: name of the score.
        unit: plural noun of what has a score.
    """
    known = np.isfinite(scores)
    edges = np.linspace(0, 1, _BINS + 1)
    ordinary, above = (np.histogram(scores[known & part], edges)[0] for part in (~flagged, flagged))
    drawn, axes = page.new_figure(2.6)
    width = edges[1] - edges[0]
    axes.bar(edges[:-1], ordinary, width, align="edge", color=page.ACCENT, label="not flagged")
    axes.bar(edges[:-1], above, width, ordinary, align="edge", color=page.MUTED, label="flagged")
    is_log = (ordinary + above).max(initial=0) * _BINS > _LOG_FROM * max(1, int(known.sum())) / 4
    if is_log:
        axes.set_yscale("symlog", linthresh=1)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=axis, ylabel=unit + (" (log scale)" if is_log else ""), xlim=(0, 1))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    number = int((flagged & known).sum())
    caption = f"{number:,} of {int(known.sum()):,} {unit} are flagged."
    if number:
        caption += f" The lowest score of a flagged one is {scores[flagged & known].min():.2f}."
    return page.figure(drawn, caption)
