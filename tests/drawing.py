"""Small pictures and collections that tests draw."""

import csv
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


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
