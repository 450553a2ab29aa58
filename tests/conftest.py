"""Small collections to build and train on, made once for the whole run, and the real pictures where they are."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.options import PlanRule, Recipe
from tests.build_process import NUM_IMAGES, SAMPLES_PER_SHARD
from tests.drawing import make_collection, write_labels
from tests.published import hashes

# How long an example takes says nothing on a busy machine.
settings.register_profile("lmk", deadline=None)


settings.load_profile("lmk")


MINUTES = (
    "tests/test_main_job.py",
    "tests/test_pipelines.py",
    "tests/train/training/test_resume.py",
    "tests/train/tuning/",
    "tests/train/test_export.py",
)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that take minutes go first, so that other cores are not idle while they end."""
    items.sort(key=lambda item: not item.nodeid.startswith(MINUTES))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real pictures, which are not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"the folder of real pictures is not there: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser that runs without a screen."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed")
    return found


CLASS_SIZES = {138982: 24, 20409: 15, 83144: 10, 7: 7, 113209: 6, 99: 3, 5: 2}


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """67 pictures of 7 classes, two of them below 6; one file unreadable, one missing (both of the largest class)."""
    folder = tmp_path_factory.mktemp("collection")
    rows = make_collection(folder, CLASS_SIZES)
    unreadable, missing = (folder / "train" / k[0] / k[1] / k[2] / f"{k}.jpg" for k, _ in rows[:2])
    unreadable.write_bytes(b"<html>404 Not Found</html>")
    missing.unlink()
    return folder


@pytest.fixture
def options(collection: Path, tmp_path: Path) -> Callable[..., BuildOptions]:
    """Options of a small build of `collection` into a fresh folder; keywords change them."""

    def make(**changes: object) -> BuildOptions:
        chosen: dict[str, object] = {
            "images": [str(collection / "train")],
            "labels": str(collection / "train.csv"),
            "out": tmp_path / "shards",
            "rule": PlanRule(samples_per_shard=8),
            "recipe": Recipe(size=64),
            "workers": 1,
            "quiet": True,
        }
        return BuildOptions(**{**chosen, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def dataset_64(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small published dataset of pictures of 64 pixels; tests only read it."""
    out = tmp_path_factory.mktemp("dataset") / "shards"
    build(
        BuildOptions(
            images=[str(collection / "train")],
            labels=str(collection / "train.csv"),
            out=out,
            rule=PlanRule(samples_per_shard=8),
            recipe=Recipe(size=64),
            title="Small <set>",
            workers=1,
            quiet=True,
        )
    )
    return out


@pytest.fixture(scope="session")
def dataset_path(dataset_64: Path) -> Path:
    """The small dataset that a folder of tests uses."""
    return dataset_64


@pytest.fixture(scope="session")
def old_webdataset(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """webdataset 0.2, the last with wids, in a folder of its own; None where it cannot be installed."""
    folder = tmp_path_factory.mktemp("webdataset-0.2")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    try:
        subprocess.run([*install, "webdataset==0.2.111"], capture_output=True, timeout=120, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return folder


@pytest.fixture
def dataset(dataset_path: Path) -> ShardedDataset:
    return ShardedDataset.open(dataset_path)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images of 8 classes, large enough that a build takes seconds: one noisy photo under many names."""
    folder = tmp_path_factory.mktemp("source")
    pixels = np.random.default_rng(0).integers(0, 255, (450, 600, 3), dtype=np.uint8)
    (folder / "train").mkdir()
    Image.fromarray(pixels).save(folder / "train" / "0000.jpg", quality=80)
    for i in range(1, NUM_IMAGES):
        os.link(folder / "train" / "0000.jpg", folder / "train" / f"{i:04d}.jpg")
    write_labels(folder / "train.csv", [(f"{i:04d}", i % 8) for i in range(NUM_IMAGES)])
    return folder


@pytest.fixture(scope="session")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of an uninterrupted build."""
    out = tmp_path_factory.mktemp("expected") / "shards"
    rule = PlanRule(samples_per_shard=SAMPLES_PER_SHARD)
    build(BuildOptions([str(source / "train")], str(source / "train.csv"), out, rule, Recipe(size=96), quiet=True))
    return hashes(out)


DEADLY = b"this one crashes the decoder"
CRASHING_DECODER = f"""
import os, signal, simplejpeg
decode = simplejpeg.decode_jpeg
def decode_or_die(data, *args, **options):
    if data.endswith({DEADLY!r}):
        os.kill(os.getpid(), getattr(signal, os.environ["DIES_BY"]))
    return decode(data, *args, **options)
simplejpeg.decode_jpeg = decode_or_die
"""


@pytest.fixture
def deadly(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A part of that collection, with one picture that crashes the decoder of every process from here on."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHING_DECODER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path / "deadly"
    (folder / "train").mkdir(parents=True)
    for i in range(60):
        os.link(source / "train" / f"{i:04d}.jpg", folder / "train" / f"{i:04d}.jpg")
    write_labels(folder / "train.csv", [(f"{i:04d}", i % 4) for i in range(60)])
    (folder / "train" / "0031.jpg").unlink()
    (folder / "train" / "0031.jpg").write_bytes((source / "train" / "0000.jpg").read_bytes() + DEADLY)
    return folder
