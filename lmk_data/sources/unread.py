"""Pictures whose names say that they are of a format that is not decoded here: said before a build rejects them."""

from itertools import islice

import pandas as pd

from lmk_data.decoding import why_not_decoded
from lmk_data.formats import EXTENSIONS, accepted_formats
from lmk_data.sources.archives import readable_name
from lmk_data.sources.stores import FolderStore, Store
from lmk_data.system.storage import LocalFolder

_LOOKED_AT = 20_000  # names of a folder, where a scan of all of them would take long


def unread_formats(names: "pd.Series[str]") -> list[str]:
    """Return a sentence for each format that is not decoded here and that files are named as: how many, and why."""
    sentences = []
    ends = None
    for name in sorted(EXTENSIONS.keys() - set(accepted_formats())):
        if ends is None:
            ends = names.str.slice(-6).str.lower()
        found = names[ends.str.endswith(tuple(f".{extension}" for extension in EXTENSIONS[name]))]
        if len(found):
            named = f"{len(found):,} files are named so, such as {found.iloc[0]!a}"
            sentences.append(f"{name} cannot be read here, and {named}: {why_not_decoded(name)}")
    return sentences


def first_names(stores: list[Store]) -> "pd.Series[str]":
    """Return the names of the first files of each folder on this machine; archives and URLs are not looked into."""
    local = [store for store in stores if isinstance(store, FolderStore) and isinstance(store.folder, LocalFolder)]
    names = [readable_name(name) for store in local for name, _ in islice(store.members([]), _LOOKED_AT)]
    return pd.Series(names, dtype=str)
