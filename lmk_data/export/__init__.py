"""How other tools read a dataset: exports of it, one module per tool."""

from lmk_data.export.export import Exported, export

__all__ = ["Exported", "export"]
