"""docs/architecture.md tells the truth: its tables name every module, and its pictures have every import."""

import re
from itertools import product
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("lmk_data", "lmk_train")


def test_the_tables_name_every_module_under_its_folder() -> None:
    named = {
        (folder, module)
        for folder, table in re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
        for module in re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    }
    there = {
        (path.parent.relative_to(ROOT).as_posix(), path.stem)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert named == there


@pytest.mark.parametrize("package", PACKAGES)
def test_the_picture_has_every_import_between_folders(package: str) -> None:
    drawn = _arrows(package)
    imports = _imports(package)
    assert drawn <= imports, "every arrow is an import"
    assert imports <= _closure(drawn), "every import goes along arrows"


@pytest.mark.parametrize("place", re.findall(r"^\| [^|]+ \| `([^`]+\.py)` \|$", PAGE, re.MULTILINE))
def test_places_to_change_are_there(place: str) -> None:
    assert (ROOT / place).is_file()


def _arrows(package: str) -> set[tuple[str, str]]:
    """The arrows of a package's picture, from folder or top-level module to another."""
    picture = re.search(rf"^## {package}\n.*?```mermaid\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
    assert picture
    sides = [line.split("-->") for line in picture[1].splitlines() if "-->" in line]
    return {pair for left, right in sides for pair in product(_names(left), _names(right))}


def _names(side: str) -> list[str]:
    return [name.strip() for name in side.split("&")]


def _imports(package: str) -> set[tuple[str, str]]:
    """The imports between the folders and top-level modules of a package."""
    graph = grimp.build_graph(package)
    pairs = {
        (importer.split(".")[1], imported.split(".")[1])
        for importer in graph.modules - {package}
        for imported in graph.find_modules_directly_imported_by(importer) - {package}
    }
    return {(importer, imported) for importer, imported in pairs if importer != imported}


def _closure(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """All pairs that a path of arrows joins."""
    reached = set(arrows)
    while more := {(a, d) for a, b in reached for c, d in arrows if b == c} - reached:
        reached |= more
    return reached
