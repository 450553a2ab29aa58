"""A mark: what somebody says of one sample. `lmk_data.views.marks` reads and writes files of these."""

import re
from dataclasses import dataclass
from typing import Literal

from lmk_data.errors import UserError

# In a note: what is neither text nor the end of a line; lone surrogates are in no file.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# In a landmark_id: what no class has. Others may have spaces that are not printable, joiners, even tabs.
_NO_CLASS = re.compile(r"[\x00\n\r\ud800-\udfff]")

_LONGEST_NOTE = 100_000  # characters, below what readers of CSV files take as one cell


@dataclass(frozen=True, slots=True)
class Mark:
    """What somebody says of one sample: leave it out, or give it another class.

    Raises UserError for another action, a relabel without a class, an exclude with one, and for control characters.
    """

    action: Literal["exclude", "relabel"]
    landmark_id: str = ""
    """The right class as text, for `relabel` only."""
    note: str = ""
    """Free text in one or more lines."""

    def __post_init__(self) -> None:
        if self.action not in ("exclude", "relabel"):
            raise UserError(f"the action {ascii(self.action)[:80]} is neither exclude nor relabel")
        if self.action == "relabel" and not self.landmark_id:
            raise UserError("relabel needs a landmark_id, the right class")
        if self.action == "exclude" and self.landmark_id:
            raise UserError("exclude takes no landmark_id; leave it empty, or write relabel")
        if _NO_CLASS.search(self.landmark_id) or _CONTROL.search(self.note):
            raise UserError("has control characters; remove them")
        if len(self.note) > _LONGEST_NOTE:
            raise UserError(f"has a note of more than {_LONGEST_NOTE:,} characters; shorten it")
