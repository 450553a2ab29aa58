"""How a plan becomes a published dataset."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmk_data.build.pipeline import BuildResult, build, plan_build
    from lmk_data.options import BuildOptions

__all__ = ["BuildOptions", "BuildResult", "build", "plan_build"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: worker processes and `--help` start without pandas."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmk_data.build import pipeline

    value: object = getattr(pipeline, name)
    globals()[name] = value
    return value
