"""dataset.json: make it, read it, and refuse what this version cannot read or nobody should trust."""

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, cast

import msgspec

from lmk_data.dataset.format import (
    CLASSES,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Counts,
    Encoder,
    FileEntry,
    Manifest,
    PlanEntry,
    SourceEntry,
    SplitEntry,
    ViewOrigin,
    canonical_json,
    content_sha256_of,
    index_name,
)
from lmk_data.errors import DatasetError
from lmk_data.options import Recipe
from lmk_data.system.storage import BUILD_FOLDER, Folder

Record = TypeVar("Record", Encoder, Recipe)
MAX_BYTES = 256 << 20
_LEAST_SAMPLE_BYTES = 3 * 2 * 512  # three members, each a header and a payload
_MAX_DEPTH = 64  # of nested objects and arrays
_SHOWN_CHARACTERS = 80  # of a name or value from a damaged manifest
_PLACE = re.compile(r"(.*) - at (?:`key` in )?`\$\.?(.*)`", re.DOTALL)  # how msgspec says where a value is wrong


@dataclass(frozen=True)
class Provenance:
    """What a dataset is made from. The fields are those of `Manifest`; the fingerprint covers all that decides bytes.

    `title` and `license` decide only the words on the card.
    """

    fingerprint: str
    source: SourceEntry
    plan: PlanEntry
    recipe: dict[str, Any]
    title: str
    license: str
    view_of: ViewOrigin | None = None

    def inputs(self) -> dict[str, Any]:
        """Return what an unfinished build leaves in its folder, to be compared with the next build there."""
        words = ("title", "license")
        return {name: value for name, value in asdict(self).items() if name not in words and value is not None}


def make_manifest(
    provenance: Provenance,
    counts: Counts,
    splits: dict[str, SplitEntry],
    num_classes: int,
    files: dict[str, FileEntry],
) -> Manifest:
    """Return the manifest of a dataset or a view.

    Args:
        provenance: what it is made from.
        counts: what became of the listed images.
        splits: shards and sizes of each split that has samples.
        num_classes: rows of classes.parquet.
        files: hash and size of every published file.
    """
    manifest: Manifest = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "fingerprint": provenance.fingerprint,
        "content_sha256": content_sha256_of(files),
        "title": provenance.title,
        "license": provenance.license,
        "source": provenance.source,
        "plan": provenance.plan,
        "recipe": provenance.recipe,
        "counts": counts,
        "splits": splits,
        "classes": {"path": CLASSES, "num_classes": num_classes},
        "files": files,
    }
    if provenance.view_of is not None:
        manifest["view_of"] = provenance.view_of
    return manifest


