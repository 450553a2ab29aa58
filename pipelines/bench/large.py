"""Measure large sources and archives: decoding at a fraction of the size, and building from tars.

    python -m pipelines.bench.large PHOTOS [PHOTOS ...] [--images 6000] [--out bench-large]

Photos are enlarged to 12 megapixels and stored as baseline and as progressive JPEG. The kernel of `kernels.py` decodes
them fully, lmk at a fraction of their size. Then the same collection is built from a folder and from tars of 1,000
images.
"""

import argparse
import io
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lmk_data.dataset.format import Resized
from lmk_data.options import Recipe
from lmk_data.resize import resize_image
from pipelines.bench.build import copied, link_tree, run
from pipelines.bench.kernels import pillow

_MEGAPIXELS = 12.0
_PHOTOS = 24
_IN_A_TAR = 1_000
_BUILD = (
    "import sys; from lmk_data.build import BuildOptions, build\n"
    "build(BuildOptions([sys.argv[1]], sys.argv[2], sys.argv[3], quiet=True))"
)


def enlarged(path: Path, *, progressive: bool) -> bytes:
    """Return a photo enlarged to 12 megapixels, as JPEG."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = (_MEGAPIXELS * 1e6 / (image.width * image.height)) ** 0.5
    size = round(image.width * scale), round(image.height * scale)
    sink = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(sink, "JPEG", quality=90, progressive=progressive)
    return sink.getvalue()


def timed(convert: Callable[[bytes], bytes], photos: list[bytes]) -> tuple[float, list[bytes]]:
    """Return the CPU milliseconds per photo, best of three rounds, and the converted images."""
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        pictures = [convert(photo) for photo in photos]
        best = min(best, 1000 * (time.process_time() - started) / len(photos))
    return best, pictures


def psnr(pictures: list[bytes], photos: list[bytes]) -> float:
    """Return the mean PSNR over photos, in dB against full decoding with Lanczos."""
    found = []
    for picture, photo in zip(pictures, photos, strict=True):
        with Image.open(io.BytesIO(photo)) as image:
            reference = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.LANCZOS)).astype(float)
        with Image.open(io.BytesIO(picture)) as image:
            found.append(10 * np.log10(255**2 / ((np.asarray(image).astype(float) - reference) ** 2).mean()))
    return float(np.mean(found))


def lmk(data: bytes) -> bytes:
    stored = resize_image(data, Recipe())
    assert isinstance(stored, Resized)
    return stored.jpeg


def write_tars(tree: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((tree / "train").rglob("*.jpg"))
    for number, start in enumerate(range(0, len(files), _IN_A_TAR)):
        with tarfile.open(folder / f"images_{number:03d}.tar", "w", dereference=True) as tar:
            for path in files[start : start + _IN_A_TAR]:
                member = tarfile.TarInfo(path.relative_to(tree / "train").as_posix())
                member.size = path.stat().st_size
                with open(path, "rb") as file:
                    tar.addfile(member, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=6_000)
    parser.add_argument("--out", type=Path, default=Path("bench-large"))
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    paths = copied(arguments.photos, out / "photos")
    chosen = paths[:: max(1, len(paths) // _PHOTOS)][:_PHOTOS]
    _, whole = pillow(224)
    print("| 12 Mpx photos | kernel, full decoding, ms | PSNR dB | lmk, ms | PSNR dB | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind in ("baseline", "progressive"):
        photos = [enlarged(path, progressive=kind == "progressive") for path in chosen]
        (kernel_ms, kernel_made), (lmk_ms, lmk_made) = timed(whole, photos), timed(lmk, photos)
        quality = f"{psnr(kernel_made, photos):.2f}", f"{psnr(lmk_made, photos):.2f}"
        print(f"| {kind} | {kernel_ms:.1f} | {quality[0]} | {lmk_ms:.1f} | {quality[1]} | {kernel_ms / lmk_ms:.2f} |")
    tree = out / f"tree-{arguments.images}"
    link_tree(paths, arguments.images, tree)
    shutil.rmtree(out / "tars", ignore_errors=True)
    write_tars(tree, out / "tars")
    print(f"\n| {arguments.images:,} images, {os.cpu_count()} cores, from | images/s | CPU ms per image |")
    print("|---|---:|---:|")
    for what, images in (("a folder", tree / "train"), ("tars", out / "tars")):
        shutil.rmtree(out / "shards", ignore_errors=True)
        words = [sys.executable, "-c", _BUILD, str(images), str(tree / "train.csv"), str(out / "shards")]
        row = run(what, words, arguments.images)
        print(f"| {what} | {row.images_per_second:,.0f} | {row.cpu_ms:.2f} |")


if __name__ == "__main__":
    main()
