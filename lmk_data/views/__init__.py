"""How to choose a part of a dataset: selections, views, copies, and duplicates."""

from lmk_data.mark import Mark
from lmk_data.options import Selection
from lmk_data.views.copy import write_copy
from lmk_data.views.lists import read_class_list, read_key_lists
from lmk_data.views.marks import MarksFile, read_mark_files, read_marks
from lmk_data.views.view import write_view

__all__ = [
    "Mark",
    "MarksFile",
    "Selection",
    "read_class_list",
    "read_key_lists",
    "read_mark_files",
    "read_marks",
    "write_copy",
    "write_view",
]
