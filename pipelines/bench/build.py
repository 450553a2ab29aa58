"""Compare builds on the same photos: kernels in memory, `lmk-shard build` up to publication, img2dataset.

    python -m pipelines.bench.build PHOTOS [PHOTOS ...] [--images 12000] [--out bench-build] [--without-peers]

PHOTOS are folders of JPEGs. They are copied once and hard-linked to the requested number of images, in the layout of
GLR2020. img2dataset (with OpenCV and stock Pillow) is installed into OUT/peers. Prints a table and writes
OUT/build-<images>.json.
"""

import argparse
import csv
import hashlib
import io
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmk_data.dataset.format import Resized
from lmk_data.options import Recipe
from lmk_data.resize import resize_image

_CLASSES = 200
_PSNR_PHOTOS = 60


@dataclass(frozen=True)
class Row:
    """One measurement; peak memory is that of the largest process."""

    what: str
    images_per_second: float
    cpu_ms: float
    peak_mb: int | None = None
    psnr: float | None = None


def link_tree(photos: list[Path], num_images: int, tree: Path) -> None:
    """Make a collection of `num_images` hard links in the layout of GLR2020, with its label table."""
    done = tree / "train.csv"
    if done.exists():
        return
    rows = []
    (tree / "train").mkdir(parents=True, exist_ok=True)
    for i, photo in zip(range(num_images), itertools.cycle(photos), strict=False):
        key = hashlib.sha256(str(i).encode()).hexdigest()[:16]
        path = tree / "train" / key[0] / key[1] / key[2] / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.link(photo, path)
        rows.append((key, i % _CLASSES))
    with open(done, "w", newline="") as file:
        csv.writer(file).writerows([("id", "landmark_id"), *rows])


