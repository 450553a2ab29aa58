"""What is no manifest, or one that nobody should trust, is refused in one line that names the file and the field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmk_data.dataset.format import SPLITS, Manifest, canonical_json
from lmk_data.dataset.manifest import Provenance, make_manifest, read_manifest, recipe_of
from lmk_data.errors import DatasetError
from lmk_data.options import Recipe
from lmk_data.system.storage import open_folder

HASH = "0123456789abcdef" * 4


def manifest_of_a_view() -> Manifest:
    """A manifest with every field that the format declares."""
    splits: Any = {
        split: {
            "num_samples": 3,
            "num_bytes": 20_480,
            "index": f"index/{split}.parquet",
            "shards": [{"name": f"shards/{split}/{split}-000000.tar", "num_samples": 3, "num_bytes": 20_480}],
        }
        for split in SPLITS
    }
    recipe = {name: getattr(Recipe(), name) for name in Recipe.__dataclass_fields__}
    removed: Any = {"classes": 1, "train": 4, "val": 2, "test": 0, "duplicates": {"train": 1, "val": 0, "test": 0}}
    return make_manifest(
        Provenance(
            fingerprint=HASH,
            source={
                "labels": "train.csv",
                "labels_sha256": HASH,
                "layout": "glr2020",
                "num_images": 9,
                "num_classes": 2,
                "conflicting": 0,
                "duplicate_rows": 0,
            },
            plan={
                "min_samples": 3,
                "top": None,
                "split": {"train": 0.7, "val": 0.2, "test": 0.1},
                "seed": 0,
                "samples_per_shard": 3,
            },
            recipe={
                **recipe,
                "encoder": {
                    "revision": 1,
                    "distribution": "pillow",
                    "version": "12",
                    "libjpeg_turbo": "3",
                    "simplejpeg": "1",
                    "codecs": ["jpeg"],
                },
            },
            title="Title",
            license="",
            view_of={"path": "../base", "content_sha256": HASH, "selection": [{"top": 3}], "removed": removed},
        ),
        {"listed": 9, "below_min_samples": 0, "outside_top": 0, "rejected": 0, "written": 9},
        splits,
        2,
        {"classes.parquet": {"sha256": HASH, "num_bytes": 5}},
    )


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Manifest]:
    """Write bytes as dataset.json and read them."""

    def write_and_read(data: bytes) -> Manifest:
        (tmp_path / "dataset.json").write_bytes(data)
        return read_manifest(open_folder(tmp_path))

    return write_and_read


def refusal(read: Callable[[bytes], Manifest], data: bytes) -> str:
    """The message of the refusal, which is one short line that names the file."""
    with pytest.raises(DatasetError) as error:
        read(data)
    message = str(error.value)
    assert "dataset.json: " in message
    assert message.isprintable()
    assert len(message) < 600
    return message


def changed(path: str, value: object) -> bytes:
    """The manifest with the value at a dotted path replaced."""
    manifest: Any = json.loads(canonical_json(manifest_of_a_view()))
    *parents, last = path.split("/")
    part = manifest
    for name in parents:
        part = part[int(name) if isinstance(part, list) else name]
    if value is ...:
        del part[last]
    else:
        part[int(last) if isinstance(part, list) else last] = value
    return json.dumps(manifest).encode()


def test_a_manifest_is_read_as_it_was_written(read: Callable[[bytes], Manifest]) -> None:
    manifest = manifest_of_a_view()
    data = canonical_json(manifest)
    assert read(data) == manifest
    assert canonical_json(read(data)) == data


def test_fields_of_later_versions_are_kept(read: Callable[[bytes], Manifest]) -> None:
    for path in ("later", "counts/later", "splits/train/later", "splits/train/shards/0/later", "recipe/later"):
        manifest = read(changed(path, {"of": ["any", 1.5, None]}))
        assert json.loads(changed(path, {"of": ["any", 1.5, None]})) == manifest


@pytest.mark.parametrize("value", [None, True, -1, 2**63, 10**300, 1.0, "7", [], {}])
@pytest.mark.parametrize(
    "path",
    [
        "counts/listed",
        "classes/num_classes",
        "splits/train/num_samples",
        "splits/test/num_bytes",
        "splits/val/shards/0/num_bytes",
        "files/classes.parquet/num_bytes",
        "source/num_images",
        "plan/seed",
        "view_of/removed/train",
    ],
)
def test_numbers_that_are_none_are_named(read: Callable[[bytes], Manifest], path: str, value: object) -> None:
    field = path.replace("/0/", "[0].").replace("/", ".")
    assert f"damaged manifest ({field}: Expected `int`" in refusal(read, changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("counts", 5, "counts: Expected `object`, got `int`"),
        ("counts/written", ..., "counts: Object missing required field `written`"),
        ("title", None, "title: Expected `str`"),
        ("license", ["MIT"], "license: Expected `str`"),
        ("splits", [], "splits: Expected `object`"),
        ("splits/val", "all", "splits.val: Expected `object`"),
        ("splits/val/shards", {}, "splits.val.shards: Expected `array`"),
        ("splits/val/shards/0", 1, r"splits.val.shards[0]: Expected `object`"),
        ("splits/val/shards/0/name", ["a"], r"splits.val.shards[0].name: Expected `str`"),
        ("splits/extra", {"num_samples": 0, "num_bytes": 0, "index": "i", "shards": []}, "splits: 'extra' is none of"),
        ("splits/val/index", "index/train.parquet", "splits.val.index: not index/val.parquet"),
        ("splits/val/num_samples", 4, "the shards of split 'val' do not add up to 4"),
        ("files/classes.parquet/sha256", HASH.upper(), "files.classes.parquet.sha256: Expected `str` matching"),
        ("files/classes.parquet", None, "files.classes.parquet: Expected `object`"),
        ("classes/path", "other.parquet", "classes.path: not classes.parquet"),
        ("content_sha256", "../..", "content_sha256: Expected `str` matching"),
        ("content_sha256", "A" * 64, "content_sha256: Expected `str` matching"),
        ("content_sha256", HASH + "\n", "content_sha256: Expected `str` matching"),
        ("fingerprint", ..., "Object missing required field `fingerprint`"),
        ("view_of/content_sha256", "/tmp/x", "view_of.content_sha256: Expected `str` matching"),
        ("view_of/removed", "all", "view_of.removed: Expected `object`"),
        ("view_of/path", 5, "view_of.path: Expected `str`"),
        ("view_of/removed/duplicates", {"val": -1}, "view_of.removed.duplicates[...]: Expected `int` >= 0"),
        ("view_of/selection/0", "all", "view_of.selection[0]: Expected `object`"),
        ("view_of/selection/0/top", "3", "view_of.selection[0].top: Expected `int`"),
        ("source", {}, "source: Object missing required field"),
        ("source/subset_of", "a dataset", "source.subset_of: Expected `object`"),
        ("plan", {}, "plan: Object missing required field"),
        ("plan/top", "all", "plan.top: Expected `int | null`"),
        ("plan/split/val", 1.5, "plan.split[...]: Expected `float` <= 1"),
        ("plan/split/test", "0.1", "plan.split[...]: Expected `float`"),
        ("plan/split/test", ..., "plan.split.test: missing"),
        ("counts/written", 8, "counts.written: 8, the splits have 9"),
        ("counts/rejected", 1, "counts.listed: 9, the others add up to 10"),
        ("recipe/encoder", "PIL", "recipe.encoder: not an object"),
        ("recipe/encoder/version", ..., "recipe.encoder.version: missing"),
        ("recipe/encoder/codecs", [5], "recipe.encoder.codecs[0]: Expected `str`"),
        ("recipe/size", ..., "recipe.size: missing"),
        ("recipe/size", "224", "recipe.size: Expected `int`, got `str`"),
        ("recipe/fit", "stretch", "recipe.fit: Invalid enum value 'stretch'"),
        ("version", True, "version: Expected `int`, got `bool`"),
    ],
)
def test_what_does_not_fit_the_declaration_is_named(
    read: Callable[[bytes], Manifest], path: str, value: object, field: str
) -> None:
    assert f"damaged manifest ({field}" in refusal(read, changed(path, value))


def test_names_of_strangers_are_shown_in_one_short_line(read: Callable[[bytes], Manifest]) -> None:
    for name in ("x" * 100_000, "\x1b]0;owned\x07\n", "a.tar\nb"):
        assert "files." in refusal(read, changed(f"files/{name}", 5))
        assert "splits" in refusal(read, changed(f"splits/{name}", {}))
        assert "recipe.fit: Invalid enum value" in refusal(read, changed("recipe/fit", name))
        assert "selection[0].drop_duplicates: Invalid" in refusal(
            read, changed("view_of/selection/0/drop_duplicates", name)
        )
    assert "format version [" in refusal(read, changed("version", [0] * 1000))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..\\b", "a\0b"])
def test_names_that_lead_out_of_the_dataset_are_refused(read: Callable[[bytes], Manifest], name: str) -> None:
    for data in (
        changed("splits/train/shards/0/name", name),
        json.dumps({**manifest_of_a_view(), "files": {name: {"sha256": HASH, "num_bytes": 1}}}).encode(),
    ):
        assert "leads out of the dataset; do not trust this dataset" in refusal(read, data)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"NaN", "not JSON"),
        (b"-Infinity", "not JSON"),
        (b"1e999", "not JSON"),
        (b"1" + b"0" * 5000, "not JSON"),
        (b'"\\ud800"', "not JSON"),
        (b'{"a": 1, "a": 1}', "not JSON (the key 'a' is repeated)"),
        (b"[" * 70 + b"]" * 70, "not JSON (nested more than 64 deep)"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"\xff", "not JSON"),
    ],
)
def test_what_json_cannot_hold_is_refused_anywhere(read: Callable[[bytes], Manifest], value: bytes, what: str) -> None:
    manifest = canonical_json(manifest_of_a_view())
    assert what in refusal(read, value)
    assert what in refusal(read, b'{"later":' + value + b"," + manifest[1:])
    assert what in refusal(read, manifest.replace(b'"train.csv"', value))


def test_other_files_are_refused(read: Callable[[bytes], Manifest]) -> None:
    manifest = manifest_of_a_view()
    for data, what in (
        (b"", "not JSON"),
        (bytes(range(256)), "not JSON"),
        (b"[]", "not the manifest of a dataset of shards"),
        (b"{}", "not the manifest of a dataset of shards"),
        (json.dumps({**manifest, "format": "other"}).encode(), "not the manifest of a dataset of shards"),
        (json.dumps({**manifest, "version": 2}).encode(), "format version 2, this lmk reads 1; install another lmk"),
        (canonical_json(manifest)[:-1] + b',"title":"twice"}', "not JSON (the key 'title' is repeated)"),
    ):
        assert what in refusal(read, data)


def test_a_recipe_is_checked_by_its_declaration() -> None:
    recipe = manifest_of_a_view()["recipe"]
    assert recipe_of(recipe) == Recipe()
    assert recipe_of({**recipe, "size": 64}) == Recipe(size=64)
    with pytest.raises(ValueError, match=r"recipe\.quality: Expected `int`"):
        recipe_of({**recipe, "quality": None})
