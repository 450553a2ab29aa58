"""Follow the symbolic links of an archive, as those of a folder are followed: to files, and to folders. Pure."""

import posixpath
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from lmk_data.errors import UserError
from lmk_data.leftovers import LINK_IN_CIRCLE, LINK_TO_NOTHING

_LONGEST_CHAIN = 40  # links that lead to links, as Linux counts them
MAX_FILES = 1_000_000
Content = TypeVar("Content")


class Links(Generic[Content]):
    """The files and links of an archive. `files` has the content of each file, `links` the target of each link.

    A target is a path from the root of the archive, or None for one that leads out of it.
    """

    def __init__(self, files: Mapping[str, Content], links: Mapping[str, str | None]) -> None:
        self._files, self._links = files, links
        self._entries: dict[str, list[str]] = {}  # the paths directly in each folder
        for name in (*files, *links):
            path, is_new = name, True
            while path and is_new:
                folder = posixpath.dirname(path)
                is_new = folder not in self._entries
                self._entries.setdefault(folder, []).append(path)
                path = folder

    def follow(self) -> Iterator[tuple[str, Content | str]]:
        """Yield the name and the content of each file that links add; for a link that adds none, why (str).

        Raises UserError if there are more than a million of them.
        """
        for number, found in enumerate(self._all()):
            if number >= MAX_FILES:
                raise UserError(f"its links stand for more than {MAX_FILES:,} files, such as {found[0]}; unpack it")
            yield found

    def _all(self) -> Iterator[tuple[str, Content | str]]:
        for link in self._links:
            pending = [(link, link, self._folders_above(link))]
            while pending:
                name, path, above = pending.pop()
                real = self._resolve(path)
                if real is None:
                    yield name, LINK_TO_NOTHING
                elif real in self._files:
                    yield name, self._files[real]
                elif real in above:
                    yield name, LINK_IN_CIRCLE
                else:
                    below = self._entries[real]
                    pending += [
                        (f"{name}/{posixpath.basename(path)}", path, (*above, real)) for path in reversed(below)
                    ]

    def _folders_above(self, path: str) -> tuple[str, ...]:
        """Return the folders that a path lies in, from the root on."""
        parts = path.split("/")
        return tuple("/".join(parts[:number]) for number in range(len(parts)))

    def _resolve(self, path: str) -> str | None:
        """Return the path of the file or folder that a path leads to, None if it leads to nothing."""
        for _ in range(_LONGEST_CHAIN):
            through = next((above for above in (*self._folders_above(path)[1:], path) if above in self._links), None)
            if through is None:
                return path if path in self._files or path in self._entries else None
            target = self._links[through]
            if target is None:
                return None
            path = posixpath.join(target, path[len(through) + 1 :]).rstrip("/")
        return None


def target_of(link: str, stated: str) -> str | None:
    """Return where a symbolic link leads, from the root of its archive; None if it leads out."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(link), stated))
    leads_out = target.startswith("/") or target == ".." or target.startswith("../")
    return None if leads_out else target.removeprefix(".")
