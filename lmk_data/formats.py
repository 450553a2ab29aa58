"""The image formats that are accepted: one list for the decoder, for ids with a file extension, and for folders."""

from functools import cache

from PIL import features

# Pillow's name of each format and the extensions of its files. Pillow's JPEG decoder also opens MPO.
EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
}


@cache
def accepted_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are decoded here; TIFF only where Pillow was built with libtiff."""
    return tuple(name for name in EXTENSIONS if name != "TIFF" or features.check("libtiff"))


def all_extensions() -> tuple[str, ...]:
    """Return the file extensions of all formats, without the dot and in lower case, whatever Pillow was built with."""
    return tuple(extension for extensions in EXTENSIONS.values() for extension in extensions)
