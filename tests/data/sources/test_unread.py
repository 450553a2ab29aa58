"""Files of formats that are not decoded here are named before a build begins."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from PIL import features

from lmk_data.build import BuildOptions, build, plan_build
from lmk_data.errors import BuildError
from lmk_data.formats import accepted_formats
from lmk_data.sources.stores import open_stores
from lmk_data.sources.unread import first_names, unread_formats
from tests.data.sources.packed import touch

Options = Callable[..., BuildOptions]
SAID = (
    "TIFF cannot be read here, and {} files are named so, such as '{}': Pillow was built without libtiff here; "
    "install libtiff-dev and run `make setup` again"
)


@pytest.fixture(autouse=True)
def without_libtiff(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pillow says that it was built without libtiff, as it says where the headers were missing."""
    check = features.check
    monkeypatch.setattr(features, "check", lambda feature: feature != "libtiff" and check(feature))
    accepted_formats.cache_clear()
    yield
    accepted_formats.cache_clear()


def test_each_format_that_is_not_read_is_a_sentence() -> None:
    (said,) = unread_formats(pd.Series(["a/1.jpg", "a/2.TIF", "b/3.tiff", "tif/4.png", "5"]))
    assert said.startswith(SAID.format(2, "a/2.TIF"))
    assert unread_formats(pd.Series(["a/1.jpg", "tif"])) == []


def test_a_build_and_a_dry_run_say_it(
    options: Options, collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path / "images", "a/1.tif", *(f"a/{i}.jpg" for i in range(2, 9)))
    classes = options(images=[str(tmp_path / "images")], labels="classes")
    with pytest.raises(BuildError, match="were rejected"):
        build(classes)
    assert f"note: {SAID.format(1, 'a/1.tif')}" in capsys.readouterr().err
    plan_build(classes)
    assert f"note: {SAID.format(1, 'a/1.tif')}" in capsys.readouterr().err
    plan_build(options(images=[str(tmp_path / "images")]))
    assert f"note: {SAID.format(1, 'a/1.tif')}" in capsys.readouterr().err
    plan_build(options(images=[str(collection / "train"), str(tmp_path / "none")]))
    assert capsys.readouterr().err == ""


def test_a_dry_run_takes_names_that_are_no_text(options: Options, collection: Path, tmp_path: Path) -> None:
    """File names are bytes on Linux; these are Latin-1."""
    images = tmp_path / "images"
    images.mkdir()
    (images / os.fsdecode(b"caf\xe9.tif")).touch()
    assert first_names(open_stores([str(images)])).tolist() == ["caf\\xe9.tif"]
    assert plan_build(options(images=[str(images)]))[1].counts["listed"] == 67
