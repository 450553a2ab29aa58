import base64
import hashlib
import json
import re
import shlex
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lmk_data.build import BuildOptions, build
from lmk_data.cli import main
from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError
from lmk_data.options import PlanRule, Recipe
from lmk_data.report import page
from lmk_data.report.dataset import write_report
from lmk_data.report.figures import gini
from lmk_data.report.summary import terminal_summary
from lmk_data.system.storage import held, open_folder
from tests.browser import browse
from tests.pages import sections


def test_figures_are_those_of_the_datasets_own_files(
    dataset: ShardedDataset, dataset_path: Path, tmp_path: Path
) -> None:
    write_report(dataset, open_folder(tmp_path), workers=1)
    figures = json.loads((tmp_path / "report.json").read_bytes())
    classes = pd.read_parquet(dataset_path / "classes.parquet")
    assert figures["counts"]["written"] == sum(len(pd.read_parquet(p)) for p in (dataset_path / "index").iterdir())
    assert figures["classes"]["largest"] == classes["listed"].max()
    assert figures["classes"]["imbalance_ratio"] == classes["listed"].max() / classes["listed"].min()
    assert sum(band["num_classes"] for band in figures["bands"].values()) == len(classes)
    assert {r: n["count"] for r, n in figures["rejects"].items()} == {"missing": 1, "not-an-image": 1}
    for split, found in figures["splits"].items():
        assert found["num_bytes"] == sum(p.stat().st_size for p in (dataset_path / "shards" / split).iterdir())
    index = pd.concat([pd.read_parquet(p) for p in (dataset_path / "index").iterdir()])
    assert figures["pictures"]["width"] == dict.fromkeys(("least", "5%", "half", "95%", "most"), 96.0)
    assert figures["pictures"]["stored_kb"]["most"] == pytest.approx(index["jpg_size"].max() / 1e3, abs=1e-4)
    assert figures["odd"] == {"elongated": 0, "enlarged": 0, "nearly_uniform": int((index["jpg_size"] < 2000).sum())}
    assert 0 < figures["mixing"]["entropy"] < np.log2(5)
    assert figures["mixing"]["entropy"] == pytest.approx(figures["mixing"]["by_chance"], rel=0.2)
    assert set(figures["duplicates"]) == {"exact", "near"}
    assert sum(found["ratio"] for found in figures["splits"].values()) == pytest.approx(1, abs=1e-5)


def test_what_the_page_draws_is_in_its_figures(dataset: ShardedDataset, tmp_path: Path) -> None:
    write_report(dataset, open_folder(tmp_path), workers=1)
    figures = json.loads((tmp_path / "report.json").read_bytes())
    classes, index = dataset.classes, pd.concat({split: dataset.index(split) for split in dataset.splits})
    assert figures["title"] == "Small <set>"
    for name in ("width", "height", "megapixels", "aspect", "stored_kb"):
        assert sum(figures["histograms"][name]["counts"]) == len(dataset)
        assert len(figures["histograms"][name]["edges"]) == len(figures["histograms"][name]["counts"]) + 1
    kept = figures["class_sizes"]["kept"]
    assert np.repeat(kept["images"], kept["num_classes"]).tolist() == classes["listed"].tolist()
    assert figures["class_sizes"]["dropped"] == {"images": [3, 2], "num_classes": [1, 1]}
    assert figures["coverage"]["images"][1] == pytest.approx(
        classes["listed"].max() / classes["listed"].sum(), abs=1e-6
    )
    assert figures["coverage"]["images"][-1] == 1
    smallest = classes["train"].min()
    expected = 0.5 * (np.array(figures["margins"]["images"]) / smallest) ** -0.25
    assert figures["margins"]["margin"] == pytest.approx(expected.tolist(), abs=1e-6)
    plainest = figures["odd_ones"][2]["samples"]
    assert plainest[0]["key"] == index.loc[index["jpg_size"].idxmin(), "key"]


def test_report_json_holds_the_figures_that_are_returned(dataset: ShardedDataset, tmp_path: Path) -> None:
    figures = write_report(dataset, open_folder(tmp_path), workers=1)
    written = json.loads((tmp_path / "report.json").read_bytes())
    assert written == json.loads(json.dumps(figures.as_json()))
    assert {"census", "quality"}.isdisjoint(written)
    assert written["counts"] == dataset.manifest["counts"]
    assert f"{figures.counts['written']:,} written" in terminal_summary(figures)