def copied(folders: list[Path], pool: Path) -> list[Path]:
    """Copy the JPEGs of the folders once, so that their own link counts do not change, and return the copies."""
    pool.mkdir(parents=True, exist_ok=True)
    found = [p for folder in folders for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    paths = []
    for number, photo in enumerate(found):
        path = pool / f"{number:06d}.jpg"
        if not path.exists():
            shutil.copyfile(photo, path)
        paths.append(path)
    return paths


def run(what: str, words: list[str], num_images: int, **environment: str) -> Row:
    """Run a program and return its rate, CPU time and peak memory, including its children."""
    started = time.monotonic()
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **environment}
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"{what}: exit status {status}\n{said.decode()[-2000:]}")
    cpu = 1000 * (usage.ru_utime + usage.ru_stime) / num_images
    return Row(what, num_images / seconds, cpu, usage.ru_maxrss // 1024)


def build(tree: Path, out: Path, num_images: int, fit: str, workers: int) -> Row:
    """Measure `lmk-shard build` from the start of its process to its end."""
    program = str(Path(sys.executable).with_name("lmk-shard"))
    words = [program, "build", "--images", f"{tree}/train", "--labels", f"{tree}/train.csv", "--out", str(out)]
    words += ["--fit", fit, "--workers", str(workers), "--no-report", "--quiet"]
    return run(f"lmk-shard build, --fit {fit}, {workers} workers", words, num_images)


def kernel(what: str, python: str, library: str, listing: Path, processes: int, psnr: float | None) -> Row:
    script = str(Path(__file__).with_name("kernels.py"))
    words = [python, script, library, str(listing), "--processes", str(processes)]
    said = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return Row(f"{what} ({said['library']})", said["images_per_second"], said["cpu_ms"], psnr=psnr)


def peers(folder: Path) -> str:
    """Return the Python of an environment that has img2dataset, OpenCV and stock Pillow; install it if missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = ["img2dataset==1.47.0", "pillow"]
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", *wanted], check=True)
    return str(python)


def img2dataset(python: str, tree: Path, out: Path, num_images: int, workers: int) -> Row:
    """Measure img2dataset on the same files (file:// URLs to webdataset, centre crop to 224, quality 90)."""
    listing = out / "urls.csv"
    files = sorted((tree / "train").rglob("*.jpg"))
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("url\n" + "".join(f"file://{path}\n" for path in files))
    flags = {
        "url_list": listing, "input_format": "csv", "url_col": "url", "output_folder": out / "made",
        "output_format": "webdataset", "image_size": 224, "resize_mode": "center_crop", "encode_quality": 90,
        "processes_count": workers, "thread_count": 4, "number_sample_per_shard": 1024, "enable_wandb": False,
    }  # fmt: skip
    shutil.rmtree(out / "made", ignore_errors=True)
    words = [str(Path(python).with_name("img2dataset")), *(f"--{name}={value}" for name, value in flags.items())]
    row = run("img2dataset 1.47.0, center_crop", words, num_images, NO_ALBUMENTATIONS_UPDATE="1")
    stats = [json.loads(path.read_text()) for path in (out / "made").glob("*_stats.json")]
    if sum(part["successes"] for part in stats) != num_images:
        raise SystemExit(f"img2dataset wrote {sum(part['successes'] for part in stats)} of {num_images} images")
    return row


def mean_psnr(photos: list[Path]) -> tuple[float, float]:
    """Return the PSNR of lmk's stored image and of full decoding with bicubic.

    Both are in dB against full decoding with Lanczos, averaged over some of the photos.
    """
    ours, plain = [], []
    for path in photos[:: max(1, len(photos) // _PSNR_PHOTOS)]:
        with Image.open(path) as image:
            full = image.convert("RGB")
        reference = np.asarray(full.resize((224, 224), Image.Resampling.LANCZOS)).astype(float)
        stored = resize_image(path.read_bytes(), Recipe(exif_transpose=False))
        assert isinstance(stored, Resized)
        sink = io.BytesIO()
        full.resize((224, 224), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
        ours.append(_psnr(stored.jpeg, reference))
        plain.append(_psnr(sink.getvalue(), reference))
    return float(np.mean(ours)), float(np.mean(plain))


def _psnr(jpeg: bytes, reference: NDArray[np.float64]) -> float:
    difference = np.asarray(Image.open(io.BytesIO(jpeg))).astype(float) - reference
    return float(10 * np.log10(255**2 / (difference**2).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--out", type=Path, default=Path("bench-build"))
    parser.add_argument("--without-peers", action="store_true")
    arguments = parser.parse_args()
    out, cores = arguments.out.absolute(), os.cpu_count() or 1
    tree = out / f"tree-{arguments.images}"
    photos = copied(arguments.photos, out / "photos")
    link_tree(photos, arguments.images, tree)
    listing = out / "photos.txt"
    listing.write_text("\n".join(map(str, photos[:500])))
    ours_psnr, plain_psnr = mean_psnr(photos)
    one = kernel("kernel in memory, one core", sys.executable, "pillow", listing, 1, plain_psnr)
    every = kernel(f"kernel in memory, {cores} cores", sys.executable, "pillow", listing, cores, plain_psnr)
    own = kernel(f"kernel of lmk in memory, {cores} cores", sys.executable, "own", listing, cores, None)
    rows = [one, every, own]
    for fit in ("squash",) if arguments.without_peers else ("squash", "crop"):
        shutil.rmtree(out / "shards", ignore_errors=True)
        rows.append(build(tree, out / "shards", arguments.images, fit, cores))
    built = rows[3]
    rows[3] = Row(**{**asdict(built), "psnr": ours_psnr})
    ratios = {
        "build / (cores x one kernel)": built.images_per_second / (cores * one.images_per_second),
        "build / kernels on all cores at once": built.images_per_second / every.images_per_second,
        "CPU ms per image of the build beside the kernel of lmk": built.cpu_ms - own.cpu_ms,
        "PSNR lost against full decoding with bicubic, dB": plain_psnr - ours_psnr,
    }
    if not arguments.without_peers:
        python = peers(out / "peers")
        rows.append(img2dataset(python, tree, out / "img2dataset", arguments.images, cores))
        rows.append(kernel("kernel in memory, one core", python, "pillow", listing, 1, None))
        rows.append(kernel("kernel in memory, one core", python, "opencv", listing, 1, None))
        ratios["CPU time per image: img2dataset / lmk, both cropping"] = rows[5].cpu_ms / rows[4].cpu_ms
    mean_kb = sum(path.stat().st_size for path in photos) / len(photos) / 1e3
    print(f"{arguments.images:,} images ({len(photos)} photos, {mean_kb:.0f} KB on average), {cores} cores")
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    print("| what | images/s | CPU ms per image | peak MB | PSNR dB |\n|---|---:|---:|---:|---:|")
    for row in rows:
        peak, psnr = row.peak_mb or "", "" if row.psnr is None else f"{row.psnr:.2f}"
        print(f"| {row.what} | {row.images_per_second:,.0f} | {row.cpu_ms:.2f} | {peak} | {psnr} |")
    print("\n| ratio | |\n|---|---:|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.3f} |")
    found = {"images": arguments.images, "rows": [asdict(row) for row in rows], "ratios": ratios}
    (out / f"build-{arguments.images}.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
