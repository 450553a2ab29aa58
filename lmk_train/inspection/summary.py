"""What an inspection found, in words for the terminal, with the command that comes next."""

import shlex
from collections.abc import Iterator

from lmk_data.dataset.inspection import PAGE
from lmk_data.system.terminal import counted
from lmk_train.config.commands import InspectConfig
from lmk_train.inspection.inspect import Inspection


def summary_lines(inspection: Inspection, config: InspectConfig) -> list[str]:
    """Return a few lines: counts, files, marks, and the next command."""
    counts = inspection.counts
    share = counts["wrong_labels"] / max(1, counts["samples"])
    lines = [
        f"{counted(counts['samples'], 'picture')} of {counted(counts['classes'], 'class')}:",
        f"  wrong labels    {counts['wrong_labels']:>9,}  ({share:.1%} of the pictures fit another class better)",
        f"  outliers        {counts['outliers']:>9,}  (pictures that fit no class)",
        f"  several things  {counts['several']:>9,}  (classes whose parts are as far apart as classes)",
        f"  twins           {counts['twins']:>9,}  (classes that may be the same thing as another)",
        f"page: {inspection.out / PAGE}; quality.parquet and classes-quality.parquet are beside it",
    ]
    return [*lines, *_marks(inspection, config)]


def _marks(inspection: Inspection, config: InspectConfig) -> Iterator[str]:
    dataset = shlex.quote(inspection.dataset)
    base = "" if inspection.base is None else f" --base {shlex.quote(inspection.base)}"
    browse = f"lmk-shard browse {dataset}{base} --quality {shlex.quote(str(inspection.out))}"
    if config.run is not None:
        browse += f" --run {shlex.quote(str(config.run))}"
    if inspection.proposals is None or config.marks is None:
        yield from ("look and mark:", f"  {browse}")
        return
    (proposals, written), path = inspection.proposals, shlex.quote(str(config.marks))
    kept = f"; {written.kept:,} keys had marks there, which stay" if written.kept else ""
    yield (
        f"marks proposed: {proposals.num('relabel'):,} relabel, {proposals.num('exclude'):,} exclude; "
        f"{written.added:,} added to {config.marks}{kept}"
    )
    if proposals.undecided:
        yield f"  {proposals.undecided:,} suspects have no mark: their class is several things, or a twin"
    if not written.total:
        yield from ("look and mark:", f"  {browse} --marks {path}")
        return
    yield from ("look at them first:", f"  {browse} --marks {path}")
    yield from ("a view without them:", f"  lmk-shard subset {dataset}{base} --out VIEW --marks {path}")
