"""The image formats that are accepted, and the largest file: one list for the decoder, ids and folders."""

from functools import cache
from importlib.util import find_spec

from PIL import features

# Of a picture's file: its bytes count in the 512 MB of the decoder. In a zip, packed and unpacked are held together.
MAX_IMAGE_BYTES = 488 << 20
MAX_ZIPPED_IMAGE_BYTES = MAX_IMAGE_BYTES // 2
# Pillow's name of each format and the extensions of its files. The decoder of JPEG also takes MPO.
EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "HEIF": ("heic", "heif", "hif"),
    "AVIF": ("avif",),
}
# Pillow's names of the libraries that formats need, and the packages of Debian and Ubuntu with their headers.
_LIBRARIES = {
    "JPEG": ("jpg", "libjpeg-dev"),
    "PNG": ("zlib", "zlib1g-dev"),
    "WEBP": ("webp", "libwebp-dev"),
    "TIFF": ("libtiff", "libtiff-dev"),
    "AVIF": ("avif", "libavif-dev"),
}
_OF_EXTRA = ("HEIF", "AVIF")  # of the extra `heif`: pillow-heif decodes HEIC, Pillow itself AVIF


@cache
def accepted_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are decoded here.

    Some need a library that Pillow was built with, HEIC and AVIF also the extra `heif`.
    """
    return tuple(name for name in EXTENSIONS if not needs_extra(name) and _has_library(name))


def needs_extra(name: str) -> bool:
    """Return whether a format is not decoded here because the extra `heif` is not installed."""
    return name in _OF_EXTRA and find_spec("pillow_heif") is None


def missing_library(name: str) -> tuple[str, str]:
    """Return the library that a format needs and Pillow was built without, and the package with its headers."""
    return _LIBRARIES[name]


def _has_library(name: str) -> bool:
    return name not in _LIBRARIES or bool(features.check(_LIBRARIES[name][0]))


def all_extensions() -> tuple[str, ...]:
    """Return the file extensions of all formats, without the dot and in lower case, whatever Pillow was built with."""
    return tuple(extension for extensions in EXTENSIONS.values() for extension in extensions)