def test_the_page_shows_classes_of_head_middle_and_tail(dataset: ShardedDataset, tmp_path: Path) -> None:
    write_report(dataset, open_folder(tmp_path), workers=1)
    shown = sections(tmp_path / "index.html")["Images of the largest, middle and smallest classes"]
    parts = re.findall(r"<h3>(.*?) <span>(\w+): (\d+) images</span>", shown)
    classes = dataset.classes
    assert [(name, int(listed)) for name, _, listed in parts] == list(
        zip(classes["name"], classes["listed"], strict=True)
    )
    assert list(dict.fromkeys(part for _, part, _ in parts)) == ["head", "middle", "tail"]
    num_shown = [row.count("<img ") for row in shown.split("<h3>")[1:]]
    assert num_shown == [min(8, number) for number in classes["train"]]


def test_the_page_names_the_next_commands_for_a_shell(dataset_path: Path, tmp_path: Path) -> None:
    place = tmp_path / "it's ours"
    place.symlink_to(dataset_path)
    with ShardedDataset.open(place) as dataset:
        write_report(dataset, open_folder(tmp_path / "report"), workers=1)
    shown = unescape(sections(tmp_path / "report" / "index.html")["Classes"])
    for words in (["lmk-inspect", "--shards", str(place)], ["lmk-shard", "browse", str(place)]):
        assert f"<pre>{shlex.join(words)}</pre>" in shown


def test_page_stands_alone_is_escaped_and_the_same_each_time(dataset: ShardedDataset, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(dataset, open_folder(tmp_path / name), workers=1)
    html = (tmp_path / "a" / "index.html").read_text()
    assert html == (tmp_path / "b" / "index.html").read_text()
    assert "<h1>Small &lt;set&gt;</h1>" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html.replace("xmlns:xlink", ""))
    assert "default-src 'none'" in html
    assert len(html) < 2_000_000


