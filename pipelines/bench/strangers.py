"""Draw pictures that are no landmarks: pages of text, floor plans, maps and plots; and take some of class folders.

    python -m pipelines.bench.strangers OUT [--images 240] [--of CIFAR.zip] [--seed 0]
    lmk-shard build --images OUT --labels classes --out DATASET --min-samples 2 --split 1 0 0

One class folder a kind, JPEG, of varying shape, paper, ink and density. With --of, OUT has pictures of the class
folders in that zip instead, equally many of each.
"""

import argparse
import io
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TEXT = "the of tower built in century by king stone river near city which was first and with opened to public"
_WORDS = _TEXT.split()
_SIDE = 512
Colour = tuple[int, int, int]
Kind = Callable[[ImageDraw.ImageDraw, np.random.Generator, Colour], None]


def _page(draw: ImageDraw.ImageDraw, generator: np.random.Generator, ink: Colour) -> None:
    """Draw columns of words, with a title."""
    size, columns = int(generator.integers(9, 22)), int(generator.integers(1, 4))
    font, title = ImageFont.load_default(size), ImageFont.load_default(2.2 * size)
    draw.text((30, 20), " ".join(generator.choice(_WORDS, 3)).title(), fill=ink, font=title)
    width = (_SIDE - 60) / columns
    for column in range(columns):
        for y in range(30 + 3 * size, _SIDE - 20, int(1.4 * size)):
            words = " ".join(generator.choice(_WORDS, int(1.9 * width / size / 4.5) + 1))
            if generator.random() < 0.9:
                draw.text((30 + column * width, y), words[: int(1.7 * width / size)], fill=ink, font=font)


def _plan(draw: ImageDraw.ImageDraw, generator: np.random.Generator, ink: Colour) -> None:
    """Draw a floor plan: rooms that are halved again and again, doors and names."""
    rooms, line = [(40.0, 40.0, _SIDE - 40.0, _SIDE - 40.0)], int(generator.integers(2, 7))
    for _ in range(int(generator.integers(4, 14))):
        left, top, right, bottom = rooms.pop(0)
        at = generator.uniform(0.3, 0.7)
        if right - left > bottom - top:
            middle = left + at * (right - left)
            rooms += [(left, top, middle, bottom), (middle, top, right, bottom)]
        else:
            middle = top + at * (bottom - top)
            rooms += [(left, top, right, middle), (left, middle, right, bottom)]
    font = ImageFont.load_default(12)
    for left, top, right, bottom in rooms:
        draw.rectangle((left, top, right, bottom), outline=ink, width=line)
        door = generator.uniform(left, max(left + 1, right - 30))
        draw.arc((door, top - 15, door + 30, top + 15), 0, 90, fill=ink, width=2)
        draw.text(((left + right) / 2 - 15, (top + bottom) / 2), f"{generator.integers(5, 90)} m2", fill=ink, font=font)


def _map(draw: ImageDraw.ImageDraw, generator: np.random.Generator, ink: Colour) -> None:
    """Draw a map: areas, a river, roads and names of places."""
    for _ in range(int(generator.integers(3, 9))):
        middle, angles = generator.uniform(0, _SIDE, 2), np.linspace(0, 2 * np.pi, 14)[:-1]
        lengths = generator.uniform(40, 160) * generator.uniform(0.6, 1.2, 13)
        around = [tuple(middle + r * np.array([np.cos(a), np.sin(a)])) for r, a in zip(lengths, angles, strict=True)]
        draw.polygon(around, fill=tuple(int(part) for part in generator.integers(150, 240, 3)), outline=ink)
    for road in range(int(generator.integers(6, 20))):
        points = np.cumsum(generator.normal(0, 50, (10, 2)), axis=0) + generator.uniform(0, _SIDE, 2)
        colour: Colour = (110, 160, 220) if not road else ((240, 180, 60) if road % 2 else (255, 255, 255))
        draw.line([tuple(point) for point in points], fill=colour, width=12 if not road else 4, joint="curve")
    for _ in range(int(generator.integers(5, 20))):
        x, y = generator.uniform(10, _SIDE - 80, 2)
        draw.text((x, y), str(generator.choice(_WORDS)).title(), fill=ink, font=ImageFont.load_default(13))


def _plot(draw: ImageDraw.ImageDraw, generator: np.random.Generator, ink: Colour) -> None:
    """Draw a plot: axes with numbers, and either bars or lines."""
    draw.line([(60, 30), (60, _SIDE - 60), (_SIDE - 20, _SIDE - 60)], fill=ink, width=3)
    font, bars = ImageFont.load_default(12), generator.random() < 0.5
    for tick in range(8):
        draw.text((20, _SIDE - 70 - 50 * tick), str(10 * tick), fill=ink, font=font)
        draw.text((70 + 54 * tick, _SIDE - 50), str(1990 + tick), fill=ink, font=font)
    for series in range(int(generator.integers(1, 4))):
        colour = tuple(int(part) for part in generator.integers(0, 200, 3))
        heights = generator.uniform(30, 400, 8)
        points = [(70 + 54 * at + 12 * series, _SIDE - 60 - height) for at, height in enumerate(heights)]
        if bars:
            for x, y in points:
                draw.rectangle((x, y, x + 12, _SIDE - 60), fill=colour)
        else:
            draw.line(points, fill=colour, width=3)


KINDS: dict[str, Kind] = {"pages": _page, "plans": _plan, "maps": _map, "plots": _plot}


def drawn(kind: str, number: int, seed: int) -> Image.Image:
    """Return picture `number` of a kind, RGB."""
    generator = np.random.default_rng([seed, list(KINDS).index(kind), number])
    paper = generator.integers(215, 256) - generator.integers(0, 25, 3)
    picture = Image.new("RGB", (_SIDE, _SIDE), tuple(int(part) for part in paper))
    ink = tuple(int(part) for part in generator.integers(0, 90, 3))
    KINDS[kind](ImageDraw.Draw(picture), generator, (ink[0], ink[1], ink[2]))
    width, height = (int(side) for side in generator.integers(300, _SIDE, 2))
    return picture.crop((0, 0, width, height)) if generator.random() < 0.5 else picture


def _taken(source: Path, images: int, seed: int) -> dict[str, list[Image.Image]]:
    """Return `images` pictures of a zip with class folders, equally many of each, by class."""
    generator, found = np.random.default_rng(seed), defaultdict(list)
    with zipfile.ZipFile(source) as archive:
        by_class = defaultdict(list)
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                by_class[name.split("/")[-2]].append(name)
        for one, names in by_class.items():
            for name in generator.choice(names, images // len(by_class), replace=False):
                found[one].append(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--of", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.of is not None:
        pictures = _taken(arguments.of, arguments.images, arguments.seed)
    else:
        each = range(arguments.images // len(KINDS))
        pictures = {kind: [drawn(kind, number, arguments.seed) for number in each] for kind in KINDS}
    for kind, some in pictures.items():
        folder = arguments.out / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(some):
            picture.save(folder / f"{kind}-{number:04d}.jpg", quality=90)


if __name__ == "__main__":
    main()
