"""What the browser shows: classes, pictures, queues and marks, with and without a run and an inspection."""

import json
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from lmk_data.browse.catalogue import Catalogue
from lmk_data.browse.records import ClassQuery, GroupQuery, PictureQuery
from lmk_data.dataset import ShardedDataset
from lmk_data.decoding import checked_jpeg
from lmk_data.errors import DatasetError, UserError
from lmk_data.options import Selection
from lmk_data.views.duplicates import find_duplicates
from lmk_data.views.marks import Mark, MarksFile
from lmk_data.views.view import write_view
from tests.data.browse.drawn_files import ELSEWHERE, Columns, Opened, edit

NAMES = ["Église Saint-Étienne", "Brücke", "Straße am Hafen", "brucke 2", None]


@pytest.fixture(scope="module")
def edited(dataset_64: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset with names; rows 0 and 1 of train are exact duplicates of two classes, 2 and 3 look alike."""
    out = tmp_path_factory.mktemp("edited") / "it's here"
    shutil.copytree(dataset_64, out)

    def name(columns: Columns) -> None:
        columns["name"][:] = NAMES

    def copy(columns: Columns) -> None:
        first, second = (np.flatnonzero(columns["label"] == label)[0] for label in (0, 1))
        columns["source_sha256"][second] = columns["source_sha256"][first]
        third, fourth = np.flatnonzero(columns["label"] == 2)[:2]
        for column in ("shard", "jpg_offset", "jpg_size", "dhash"):
            columns[column][fourth] = columns[column][third]
        columns["dhash"][fourth] ^= 5

    edit(out / "classes.parquet", name)
    edit(out / "index" / "train.parquet", copy)
    return out


@pytest.fixture(scope="module")
def drawn(edited: Path, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(edited, tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def full(drawn: Opened) -> Catalogue:
    """A catalogue that tests do not mark in."""
    return drawn.open()


@pytest.fixture
def plain(edited: Path, tmp_path: Path) -> Catalogue:
    """Without a run and an inspection."""
    marks = MarksFile(tmp_path / "marks.csv")
    return Catalogue.open(ShardedDataset.open(edited), run=None, quality=None, marks=marks)


@pytest.mark.parametrize(
    ("search", "labels"),
    [("eglise", [0]), ("BRUCKE", [1, 3]), ("strasse", [2]), ("Straße  am", [2]), ("nothing", []), ("1389", [0])],
)
def test_classes_are_found_by_id_and_name_without_case_and_accents(
    plain: Catalogue, search: str, labels: list[int]
) -> None:
    page = plain.classes(ClassQuery(search=search, sort="label", descending=False))
    assert [row.label for row in page.items] == labels
    assert page.total == len(labels)


def test_completion_prefers_equal_names_then_beginnings_then_size(plain: Catalogue) -> None:
    assert [row.label for row in plain.complete("brücke 2", 5)] == [3]
    assert [row.label for row in plain.complete("bruck", 5)] == [1, 3]
    assert [row.label for row in plain.complete("a", 2)] == [0, 2]
    assert plain.complete(plain.class_row(4).landmark_id, 1)[0].name == plain.class_row(4).landmark_id


def test_classes_are_sorted_with_unknown_values_last(full: Catalogue) -> None:
    def order(sort: str, descending: bool) -> list[int]:
        return [row.label for row in full.classes(ClassQuery(sort=sort, descending=descending)).items]  # type: ignore[arg-type]

    assert order("size", True) == [0, 1, 2, 3, 4]
    assert order("name", False) == [4, 1, 3, 0, 2]
    assert order("purity", False) == [4, 3, 2, 1, 0]
    assert order("suspects", True)[0] == 0
    evaluated = [
        label for label in (4, 3, 2, 1, 0) if full.class_row(label).val
    ]  # the run has them the other way round
    assert order("f1", False) == [*evaluated, *sorted({*range(5)} - {*evaluated})]
    assert order("duplicates", True)[:2] == [0, 1]


def test_filters_of_classes_combine(full: Catalogue) -> None:
    def found(*filters: str) -> list[int]:
        return [row.label for row in full.classes(ClassQuery(sort="label", descending=False, filters=filters)).items]  # type: ignore[arg-type]

    assert found("suspects") == [0]
    assert found("twin") == [0, 1]
    assert found("twin", "suspects") == [0]
    assert found("several") == [2]
    assert found("conflicts") == [0, 1]
    assert found("few") == [0, 1, 2, 3, 4]
    assert found("many") == found("medium") == found("marked") == []


def test_a_class_knows_what_to_show_beside_it(drawn: Opened, full: Catalogue, plain: Catalogue) -> None:
    confused = full.class_row(0).beside
    assert confused is not None
    assert (confused.other.label, confused.why, confused.num_pictures) == (1, "confused", 2)
    unknown = full.class_row(1).beside
    assert unknown is not None
    assert (unknown.other.label, unknown.other.landmark_id) == (None, str(ELSEWHERE))
    inspected = Catalogue.open(drawn.dataset, run=None, quality=drawn.quality, marks=MarksFile(drawn.marks))
    twin, nearest = (inspected.class_row(label).beside for label in (0, 3))
    assert twin is not None
    assert (twin.other.label, twin.why) == (1, "twin")
    assert nearest is not None
    assert (nearest.other.label, nearest.why) == (4, "nearest")
    assert plain.class_row(0).beside is None


def test_pages_partition_a_class(plain: Catalogue) -> None:
    row = plain.class_row(0)
    pages = [plain.pictures(PictureQuery(label=0, page=page, page_size=4)) for page in range(row.num_samples // 4 + 2)]
    keys = [picture.key for page in pages for picture in page.items]
    assert keys == plain.keys(PictureQuery(label=0))
    assert len(set(keys)) == len(keys) == row.num_samples == pages[0].total
    assert {picture.label for page in pages for picture in page.items} == {0}
    by_split = [plain.pictures(PictureQuery(label=0, split=split)).total for split in ("train", "val", "test", "other")]
    assert by_split == [row.train, row.val, row.test, 0]


def test_random_order_is_seeded_and_stays_when_pictures_are_marked(plain: Catalogue) -> None:
    query = PictureQuery(sort="random", seed=1, mark="none")
    before = plain.keys(query)
    assert sorted(before) == sorted(plain.keys(PictureQuery()))
    assert before == plain.keys(query)
    assert before != plain.keys(PictureQuery(sort="random", seed=2))
    plain.mark({before[3]: Mark("exclude")})
    assert plain.keys(query) == before[:3] + before[4:]


def test_flags_and_suspicion(drawn: Opened, full: Catalogue) -> None:
    assert set(full.keys(PictureQuery(flag="suspect"))) == set(drawn.suspects)
    assert full.keys(PictureQuery(queue="outliers")) == [drawn.outlier]
    assert full.keys(PictureQuery(label=0, sort="suspicion"))[:2] == full.keys(PictureQuery(queue="suspects"))
    assert set(full.keys(PictureQuery(label=0, flag="misclassified"))) == set(drawn.wrong)
    assert (
        full.pictures(PictureQuery(flag="duplicate")).total == full.pictures(PictureQuery(flag="conflict")).total == 2
    )
    picture = full.pictures(PictureQuery(queue="suspects")).items[0]
    assert picture.proposed is not None
    assert picture.proposed.landmark_id == str(drawn.suspects[picture.key])
    assert (picture.suspect, picture.prediction) == (True, None)
    assert picture.wrong_label_score == pytest.approx(0.99)


def test_predictions_are_matched_by_landmark_id(drawn: Opened, full: Catalogue) -> None:
    for picture in full.pictures(PictureQuery(split="val")).items:
        assert picture.prediction is not None
        expected = drawn.wrong.get(picture.key)
        if picture.prediction.predicted.label is not None:
            assert picture.prediction.predicted.landmark_id == str(expected or picture.landmark_id)
        assert picture.correct == (picture.prediction.predicted.label == picture.label)
    detail = full.picture(next(iter(drawn.wrong)))
    best, second = detail.predictions[:2]
    assert (best.predicted.label, second.predicted.label) == (1, 0)  # the run has the classes in the opposite order
    assert [round(prediction.probability, 2) for prediction in detail.predictions] == [0.6, 0.2, 0.1, 0.05, 0.02]
    assert full.facts().predicted == drawn.dataset.num_samples("val")


def test_a_picture_has_its_source_neighbours_and_duplicates(drawn: Opened, full: Catalogue) -> None:
    key, proposed = next(iter(drawn.suspects.items()))
    detail, row = full.picture(key), drawn.dataset.index("train").set_index("key").loc[key]
    assert (detail.source, detail.original_bytes) == (row["source"], row["original_bytes"])
    assert (detail.source_sha256, detail.stored_bytes) == (row["source_sha256"].hex(), row["jpg_size"])
    assert {near.picture.label for near in detail.own_neighbours} == {0}
    assert {near.picture.landmark_id for near in detail.other_neighbours} == {str(proposed)}
    cosines = [near.similarity for near in detail.other_neighbours]
    assert cosines == sorted(cosines, reverse=True)
    assert min(cosines) > 0.7 > detail.own_neighbours[-1].similarity  # its features are those of the proposed class
    assert key not in [near.picture.key for near in detail.own_neighbours]
    (duplicate,) = full.picture(full.keys(PictureQuery(label=1, flag="duplicate"))[0]).duplicates
    assert (duplicate.kind, duplicate.picture.label) == ("exact", 0)
    first, second = full.keys(PictureQuery(label=2))[:2]
    assert ("near", second) in [(alike.kind, alike.picture.key) for alike in full.picture(first).duplicates]


def test_duplicates_are_groups_with_stable_names(edited: Path, plain: Catalogue) -> None:
    assert plain.facts().duplicates is None
    plain.warm()
    (group,) = plain.groups(GroupQuery("conflicts")).items
    assert plain.facts().duplicates == "exact"
    assert [name.label for name in group.classes] == [0, 1]
    assert plain.keys(PictureQuery(queue="conflicts", group=group.group)) == [row.key for row in group.pictures]
    assert {row.duplicates for row in group.pictures} == {group.group}
    plain.find_near_duplicates()
    assert plain.facts().duplicates == "near"
    near = find_duplicates(ShardedDataset.open(edited), "near")
    groups = plain.groups(GroupQuery("duplicates")).items
    expected = {frozenset(keys) for _, keys in near.samples.groupby("group")["key"]}
    assert {frozenset(plain.keys(PictureQuery(queue="duplicates", group=group.group))) for group in groups} == expected
    sizes = [group.num_pictures for group in groups]
    assert sizes == sorted(sizes, reverse=True)
    assert plain.keys(PictureQuery(queue="duplicates", group=group.group))[0] == group.group
    assert plain.class_row(2).duplicates == int((near.samples["label"] == 2).sum())


def test_confusions_are_pairs_by_count_and_then_their_pictures(drawn: Opened, full: Catalogue) -> None:
    page = full.groups(GroupQuery("confusions"))
    assert [group.num_pictures for group in page.items] == [2, 1]
    assert [name.label for name in page.items[0].classes] == [0, 1]
    assert set(full.keys(PictureQuery(queue="confusions", group=page.items[0].group))) == set(drawn.wrong)
    assert page.items[1].classes[1].landmark_id == str(ELSEWHERE)
    for group in ("0-77", "x", "1-2-3", f"1-{'9' * 5000}"):
        with pytest.raises(KeyError):
            full.keys(PictureQuery(queue="confusions", group=group))


def test_rejects_are_listed_with_their_reasons(plain: Catalogue) -> None:
    rows = plain.rejects()
    assert rows.total == 2
    assert {row.reason for row in rows.items} == {"missing", "not-an-image"}
    assert {row.class_name for row in rows.items} == {NAMES[0]}


def test_every_queue_says_how_many_or_what_makes_it(full: Catalogue, plain: Catalogue) -> None:
    counts = {queue.name: queue.count for queue in full.queue_names()}
    assert counts == {"suspects": 2, "outliers": 1, "duplicates": 1, "conflicts": 1, "confusions": 2, "rejects": 2}
    absent = {queue.name: queue.absent for queue in plain.queue_names() if queue.count is None}
    assert "lmk-inspect" in str(absent["suspects"])
    assert "lmk-eval" in str(absent["confusions"])
    for query in (PictureQuery(queue="suspects"), PictureQuery(flag="misclassified"), PictureQuery(sort="suspicion")):
        with pytest.raises(UserError, match="lmk-"):
            plain.pictures(query)


def test_marks_are_counted_and_another_process_is_seen(plain: Catalogue, tmp_path: Path) -> None:
    keys = plain.keys(PictureQuery(label=0))
    one, two = plain.class_row(1), plain.class_row(2)
    before = plain.mark({keys[0]: Mark("exclude", note="blurred"), keys[1]: Mark("relabel", one.landmark_id)})
    assert before == {keys[0]: None, keys[1]: None}
    assert plain.keys(PictureQuery(mark="exclude")) == [keys[0]]
    assert plain.keys(PictureQuery(mark="relabel")) == [keys[1]]
    MarksFile(tmp_path / "marks.csv").apply({keys[2]: Mark("relabel", two.landmark_id), "elsewhere": Mark("exclude")})
    assert asdict(plain.facts().marked) == {"excluded": 1, "relabelled": 2, "elsewhere": 1}
    assert plain.facts().subset_line.endswith(" --ignore-unknown"), "it is refused otherwise"
    assert (plain.class_row(0).excluded, plain.class_row(0).relabelled) == (1, 2)
    marks = [picture.mark for picture in plain.pictures(PictureQuery(label=0, mark="any")).items]
    assert [(mark.action, mark.new_class and mark.new_class.label) for mark in marks if mark] == [
        ("exclude", None),
        ("relabel", 1),
        ("relabel", 2),
    ]
    assert [row.label for row in plain.classes(ClassQuery(filters=("marked",))).items] == [0]
    assert plain.mark(before)[keys[0]] == Mark("exclude", note="blurred")
    assert asdict(plain.facts().marked) == {"excluded": 0, "relabelled": 1, "elsewhere": 1}
    own = plain.class_row(0).landmark_id
    plain.mark({keys[2]: Mark("relabel", own)})
    assert plain.facts().marked.relabelled == 0


def test_unknown_keys_and_classes_are_not_marked(plain: Catalogue, tmp_path: Path) -> None:
    key = plain.keys(PictureQuery())[0]
    for changes in ({key: Mark("exclude"), "../x": Mark("exclude")}, {key: Mark("relabel", "12345678")}):
        with pytest.raises(UserError):
            plain.mark(changes)
    assert not (tmp_path / "marks.csv").exists()


def test_the_line_to_paste_is_quoted(drawn: Opened, full: Catalogue) -> None:
    location = drawn.dataset.location
    words = ["lmk-shard", "subset", location, "--marks", str(drawn.marks), "--out", f"{location}-clean"]
    assert "'" in location
    assert shlex.split(full.facts().subset_line) == words


def test_only_pictures_of_the_index_are_read(edited: Path, plain: Catalogue, tmp_path: Path) -> None:
    dataset = ShardedDataset.open(edited)
    sample = dataset.read("val", 1)
    assert plain.jpeg(sample.key) == checked_jpeg(sample.jpeg, 64)
    for key in ("../../etc/passwd", "", "a" * 1000, "\0"):
        with pytest.raises(KeyError):
            plain.jpeg(key)

    def grow(columns: Columns) -> None:
        columns["jpg_size"][0] = 200_000
        columns["jpg_offset"][1] += 7

    copy = tmp_path / "copy"
    shutil.copytree(edited, copy)
    manifest = json.loads((copy / "dataset.json").read_text())
    for entry in manifest["splits"]["test"]["shards"]:  # as large as the index says
        entry["num_bytes"] += 300_000
        with open(copy / entry["name"], "ab") as file:
            file.truncate(entry["num_bytes"])
    (copy / "dataset.json").write_text(json.dumps(manifest))
    edit(copy / "index" / "test.parquet", grow)
    catalogue = Catalogue.open(ShardedDataset.open(copy), run=None, quality=None, marks=MarksFile(tmp_path / "m.csv"))
    for key in catalogue.keys(PictureQuery(split="test"))[:2]:
        with pytest.raises(DatasetError, match="cannot be shown"):
            catalogue.jpeg(key)
        catalogue.picture(key)  # what the index says is shown


def test_a_view_takes_the_files_of_its_base(drawn: Opened, tmp_path: Path) -> None:
    write_view(drawn.dataset, Selection(classes=tuple(map(str, drawn.ids[1:3]))), str(tmp_path / "view"))
    view = ShardedDataset.open(tmp_path / "view")
    catalogue = drawn.open(view)
    facts = catalogue.facts()
    assert facts.inspected == len(view) == facts.num_samples
    assert facts.predicted == view.num_samples("val")
    assert facts.features
    key = catalogue.keys(PictureQuery(label=1))[0]
    picture = catalogue.picture(key)
    assert picture.picture.landmark_id == str(drawn.ids[2])
    assert {near.picture.label for near in picture.own_neighbours} == {1}
    assert min(near.similarity for near in picture.own_neighbours) > 0.7
    assert picture.other is None  # the class that fits best among the others is not in the view
    rejects = catalogue.queue_names()[-1]
    assert rejects.count is None
    assert drawn.dataset.location in shlex.split(str(rejects.absent))[-2]


def test_a_base_that_has_to_be_named_is_in_the_line(edited: Path, tmp_path: Path) -> None:
    write_view(ShardedDataset.open(edited), Selection(top=2), str(tmp_path / "view"))
    manifest = json.loads((tmp_path / "view" / "dataset.json").read_text())
    manifest["view_of"]["path"] = f"file://{edited}"
    (tmp_path / "view" / "dataset.json").write_text(json.dumps(manifest))
    view = ShardedDataset.open(tmp_path / "view", base=edited)
    catalogue = Catalogue.open(view, run=None, quality=None, marks=MarksFile(tmp_path / "m.csv"))
    assert shlex.split(catalogue.facts().subset_line)[-2:] == ["--base", str(edited)]


def test_a_dataset_behind_a_url_is_shown_as_a_local_one(edited: Path, drawn: Opened, full: Catalogue) -> None:
    fsspec.filesystem("memory").put(f"{edited}/", "/edited/", recursive=True)
    try:
        with ShardedDataset.open("memory://edited") as dataset:
            assert not dataset.is_local
            catalogue = drawn.open(dataset)
            key = next(iter(drawn.suspects))
            assert catalogue.picture(key) == full.picture(key)
            assert catalogue.jpeg(key) == full.jpeg(key)
            assert catalogue.queue_names()[2:4] == full.queue_names()[2:4]
    finally:
        fsspec.filesystem("memory").rm("/edited", recursive=True)


def test_two_threads_see_the_same(drawn: Opened) -> None:
    catalogue = drawn.open()
    queries = [PictureQuery(label=label, sort="suspicion") for label in range(5)] * 4
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(catalogue.pictures, queries))
        details = list(pool.map(lambda page: catalogue.picture(page.items[0].key), pages))
    assert [page.total for page in pages[:5]] == [page.total for page in pages[-5:]]
    assert [detail.source for detail in details[:5]] == [detail.source for detail in details[-5:]]


def test_a_key_in_two_splits_is_refused(edited: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(edited, copy)
    key = pq.read_table(copy / "index" / "train.parquet")["key"][0].as_py()
    edit(copy / "index" / "val.parquet", lambda columns: columns["key"].__setitem__(0, key))
    with pytest.raises(DatasetError, match="twice"):
        Catalogue.open(ShardedDataset.open(copy), run=None, quality=None, marks=MarksFile(tmp_path / "m.csv"))


@pytest.mark.parametrize(
    ("query", "error"),
    [
        (PictureQuery(label=5), KeyError),
        (PictureQuery(label=-1), KeyError),
        (PictureQuery(page=-1), UserError),
        (PictureQuery(page_size=100_000), UserError),
        (PictureQuery(queue="duplicates", group="nobody"), KeyError),
        (PictureQuery(queue="rejects"), UserError),
        (PictureQuery(sort="x"), UserError),  # type: ignore[arg-type]
        (PictureQuery(flag="x"), UserError),  # type: ignore[arg-type]
        (PictureQuery(mark="x"), UserError),  # type: ignore[arg-type]
    ],
)
def test_odd_queries_are_errors_of_their_own(plain: Catalogue, query: PictureQuery, error: type[Exception]) -> None:
    with pytest.raises(error):
        plain.pictures(query)