def test_hostile_class_names_stay_text(tmp_path: Path, collection: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    (tmp_path / "names.csv").write_text(f'landmark_id,category\n138982,"{hostile.replace(chr(34), chr(34) * 2)}"\n')
    out = tmp_path / "shards"
    build(
        BuildOptions(
            images=[str(collection / "train")],
            labels=str(collection / "train.csv"),
            out=out,
            rule=PlanRule(top=2),
            recipe=Recipe(size=32),
            categories=str(tmp_path / "names.csv"),
            title=hostile,
            workers=1,
            quiet=True,
        )
    )
    assert main(["report", str(out)]) == 0
    html = (out / "report" / "index.html").read_text()
    scripts = re.findall(r"<script( type=\"application/json\")?>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == html.count("</script"), "names end no script"
    assert [json.loads(text)["rows"][0][2] for kind, text in scripts if kind] == [hostile]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in scripts if not kind]
    assert "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests) + '">' in unescape(html)
    assert "<h1>&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert ShardedDataset.open(out).classes["name"][0] == hostile


def test_gini() -> None:
    assert gini(np.array([5, 5, 5])) == 0
    assert gini(np.array([1, 2, 3])) == pytest.approx(2 / 9)
    assert gini(np.array([0, 0, 0, 100])) == 0.75


# Run in a page around the report: it types into the search field and clicks on the heading of the names.
_DRIVE = """
const frame = document.getElementById("f");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const box = page.querySelector("table.sortable").closest(".box");
  const names = () => [...box.querySelectorAll("tbody tr")].map((row) => row.cells[2].textContent);
  const seen = {
    scroll_width: root.scrollWidth,
    client_width: root.clientWidth,
    flat: [...page.querySelectorAll("svg")].filter((svg) => svg.getBoundingClientRect().height < 100).length,
    names: names(),
  };
  const heading = [...box.querySelectorAll("thead th")][2];
  const click = () => heading.dispatchEvent(new frame.contentWindow.MouseEvent("click", { bubbles: true }));
  const type = (text) => {
    const field = box.querySelector("input[type=search]");
    field.value = text;
    field.dispatchEvent(new frame.contentWindow.Event("input", { bubbles: true }));
  };
  const third = box.querySelectorAll("tbody tr")[2].cells[1].textContent;
  const steps = [
    click, () => (seen.ascending = names()), click, () => (seen.descending = names()),
    () => type(third), () => (seen.found = names()), () => (document.title = JSON.stringify(seen)),
  ];
  steps.forEach((step, i) => setTimeout(step, 500 * (i + 1)));
};
"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (390, 0)])
def test_page_opens_in_a_browser(
    dataset: ShardedDataset, tmp_path: Path, chromium: str, width: int, scheme: int
) -> None:
    """Nothing on the console, nothing wider than a phone, and the table of classes can be searched and sorted."""
    write_report(dataset, open_folder(tmp_path / "report"), workers=1)
    # An outer page measures the report in a frame of the wanted width, which headless windows cannot be made.
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe id="f" src="report/index.html" width="{width}" height="900"></iframe><script>{_DRIVE}</script>'
    )
    done = browse(chromium, tmp_path, "--dump-dom", f"--blink-settings=preferredColorScheme={scheme}", outer.as_uri())
    seen = json.loads(unescape(re.findall(r"<title>(.*?)</title>", done.stdout)[0]))
    assert seen["scroll_width"] <= seen["client_width"] <= width
    assert seen["flat"] == 0, "every figure has room"
    classes = dataset.classes
    names = classes["name"].astype(str).tolist()
    assert seen["names"] == names
    assert seen["ascending"] == sorted(names, key=int), "ids are sorted as numbers"
    assert seen["descending"] == sorted(names, key=int, reverse=True)
    wanted = str(classes["landmark_id"][2])
    assert seen["found"] == [names[2]], f"searched for {wanted}"
    screenshot = tmp_path / "report.png"
    scheme_of_page = f"--blink-settings=preferredColorScheme={scheme}"
    page_uri = (tmp_path / "report" / "index.html").as_uri()
    browse(chromium, tmp_path, f"--screenshot={screenshot}", "--window-size=800,2400", scheme_of_page, page_uri)
    with Image.open(screenshot) as picture:
        shot = np.asarray(picture.convert("L")).astype(int)
    assert len(np.unique(shot)) > 100, "pictures and figures were drawn"
    assert (shot[0, 0] < 60) == (scheme == 0), "the page is dark where the reader wants it dark"


@pytest.mark.slow
def test_page_of_many_classes_is_small(tmp_path: Path) -> None:
    """57,042 rows of a class table take their text and a few bytes each, and no element of the page."""
    rows = 57_042
    columns = [list(range(rows)), [f"{i:06}" for i in range(rows)], ["A landmark of forty letters, or about so"] * rows]
    part = page.sortable_table(["label", "landmark", "name"], columns)
    assert len(part) < 60 * rows
    _, without_scripts = part.split("<noscript>")
    assert "<td>000099</td>" in without_scripts, "the first 100 rows"
    assert "000100" not in without_scripts


def test_a_test_set_of_its_own_has_a_report_too(collection: Path, tmp_path: Path) -> None:
    """Without a training split, as for the official test set of a benchmark."""
    images = ["--images", str(collection / "train"), "--labels", str(collection / "train.csv")]
    out = tmp_path / "shards"
    assert main(["build", *images, "--out", str(out), "--size", "64", "--split", "0", "0", "1", "--quiet"]) == 0
    with ShardedDataset.open(out) as dataset:
        assert dataset.splits == ("test",)
    assert "No class has training images" in (out / "report" / "index.html").read_text()


def test_a_page_of_somebody_else_is_never_replaced(dataset_path: Path, tmp_path: Path) -> None:
    www, shards = tmp_path / "www", tmp_path / "shards"
    shutil.copytree(dataset_path, shards, ignore=shutil.ignore_patterns("report"))
    www.mkdir()
    (www / "index.html").write_text("mine")
    with ShardedDataset.open(shards) as dataset:
        for figures in (None, "[1]", '{"mine": 1}'):
            if figures is not None:
                (www / "report.json").write_text(figures)
            with pytest.raises(UserError, match="which is no report's; name another folder"):
                write_report(dataset, open_folder(www))
        (shards / "report").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir()
        with pytest.raises(UserError, match="report: is a symbolic link"):
            write_report(dataset, open_folder(shards / "report"))
        assert not list((tmp_path / "elsewhere").iterdir())
        (shards / "report").unlink()
        report = open_folder(shards / "report")
        with (
            held(report, "another report is at work there"),
            pytest.raises(UserError, match="another report is at work"),
        ):
            write_report(dataset, report)
        for _ in range(2):
            write_report(dataset, report)
    assert {path.name for path in (shards / "report").iterdir()} == {"index.html", "report.json"}
    assert (www / "index.html").read_text() == "mine"
