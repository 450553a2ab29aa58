"""What is on disk: the format, and the reader of a published dataset or view."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmk_data.dataset.manifest import recipe_of
    from lmk_data.dataset.reader import Sample, ShardedDataset

__all__ = ["Sample", "ShardedDataset", "recipe_of"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: worker processes and `--help` start without pandas."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmk_data.dataset import manifest, reader

    value: object = getattr(manifest if name == "recipe_of" else reader, name)
    globals()[name] = value
    return value
