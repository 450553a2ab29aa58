"""How to choose a part of a dataset: selections, views, copies, and duplicates."""

from lmk_data.options import Selection
from lmk_data.views.copy import write_copy
from lmk_data.views.selection import read_class_list
from lmk_data.views.view import write_view

__all__ = ["Selection", "read_class_list", "write_copy", "write_view"]
