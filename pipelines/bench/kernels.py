"""Decode, resize and encode photos in memory with one library: the lower bound of the cost of every builder.

    python pipelines/bench/kernels.py pillow|own|opencv|vips|planes LIST --seconds 5 [--processes N] [--size 224]

LIST names photos, one per line. The script imports nothing of this project, so another environment can run it. `own`
is what `lmk_data.resize` does with a JPEG that is less than six times as large as its stored picture. vips needs pyvips
and pyvips-binary; planes needs PyTurboJPEG, its library, OpenCV and simplejpeg. Prints JSON: CPU milliseconds per
image, images per second of all processes together, the version of the library, and the PSNR in dB of 60 of the images
against Lanczos on the whole picture (Pillow).
"""

import argparse
import io
import json
import multiprocessing
import time
from collections.abc import Callable

_PSNR_PHOTOS = 60


def pillow(size: int) -> tuple[str, Callable[[bytes], bytes]]:
    """Return the version, and a function: full decoding, bicubic, JPEG quality 90."""
    import PIL
    from PIL import Image

    def convert(data: bytes) -> bytes:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=90)
        return sink.getvalue()

    return f"Pillow {PIL.__version__}", convert


def own(size: int) -> tuple[str, Callable[[bytes], bytes]]:
    """Return the version, and a function: full decoding by simplejpeg, bicubic by Pillow, JPEG quality 90.

    Subsampled chroma is repeated instead of interpolated where it has at least as many pixels as the stored picture.
    """
    import PIL
    import simplejpeg
    from PIL import Image

    def convert(data: bytes) -> bytes:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        pixels = simplejpeg.decode_jpeg(data, "RGBX", fastupsample=min(width, height) >= 2 * size)
        image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
        sink = io.BytesIO()
        image.resize((size, size), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
        return sink.getvalue()

    return f"simplejpeg and Pillow {PIL.__version__}", convert


def opencv(size: int) -> tuple[str, Callable[[bytes], bytes]]:
    """Return the version, and a function: full decoding, INTER_AREA, JPEG quality 90; one thread, as in a worker."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)

    def convert(data: bytes) -> bytes:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])

    return f"OpenCV {cv2.__version__}", convert


def vips(size: int) -> tuple[str, Callable[[bytes], bytes]]:
    """Return the version, and a function: libvips' thumbnail, which decodes at a fraction of the size where it can."""
    import pyvips

    pyvips.cache_set_max(0)

    def convert(data: bytes) -> bytes:
        image = pyvips.Image.thumbnail_buffer(data, size, height=size, size="force")
        return bytes(image.jpegsave_buffer(Q=90))

    return f"libvips {pyvips.version(0)}.{pyvips.version(1)}", convert


def planes(size: int) -> tuple[str, Callable[[bytes], bytes]]:
    """Return the version, and a function: luma and halved chroma are decoded, resized and encoded as they are stored.

    PyTurboJPEG decodes to planes, OpenCV resizes with INTER_AREA, simplejpeg encodes from planes.
    """
    import cv2
    import simplejpeg
    import turbojpeg

    cv2.setNumThreads(1)
    decoder = turbojpeg.TurboJPEG()
    half = size // 2

    def convert(data: bytes) -> bytes:
        luma, blue, red = decoder.decode_to_yuv_planes(data)
        luma = cv2.resize(luma, (size, size), interpolation=cv2.INTER_AREA)
        blue, red = (cv2.resize(one, (half, half), interpolation=cv2.INTER_AREA) for one in (blue, red))
        return bytes(simplejpeg.encode_jpeg_yuv_planes(luma, blue, red, quality=90))

    return f"planes, OpenCV {cv2.__version__}", convert


LIBRARIES = {"pillow": pillow, "own": own, "opencv": opencv, "vips": vips, "planes": planes}


def mean_psnr(library: str, paths: list[str], size: int) -> float:
    """Return the mean PSNR in dB of what a library makes of some photos against Lanczos on the whole picture."""
    import numpy as np
    from PIL import Image

    convert = LIBRARIES[library](size)[1]
    found = []
    for path in paths[:: max(1, len(paths) // _PSNR_PHOTOS)]:
        with open(path, "rb") as file:
            data = file.read()
        wanted = np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.LANCZOS), float)
        made = np.asarray(Image.open(io.BytesIO(convert(data))).convert("RGB"), float)
        found.append(10 * np.log10(255**2 / ((made - wanted) ** 2).mean()))
    return float(np.mean(found))


def measure(library: str, paths: list[str], size: int, seconds: float) -> tuple[str, int, float, float]:
    """Return the library, images converted, CPU seconds and wall seconds, over whole rounds of the photos."""
    name, convert = LIBRARIES[library](size)
    photos = []
    for path in paths:
        with open(path, "rb") as file:
            photos.append(file.read())
    for photo in photos[:20]:
        convert(photo)
    num_images, started, used = 0, time.monotonic(), time.process_time()
    while time.monotonic() - started < seconds:
        for photo in photos:
            convert(photo)
        num_images += len(photos)
    return name, num_images, time.process_time() - used, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("list")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    with open(arguments.list) as file:
        paths = file.read().splitlines()
    job = (arguments.library, paths, arguments.size, arguments.seconds)
    with multiprocessing.Pool(arguments.processes) as pool:
        parts = pool.starmap(measure, [job] * arguments.processes, chunksize=1)
    num_images = sum(part[1] for part in parts)
    rate = sum(part[1] / part[3] for part in parts)
    cpu_ms = 1000 * sum(part[2] for part in parts) / num_images
    psnr = mean_psnr(arguments.library, paths, arguments.size)
    print(json.dumps({"library": parts[0][0], "cpu_ms": cpu_ms, "images_per_second": rate, "psnr": psnr}))


if __name__ == "__main__":
    main()
