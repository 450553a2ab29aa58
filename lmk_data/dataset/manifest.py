"""dataset.json: read it, and refuse what this version cannot read or nobody should trust."""

import json
import re
from typing import Any, cast

from lmk_data.dataset.format import CLASSES, FORMAT_NAME, FORMAT_VERSION, MANIFEST, SPLITS, Manifest, Recipe, index_name
from lmk_data.errors import DatasetError
from lmk_data.system.storage import BUILD_FOLDER, Folder

_MAX_MANIFEST_BYTES = 256 << 20
_SHAPE: dict[str, Any] = {
    "fingerprint": str,
    "content_sha256": str,
    "title": str,
    "license": str,
    "source": dict,
    "plan": {"split": dict},
    "recipe": {"encoder": dict},
    "counts": dict.fromkeys(("listed", "below_min_samples", "outside_top", "rejected", "written"), int),
    "splits": dict,
    "classes": {"path": str, "num_classes": int},
    "files": dict,
}
_SPLIT_SHAPE: dict[str, Any] = {"num_samples": int, "num_bytes": int, "index": str, "shards": list}
_SHARD_SHAPE: dict[str, Any] = {"name": str, "num_samples": int, "num_bytes": int}
_FILE_SHAPE: dict[str, Any] = {"sha256": str, "num_bytes": int}
_SHA256 = re.compile("[0-9a-f]{64}")
_VIEW_SHAPE: dict[str, Any] = {"path": str, "content_sha256": str, "selection": list, "removed": dict}


def read_manifest(folder: Folder) -> Manifest:
    """Parse the manifest of a folder and check that this version of the code can read it.

    Raises DatasetError that says what is wrong and what to do.
    """
    location = folder.location(MANIFEST)
    try:
        num_bytes = folder.size(MANIFEST)
        if num_bytes > _MAX_MANIFEST_BYTES:
            raise DatasetError(f"{location}: {num_bytes:,} bytes is no manifest")
        manifest = json.loads(folder.read(MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        unfinished = folder.exists(BUILD_FOLDER)
        where = "the build is not finished, run it again" if unfinished else "not a dataset"
        raise DatasetError(f"{location}: no such file: {where}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{location}: not JSON ({error}); build the dataset again") from None
    except OSError as error:
        raise DatasetError(f"{location}: cannot be read: {error.strerror or error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise DatasetError(f"{location}: not the manifest of a dataset of shards (its format is not {FORMAT_NAME!r})")
    if manifest.get("version") != FORMAT_VERSION:
        stated = manifest.get("version")
        raise DatasetError(
            f"{location}: format version {stated!r}, this lmk reads {FORMAT_VERSION}; install another lmk"
        )
    _check_shape(location, manifest)
    return cast(Manifest, manifest)


def _check_shape(location: str, manifest: dict[str, Any]) -> None:
    """The parts that reading relies on are there, and no name leads out of the dataset's folder."""
    try:
        _expect(manifest, _SHAPE, "")
        if "view_of" in manifest:
            _expect(manifest["view_of"], _VIEW_SHAPE, "view_of.")
        for stated in (manifest, manifest.get("view_of", manifest)):
            if not _SHA256.fullmatch(stated["content_sha256"]):  # caches are named after it
                raise ValueError(f"content_sha256 is {stated['content_sha256'][:80]!r}")
        names = [manifest["classes"]["path"], *manifest["files"]]
        for name, entry in manifest["files"].items():
            _expect(entry, _FILE_SHAPE, f"files.{name}.")
        for split, entry in manifest["splits"].items():
            _expect(entry, _SPLIT_SHAPE, f"splits.{split}.")
            for shard in entry["shards"]:
                _expect(shard, _SHARD_SHAPE, f"splits.{split}.shards.")
            names += [entry["index"], *(shard["name"] for shard in entry["shards"])]
            if split not in SPLITS or sum(shard["num_samples"] for shard in entry["shards"]) != entry["num_samples"]:
                raise ValueError(f"the shards of split {split!r} do not add up to {entry['num_samples']}")
            if entry["index"] != index_name(split):
                raise ValueError(f"splits.{split}.index is not {index_name(split)}")
        if manifest["classes"]["path"] != CLASSES:
            raise ValueError(f"classes.path is not {CLASSES}")
        recipe_of(manifest["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{location}: damaged manifest ({error}); build the dataset again") from None
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise DatasetError(f"{location}: the name {name!r} leads out of the dataset; do not trust this dataset")


def _expect(value: Any, shape: dict[str, Any], prefix: str) -> None:
    """Raise TypeError unless `value` has the parts of `shape`, of their kinds; others are left alone."""
    if not isinstance(value, dict):
        raise TypeError(f"{prefix or 'it'} is no object")
    for name, kind in shape.items():
        part = value.get(name)
        if isinstance(kind, dict):
            _expect(part, kind, f"{prefix}{name}.")
        elif not isinstance(part, kind) or isinstance(part, bool):
            raise TypeError(f"{prefix}{name} is {'missing' if part is None else 'not of its kind'}")


def recipe_of(value: dict[str, Any]) -> Recipe:
    """The recipe that a manifest states, without its encoder."""
    return Recipe(**{name: value[name] for name in Recipe.__dataclass_fields__})
