"""A synthetic collection to try everything on: `draw_sample` writes it, `Sample` says what was written."""

from lmk_data.sample.collection import Sample, class_sizes, draw_sample

__all__ = ["Sample", "class_sizes", "draw_sample"]
