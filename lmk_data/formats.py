"""The image formats that are accepted: one list for the decoder, for ids with a file extension, and for folders."""

from functools import cache

from PIL import features

# Pillow's name of each format and the extensions of its files. The decoder of JPEG also takes MPO.
EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
}
_LIBRARIES = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "TIFF": "libtiff"}  # by Pillow's names of its features


@cache
def accepted_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are decoded here; some only where Pillow was built with a library."""
    return tuple(name for name in EXTENSIONS if name not in _LIBRARIES or features.check(_LIBRARIES[name]))


def missing_codec(name: str) -> str:
    """Return why a format of `EXTENSIONS` is not decoded here, and what to do."""
    return f"{name}: Pillow was built without {_LIBRARIES[name]} here; install it and build Pillow again"


def all_extensions() -> tuple[str, ...]:
    """Return the file extensions of all formats, without the dot and in lower case, whatever Pillow was built with."""
    return tuple(extension for extensions in EXTENSIONS.values() for extension in extensions)
