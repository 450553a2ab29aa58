"""Small collections to build and train on, made once for the whole run, and the real pictures where they are."""

import csv
import hashlib
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image, ImageDraw

from lmk_data.build import BuildOptions, build
from lmk_data.dataset import ShardedDataset
from lmk_data.format import Recipe
from lmk_data.plan import PlanRule

# How long an example takes says nothing on a busy machine.
settings.register_profile("lmk", deadline=None)
settings.load_profile("lmk")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


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


def free_port() -> int:
    """A free port below those that outgoing connections are given, whose sister, 10000 above, is free too."""
    while True:  # SeaweedFS speaks gRPC on the sister
        port = random.SystemRandom().randrange(10_100, 22_000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


def draw(path: Path, class_number: int, number: int, size: tuple[int, int] = (96, 72)) -> None:
    """A picture that a small network can tell the class of: stripes of a colour and an angle of its own, and noise."""
    rng = np.random.default_rng([class_number, number])
    hue = (class_number * 67) % 255
    image = Image.new("HSV", size, (hue, 120, 200)).convert("RGB")
    pen = ImageDraw.Draw(image)
    step, offset = 8 + 3 * class_number, int(rng.integers(0, 8))
    for x in range(offset, size[0] + size[1], step):
        pen.line([(x, 0), (x - (class_number % 3) * 30, size[1])], fill=(20, 30 * (class_number % 8), 60), width=3)
    noisy = np.asarray(image).astype(int) + rng.integers(-20, 20, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def make_collection(
    folder: Path, class_sizes: dict[int, int], size: tuple[int, int] = (96, 72)
) -> list[tuple[str, int]]:
    """Pictures in the layout of GLR2020 with their train.csv; returns its rows."""
    rows = []
    for number, (landmark_id, count) in enumerate(class_sizes.items()):
        for i in range(count):
            key = hashlib.sha256(f"{landmark_id}/{i}".encode()).hexdigest()[:16]
            draw(folder / "train" / key[0] / key[1] / key[2] / f"{key}.jpg", number, i, size)
            rows.append((key, landmark_id))
    write_labels(folder / "train.csv", rows)
    return rows


def write_labels(path: Path, rows: list[tuple[str, int]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "landmark_id"])
        writer.writerows(rows)


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
def dataset_path(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small published dataset; tests only read it."""
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
