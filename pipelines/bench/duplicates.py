"""Measure the speed of the search for near duplicates at full scale, and its error rate on real photos.

    python -m pipelines.bench.duplicates PHOTOS [PHOTOS ...] [--hashes 1490153]

Speed: random hashes, half of them a few bits from another. Errors: each photo is compared with all others (different
photos that count as alike are listed, to be looked at), and with copies of itself that were re-encoded, resized or
cropped.
"""

import argparse
import hashlib
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmk_data.dataset.format import Resized
from lmk_data.options import Recipe
from lmk_data.resize import resize_image
from lmk_data.views.hashes import MAX_DISTANCE, near_pairs
from lmk_data.views.similarity import look_alike, small_picture

_CHANGES: dict[str, Callable[[Image.Image], tuple[Image.Image, int]]] = {
    "re-encoded at quality 50": lambda image: (image, 50),
    "half as large": lambda image: (image.resize((image.width // 2, image.height // 2)), 85),
    "2 % cropped": lambda image: (_cropped(image, 0.02), 90),
    "5 % cropped": lambda image: (_cropped(image, 0.05), 90),
}


def _cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((x, y, image.width - x, image.height - y))


def stored(data: bytes) -> tuple[int, NDArray[np.uint8]] | None:
    """Return the hash of the stored image and the small image that is compared, or None if the photo is rejected."""
    result = resize_image(data, Recipe())
    if not isinstance(result, Resized):
        return None
    return result.dhash, small_picture(result.jpeg, Recipe().size)


def alike(a: tuple[int, object], b: tuple[int, object]) -> tuple[bool, bool]:
    """Return whether two images are candidates by their hashes, and whether they are confirmed as near duplicates."""
    candidate = (a[0] ^ b[0]).bit_count() <= MAX_DISTANCE
    return candidate, candidate and bool(look_alike(a[1], b[1]))  # type: ignore[arg-type]


def search_time(num_hashes: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, num_hashes, dtype=np.uint64)
    half = num_hashes // 2
    flips = np.uint64(1) << rng.integers(0, 64, (3, half)).astype(np.uint64)
    hashes[half : 2 * half] = hashes[:half] ^ flips[0] ^ flips[1] ^ flips[2]
    started = time.monotonic()
    num_pairs = sum(len(a) for a, _ in near_pairs(np.unique(hashes)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{num_hashes:,} hashes: {num_pairs:,} pairs (with repetitions) in {time.monotonic() - started:.1f} s, ", end=""
    )
    print(f"peak {peak} MB, one core\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--hashes", type=int, default=1_490_153)
    arguments = parser.parse_args()
    search_time(arguments.hashes)
    paths = [
        p for folder in arguments.photos for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")
    ]
    by_content = {hashlib.sha256(path.read_bytes()).digest(): path for path in paths}
    seen = {path: found for path in by_content.values() if (found := stored(path.read_bytes())) is not None}
    names = list(seen)
    candidates, wrong = 0, []
    for i, a in enumerate(names):
        for b in names[:i]:
            candidate, confirmed = alike(seen[a], seen[b])
            candidates += candidate
            if confirmed:
                wrong.append((a, b))
    pairs = len(names) * (len(names) - 1) // 2
    print(f"{len(names)} photos that differ in their bytes, {pairs:,} pairs: ", end="")
    print(f"{candidates} candidates, {len(wrong)} confirmed")
    for a, b in wrong:
        print(f"  {a.name} {b.name}")
    print("\n| copy | photos | hash within 4 bits | found |\n|---|---:|---:|---:|")
    for what, change in _CHANGES.items():
        verdicts = []
        for path in names:
            with Image.open(path) as image:
                changed, quality = change(image.convert("RGB"))
            sink = io.BytesIO()
            changed.save(sink, "JPEG", quality=quality)
            copy = stored(sink.getvalue())
            assert copy is not None
            verdicts.append(alike(seen[path], copy))
        hits = np.array(verdicts).mean(axis=0)
        print(f"| {what} | {len(verdicts)} | {hits[0]:.1%} | {hits[1]:.1%} |")


if __name__ == "__main__":
    main()
