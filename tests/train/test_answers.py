"""The files of `lmk-predict`: one row for each picture, whatever its name, and whole or not there."""

import csv
import io
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk_data.errors import UserError
from lmk_train.answers import Submission, Table, csv_file, csv_line, json_line, picture_id, text_line, with_unique_ids
from lmk_train.predict import Guess, Neighbour, Prediction

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
IDS = st.one_of(st.integers(-(2**63), 2**63 - 1), NAMES.filter(lambda text: not set(text) & set("\r\n")))
GUESSES = st.lists(st.builds(Guess, st.just(0), IDS, st.none(), st.floats(0, 1, width=32)), max_size=3).map(tuple)
NEAR = st.lists(st.builds(Neighbour, NAMES, st.just(0), IDS, st.none(), st.floats(-1, 1, width=32)), max_size=2)
PREDICTIONS = st.lists(
    st.one_of(
        st.builds(Prediction, NAMES, GUESSES, st.none(), NEAR.map(tuple)),
        st.builds(Prediction, NAMES, st.just(()), st.just("not-an-image: html")),
    ),
    max_size=5,
)


def read_back(lines: list[list[str]]) -> list[list[str]]:
    return list(csv.reader(io.StringIO("".join(map(csv_line, lines)), newline="")))


@given(PREDICTIONS)
@settings(max_examples=40)
def test_a_submission_has_a_row_for_each_picture_in_the_order_given(predictions: list[Prediction]) -> None:
    written = read_back([Submission().row(prediction) for prediction in predictions])
    assert [name for name, _ in written] == [picture_id(prediction.image) for prediction in predictions]
    for (_, landmarks), prediction in zip(written, predictions, strict=True):
        if prediction.guesses:
            landmark, confidence = landmarks.rsplit(" ", 1)
            assert landmark == str(prediction.guesses[0].landmark_id)
            assert np.float32(confidence) == np.float32(prediction.guesses[0].probability)
        else:
            assert landmarks == ""


@given(PREDICTIONS)
@settings(max_examples=40)
def test_a_table_names_as_many_landmarks_as_were_found(predictions: list[Prediction]) -> None:
    form = Table(top=3, neighbours=2)
    written = read_back([form.columns(), *map(form.row, predictions)])
    assert {len(cells) for cells in written} == {13}
    for cells, prediction in zip(written[1:], predictions, strict=True):
        named = [(name, np.float32(number)) for name, number in zip(cells[1:7:2], cells[2:7:2], strict=True) if number]
        assert named == [(str(guess.landmark_id), np.float32(guess.probability)) for guess in prediction.guesses]
        near = [(cells[place], cells[place + 1], np.float32(cells[place + 2])) for place in (7, 10) if cells[place + 2]]
        expected = [(one.key, str(one.landmark_id), np.float32(one.similarity)) for one in prediction.neighbours]
        assert near == expected


def test_lines_say_what_was_left_out_and_what_is_near() -> None:
    near = Neighbour("key", 1, 7, "Tower", 0.75)
    prediction = Prediction("a.jpg", (), None, (near,), 0.125)
    left_out = "no landmark is probable enough (the best has 0.125)"
    assert text_line(prediction) == f"a.jpg: {left_out}; nearest: key (Tower (7)) 0.750"
    assert json.loads(json_line(prediction)) == {
        "image": "a.jpg",
        "predictions": [],
        "neighbours": [{"key": "key", "label": 1, "landmark_id": 7, "name": "Tower", "similarity": 0.75}],
        "left_out": 0.125,
    }


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("image,earlier")
    with suppress(InterruptedError), csv_file(path, Table(1)) as add:
        add(Prediction("a.jpg", (Guess(0, 7, None, 0.5),)))
        raise InterruptedError
    assert path.read_text() == "image,earlier"
    assert list(tmp_path.iterdir()) == [path]
    with csv_file(path, Table(1)) as add:
        add(Prediction("https://user:secret@host/a.jpg?token=secret", (Guess(0, 7, None, 0.5),)))
    assert pd.read_csv(path).to_dict("records") == [
        {"image": "https://host/a.jpg", "landmark_id_1": 7, "probability_1": 0.5}
    ]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("test/0/1/2/0123456789abcdef.jpg", "0123456789abcdef"),
        ("https://host/a/b.c.jpg?size=9/x.png#top", "b.c"),
        ("why?#not.jpg", "why?#not"),
    ],
)
def test_ids_are_the_names_of_files(name: str, own: str) -> None:
    assert picture_id(name) == own


def test_no_id_comes_twice() -> None:
    assert list(with_unique_ids(["a/1.jpg", "a/2.jpg"])) == ["a/1.jpg", "a/2.jpg"]
    for second in ("a/1.jpg", "b/1.png"):
        with pytest.raises(UserError, match=rf"a/1.jpg and {second} have the same id, 1"):
            list(with_unique_ids(["a/1.jpg", second]))


def test_only_an_earlier_table_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff picture")
    (tmp_path / "mine.csv").write_text("id,landmark_id\n")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link.csv").symlink_to("mine.csv")
    before = sorted(tmp_path.iterdir())
    for name in ("a.jpg", "mine.csv", "fifo", "link.csv"):
        said = "is a link; name the file itself|is no table of predictions"
        with pytest.raises(UserError, match=said), csv_file(tmp_path / name, Table(1)):
            raise AssertionError("nothing is predicted")
    assert sorted(tmp_path.iterdir()) == before
    for form in (Submission(), Table(2), Submission()):
        with csv_file(tmp_path / "out.csv", form) as add:
            add(Prediction("a.jpg", (Guess(0, 7, None, 0.5),)))
    (tmp_path / "empty").touch()
    with csv_file(tmp_path / "empty", Submission()):
        pass


def test_a_file_without_a_place_is_refused_at_once(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "no" / "a.csv", "there is no folder")):
        with pytest.raises(UserError, match=said), csv_file(path, Submission()):
            raise AssertionError("nothing is predicted")
