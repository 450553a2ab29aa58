"""Croissant: `croissant.json` describes files and record sets (https://docs.mlcommons.org/croissant/)."""

from typing import Any

from lmk_data.dataset.format import CLASSES, FileEntry, ShardEntry
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.export.rows import Write, json_file, linked_files

_CROISSANT_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(dataset: ShardedDataset) -> dict[str, Write]:
    """Return `croissant.json`: every file with its hash, the classes, and the labelled images of each split."""
    manifest = dataset.manifest
    files = [name for name in sorted(manifest["files"]) if name in set(linked_files(dataset, "croissant"))]
    document = {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "name": manifest["title"] or "Image shards",
        "description": (
            f"{len(dataset):,} images of {dataset.num_classes:,} classes, {dataset.recipe.size}x{dataset.recipe.size} "
            "pixels, as WebDataset tars with Parquet label indexes."
        ),
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "version": "1.0.0",
        **({"license": manifest["license"]} if manifest["license"] else {}),
        "distribution": [
            *(_croissant_file(name, manifest["files"][name]) for name in files),
            *(_croissant_pictures(split, dataset.shards(split)) for split in dataset.splits),
        ],
        "recordSet": [_croissant_classes(), *(_croissant_samples(split) for split in dataset.splits)],
    }
    return {"croissant.json": json_file(document)}


def _croissant_file(name: str, entry: FileEntry) -> dict[str, Any]:
    """Return the description of a file."""
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name.replace("/", "-"),
        "contentUrl": name,
        "contentSize": f"{entry['num_bytes']} B",
        "encodingFormat": "application/x-tar" if name.endswith(".tar") else "application/x-parquet",
        "sha256": entry["sha256"],
    }


def _croissant_pictures(split: str, shards: list[ShardEntry]) -> dict[str, Any]:
    """Return the set of the images in the shards of a split."""
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-pictures",
        "name": f"{split}-pictures",
        "containedIn": [{"@id": shard["name"]} for shard in shards],
        "encodingFormat": "image/jpeg",
        "includes": "*.jpg",
    }


def _croissant_classes() -> dict[str, Any]:
    """Return the record set of classes.parquet."""

    def field(column: str, kind: str) -> dict[str, Any]:
        source = {"fileObject": {"@id": CLASSES}, "extract": {"column": column}}
        return {
            "@type": "cr:Field",
            "@id": f"classes/{column}",
            "name": column,
            "dataType": kind,
            "source": source,
        }

    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "key": {"@id": "classes/label"},
        "field": [field("label", "sc:Integer"), field("landmark_id", "sc:Text"), field("name", "sc:Text")],
    }


def _croissant_samples(split: str) -> dict[str, Any]:
    """Return the record set of a split: images joined with their index rows by the key, the file name in the tar."""
    index, pictures = {"@id": f"index/{split}.parquet"}, {"@id": f"{split}-pictures"}

    def field(name: str, kind: str, source: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "@type": "cr:Field",
            "@id": f"{split}/{name}",
            "name": name,
            "dataType": kind,
            "source": source,
            **more,
        }

    by_name = {
        "fileSet": pictures,
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": r"^(?:.*/)?([^/.]+)(?:\.jpg)?$"},
    }
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "key": {"@id": f"{split}/key"},
        "field": [
            field("key", "sc:Text", by_name, references={"fileObject": index, "extract": {"column": "key"}}),
            field("label", "sc:Integer", {"fileObject": index, "extract": {"column": "label"}}),
            field("image", "sc:ImageObject", {"fileSet": pictures, "extract": {"fileProperty": "content"}}),
        ],
    }
