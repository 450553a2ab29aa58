"""The kind of a file by its first bytes: an accepted format, another picture format, or no picture."""

import re

from lmk_data.decoding.jpeg import JPEG_START
from lmk_data.decoding.png import PNG_START
from lmk_data.errors import missing_extra
from lmk_data.formats import missing_library, needs_extra

_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_STARTS = {
    "JPEG": (JPEG_START,),
    "PNG": (PNG_START,),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"),
}
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2")
_OTHER_BRANDS = {b"crx ": "raw photo", b"jp2 ": "JPEG 2000", b"jxl ": "JPEG XL"}
_AVIF_BRANDS = (b"avif", b"avis")
# First bytes of picture formats that are not accepted.
_OTHERS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc": "JPEG XR",
    b"\0\0\1\0": "ICO",
    b"\0\0\2\0": "CUR",
    b"8BPS": "Photoshop",
    b"gimp xcf": "GIMP",
    b"qoif": "QOI",
    b"v/1\1": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"#?RGBE": "Radiance HDR",
    b"DDS ": "DDS",
    b"BPG\xfb": "BPG",
    b"FLIF": "FLIF",
    b"\x8aMNG": "MNG",
    b"\x8bJNG": "JNG",
    b"\1\xda\0\1": "SGI",
    b"\1\xda\1\1": "SGI",
    b"\x59\xa6\x6a\x95": "Sun raster",
    b"icns": "ICNS",
    b"AT&TFORM": "DjVu",
    b"farbfeld": "farbfeld",
    b"SIMPLE  =": "FITS",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"/* XPM": "XPM",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"FUJIFILMCCD-RAW": "raw photo",
    b"IIRO": "raw photo",
    b"IIRS": "raw photo",
    b"MMOR": "raw photo",
    b"IIU\0": "raw photo",
}
_NETPBM = re.compile(rb"P[1-7Ff][\s#]")
_PCX = re.compile(rb"\x0a[\x00\x02-\x05]\x01[\x01\x02\x04\x08]")


def kind_of(data: bytes) -> str | None:
    """Return the name of the format, as in `formats.EXTENSIONS`, that a file begins as; None for all others."""
    for name, starts in _STARTS.items():
        if data.startswith(starts):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return _of_brands(data[:1024]) if data[4:8] == b"ftyp" else None


def other_kind(data: bytes) -> str | None:
    """Return the name of a picture format that is not accepted; None for what is no picture."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf")
    for start, name in _OTHERS.items():
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp" and head[8:12] in _OTHER_BRANDS:
        return _OTHER_BRANDS[head[8:12]]
    if head[128:132] == b"DICM":
        return "DICOM"
    if _NETPBM.match(head):
        return "Netpbm"
    if _PCX.match(head):
        return "PCX"
    text = head.lstrip()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in text):
        return "SVG"
    return None


def why_not_decoded(name: str) -> str:
    """Return why an accepted format is not decoded here, and what to do."""
    if needs_extra(name):
        return str(missing_extra(f"the format {name}", "heif", "pillow-heif is not installed"))
    library, package = missing_library(name)
    return f"Pillow was built without {library} here; install {package} and run `make setup` again, or build Pillow"


def _of_brands(head: bytes) -> str | None:
    """Return the accepted format that the brands of an ISO media file name."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, length, 4))}
    if brands & set(_AVIF_BRANDS):
        return "AVIF"
    if brands & set(_HEIC_BRANDS):
        return "HEIF"
    return None
