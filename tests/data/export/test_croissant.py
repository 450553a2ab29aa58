"""Exports for Croissant, read by mlcroissant."""

import hashlib
import io
from pathlib import Path

import pytest

from lmk_data.dataset import ShardedDataset
from tests.data.export.readers import export, run_reader


@pytest.mark.slow
def test_croissant(dataset: ShardedDataset, dataset_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlcroissant", reason="the extra `interop` is not installed")
    code = """
import io
import mlcroissant
data = mlcroissant.Dataset(jsonld=f"{root}/croissant.json")
assert not data.metadata.issues.errors, data.metadata.issues.report()
def jpeg(image):
    image.fp.seek(0)
    return image.fp.read()
def read(split):
    for r in data.records(split):
        yield r[f"{split}/key"].decode(), r[f"{split}/label"], r[f"{split}/image"].tobytes()
"""
    from PIL import Image

    root = export(dataset_path, "croissant", tmp_path / "croissant")
    for split, read in run_reader(code, root, tmp_path).items():
        pixels = []
        for sample in dataset.samples(split):
            with Image.open(io.BytesIO(sample.jpeg)) as image:
                pixels.append([sample.key, sample.label, hashlib.sha256(image.tobytes()).hexdigest()])
        assert sorted(read) == sorted(pixels)