def read_manifest(folder: Folder) -> Manifest:
    """Return the manifest of a folder, checked against its declaration and with fields that are not declared kept.

    Raises DatasetError that says what is wrong and what to do.
    """
    location = folder.location(MANIFEST)
    try:
        manifest = _parse(folder.read(MANIFEST, MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        unfinished = folder.exists(BUILD_FOLDER)
        other = "not a dataset; give a folder that `lmk-shard build` wrote"
        what = "the build is not finished, run it again" if unfinished else other
        raise DatasetError(f"{location}: no such file: {what}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{location}: not JSON ({_shown(str(error))}); build the dataset again") from None
    except OSError as error:
        raise DatasetError(f"{location}: cannot be read: {error.strerror or error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise DatasetError(
            f"{location}: not the manifest of a dataset of shards (its format is not {FORMAT_NAME!r}); "
            "give a folder that lmk-shard wrote"
        )
    if manifest.get("version") != FORMAT_VERSION:
        stated = _shown(repr(manifest.get("version")))
        raise DatasetError(f"{location}: format version {stated}, this lmk reads {FORMAT_VERSION}; install another lmk")
    try:
        msgspec.convert(manifest, Manifest)
        _check_agreement(cast(Manifest, manifest))
    except (ValueError, msgspec.ValidationError) as error:
        problem = _located(error, manifest) if isinstance(error, msgspec.ValidationError) else str(error)
        raise DatasetError(f"{location}: damaged manifest ({problem}); build the dataset again") from None
    _check_names(location, cast(Manifest, manifest))
    return cast(Manifest, manifest)


def recipe_of(value: dict[str, Any]) -> Recipe:
    """Return the recipe that a manifest or a checkpoint states, without its encoder.

    Raises ValueError for a field that is missing or of another type than `Recipe` declares.
    """
    return _fields_of(Recipe, value, "recipe")


def _fields_of(kind: type[Record], value: Any, path: str) -> Record:
    """Return the dataclass with these fields; ValueError for one that is wrong, or missing even if it has a default."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not an object")
    names = [field.name for field in fields(kind)]
    if missing := [name for name in names if name not in value]:
        raise ValueError(f"{path}.{missing[0]}: missing")
    try:
        return msgspec.convert({name: value[name] for name in names}, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_message(error, path)) from None


def _parse(data: bytes) -> Any:
    """Return the JSON value; ValueError for what is ambiguous or not JSON: repeated keys, NaN, lone surrogates."""
    value = json.loads(data, object_pairs_hook=_without_repetition)
    level, depth = [value], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        level = [part for item in level if isinstance(item, (dict, list)) for part in _parts(item)]
        depth += 1
    canonical_json(value)
    return value


def _parts(container: dict[str, Any] | list[Any]) -> list[Any]:
    return [*container.values()] if isinstance(container, dict) else container


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the key {_shown(repr(name))} is repeated")
        members[name] = value
    return members


def _check_agreement(manifest: Manifest) -> None:
    """Raise ValueError unless the recipe is one and the parts of the manifest agree."""
    if missing := set(SPLITS) - set(manifest["plan"]["split"]):
        raise ValueError(f"plan.split.{min(missing)}: missing")
    recipe_of(manifest["recipe"])
    _fields_of(Encoder, manifest["recipe"].get("encoder"), "recipe.encoder")
    if manifest["classes"]["path"] != CLASSES:
        raise ValueError(f"classes.path: not {CLASSES}")
    if not manifest["splits"]:
        raise ValueError("splits: there is none")
    for split, entry in manifest["splits"].items():
        if split not in SPLITS:
            raise ValueError(f"splits: {_shown(repr(split))} is none of {', '.join(SPLITS)}")
        if not entry["num_samples"]:
            raise ValueError(f"splits.{split}: has no samples; an empty split is left out")
        if entry["index"] != index_name(split):
            raise ValueError(f"splits.{split}.index: not {index_name(split)}")
        for shard in entry["shards"]:
            if shard["num_samples"] * _LEAST_SAMPLE_BYTES > shard["num_bytes"]:
                raise ValueError(f"splits.{split}.shards: more samples than their bytes can hold")
        if sum(shard["num_samples"] for shard in entry["shards"]) != entry["num_samples"]:
            raise ValueError(f"the shards of split {split!r} do not add up to {entry['num_samples']}")
    counts = manifest["counts"]
    written = sum(entry["num_samples"] for entry in manifest["splits"].values())
    if counts["written"] != written:
        raise ValueError(f"counts.written: {counts['written']}, the splits have {written}")
    parts = counts["below_min_samples"] + counts["outside_top"] + counts["rejected"] + written
    if manifest["classes"]["num_classes"] > written + counts["rejected"]:
        raise ValueError(f"classes.num_classes: {manifest['classes']['num_classes']}, more than there are images")
    if counts["listed"] != parts:
        raise ValueError(f"counts.listed: {counts['listed']}, the others add up to {parts}")


def _check_names(location: str, manifest: Manifest) -> None:
    """Raise DatasetError if the name of a file leads out of the dataset's folder."""
    shards = [shard["name"] for entry in manifest["splits"].values() for shard in entry["shards"]]
    for name in (*manifest["files"], *shards):
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            shown = _shown(repr(name))
            raise DatasetError(f"{location}: the name {shown} leads out of the dataset; do not trust this dataset")


def _located(error: msgspec.ValidationError, manifest: dict[str, Any]) -> str:
    """Return what is wrong and in which field; msgspec does not say in which split or file, so look for it."""
    for field, kind in (("splits", SplitEntry), ("files", FileEntry)):
        entries = manifest.get(field)
        if f"`$.{field}[...]" in str(error) and isinstance(entries, dict):
            for name, entry in entries.items():
                try:
                    msgspec.convert(entry, kind)
                except msgspec.ValidationError as inner:
                    return _message(inner, f"{field}.{_shown(name)}")
    return _message(error, "")


def _message(error: msgspec.ValidationError, parent: str) -> str:
    """Return a validation error as `field: what is wrong`; the field's path begins with `parent`."""
    match = _PLACE.fullmatch(str(error))
    what, where = match.groups() if match else (str(error), "")
    path = parent + where if where.startswith("[") else ".".join(part for part in (parent, where) if part)
    return f"{path}: {_shown(what)}" if path else _shown(what)


def _shown(text: str) -> str:
    """Return the beginning of a stranger's text in one printable line."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
