"""What operating systems, NAS boxes and archivers leave in folders: one table of names, for sources and for `--out`."""

# In lower case; names are compared without case. Words that could be a class, such as "recycled", are not here.
_NAMES = frozenset(
    {
        # Windows
        "thumbs.db",
        "thumbs.db:encryptable",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        # macOS, and what it puts into zips and onto network shares
        "__macosx",
        "icon\r",
        ".ds_store",
        ".localized",
        ".apdisk",
        ".spotlight-v100",
        ".trashes",
        ".fseventsd",
        ".temporaryitems",
        ".documentrevisions-v100",
        ".volumeicon.icns",
        "network trash folder",
        # Linux
        "lost+found",
        ".directory",
        # Synology, QNAP, NetApp
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "@__thumb",
        ".@__thumb",
        "~snapshot",
        ".snapshot",
        # Picasa
        "picasa.ini",
        ".picasa.ini",
    }
)
_BEGINNINGS = ("._", ".nfs", ".trash-", ".fuse_hidden")  # AppleDouble; files deleted while open; Linux's waste
# Why something in a source is neither an image nor an unlisted file. The summary of a build counts it by these words.
HIDDEN = "hidden files or folders"
LEFT_BY_SYSTEMS = "files or folders that systems leave behind"
LINK_IN_CIRCLE = "links to a folder that they lie in"
LINK_TO_NOTHING = "links that lead to nothing or out of their archive"
NOT_A_FILE = "entries that are no regular files"
SPARSE = "files stored with holes, which cannot be read in place"
REPLACED = "members replaced by a later one of the same name"
PICTURES_OUTSIDE = "pictures outside the class folders"
# Of these, what is named even where no summary is wanted: it may be pictures that somebody wants.
MAY_BE_MISSED = (LINK_TO_NOTHING, NOT_A_FILE, SPARSE, REPLACED, PICTURES_OUTSIDE)
LeftOut = list[tuple[str, str]]  # name and reason


def is_leftover(name: str) -> bool:
    """Return whether a file or folder of this name was left by a system, and belongs to nobody's data."""
    lower = name.lower()
    return lower in _NAMES or lower.startswith(_BEGINNINGS)


def left_out(name: str) -> str:
    """Return why a file or folder of this name is not part of a source: `LEFT_BY_SYSTEMS`, `HIDDEN` or nothing."""
    if is_leftover(name):
        return LEFT_BY_SYSTEMS
    return HIDDEN if name.startswith(".") and name != ".." else ""


def left_out_of(path: str) -> tuple[str, str] | None:
    """Return the outermost file or folder of a relative path that is not part of a source, and why; else None."""
    parts = path.split("/")
    reasons = ((number, left_out(part)) for number, part in enumerate(parts, 1))
    return next((("/".join(parts[:number]), reason) for number, reason in reasons if reason), None)
