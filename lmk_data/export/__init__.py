"""How other tools read a dataset: a folder for each of them."""

from lmk_data.export.export import Exported, export

__all__ = ["Exported", "export"]
