"""Files of marks: what is read and refused, and changes by several processes, of which any may be killed."""

import os
import signal
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk_data.errors import UserError
from lmk_data.options import Mark
from lmk_data.system.files import file_lock, lock_holder
from lmk_data.views import marks as marks_module
from lmk_data.views.marks import MarksFile, marks_csv, parse_marks, read_mark_table, read_marks

HEADER = "key,action,landmark_id,note\n"
KEYS = st.text("aB7-_", min_size=1, max_size=5).map("k".__add__)
NOTES = st.text(' ,;"\n\tax=é\u0301家', max_size=8).map(str.strip)
MARKS = st.one_of(
    st.builds(Mark, st.just("exclude"), note=NOTES),
    st.builds(
        Mark,
        st.just("relabel"),
        st.sampled_from(["7", "the, cathedral", "Köln", "=1+1", "a\u200cb", "東京\u3000塔", "a\tb\u2028\x1bc"]),
        NOTES,
    ),
)


@settings(max_examples=30)
@given(st.dictionaries(KEYS, MARKS, max_size=4))
def test_what_is_written_is_read_again(marks: dict[str, Mark]) -> None:
    assert parse_marks(marks_csv(marks), "marks.csv").marks == marks


@pytest.mark.parametrize(
    "data",
    [
        f"{HEADER}a,exclude,,blurred\nb,relabel,7,\n".encode(),
        b"\xef\xbb\xbfKey,Action,Landmark_ID,Note\r\n a , Exclude ,, blurred \r\n\r\n,,,\r\nb,RELABEL,7 ,,\r\n",
        b'note;landmark_id;action;key\n"blurred";;exclude;a\n;7;relabel;b\n',
        "key\taction\tlandmark_id\tnote\r\na\texclude\t\tblurred\r\nb\trelabel\t7\t\r\n".encode("utf-16"),
        b"key,who,action,landmark_id,note\na,me,exclude,,blurred\nb,me,relabel,7,\nb,you,relabel,7,\n",
        b"key,action,landmark_id,note\ra,exclude,,blurred\rb,relabel,7\r",
    ],
)
def test_files_of_people_and_spreadsheets_are_read(data: bytes) -> None:
    table = parse_marks(data, "marks.csv")
    assert table.marks == {"a": Mark("exclude", note="blurred"), "b": Mark("relabel", "7")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a,exclude,,\n",
            "has no column key; its first line is 'a', 'exclude', '', '', not key,action,landmark_id,note",
        ),
        ("key\na\n", "has no column action.*a list of keys alone is for --exclude"),
        ("key,action,key\n", "has several columns key"),
        (f"{HEADER}a,drop,,\n", r"line 2 \(a\): the action 'drop' is neither exclude nor relabel"),
        (f"{HEADER}a,exclude,,\nb,relabel,,\n", r"line 3 \(b\): relabel needs a landmark_id"),
        (f"{HEADER}a,exclude,7,\n", r"line 2 \(a\): exclude takes no landmark_id"),
        (f'{HEADER}a,exclude,,"two\nlines"\nb,relabel,,\n', r"line 4 \(b\): relabel needs"),
        (f"{HEADER}a,exclude,,big, blurred\n", "line 2: more cells than the first line; put a note with commas"),
        (f'{HEADER}a,exclude,,"never closed\nb,exclude,,\n', "line 2: a quote is opened and never closed"),
        (f'{HEADER}a,exclude,,"a "house""\n', "line 2: .*; write a quote within quotes twice"),
        (f"{HEADER}a,exclude,,x\x00y\n", "neither text nor Parquet"),
        (f"{HEADER}a,exclude,,x\x1b[2Jy\n", r"line 2 \(a\): has control characters"),
        (f'{HEADER}x,relabel,"a\nb",\n', r"line 2 \(x\): has control characters"),
        (f"{HEADER}../a,exclude,,\n", r"line 2: '../a' is not the key of a sample; keys are in the column key"),
        (
            f"{HEADER}1.23E+15,exclude,,\n",
            r"line 2: '1.23E\+15' is not the key of a sample; a spreadsheet made a number of it",
        ),
        (f"{HEADER},exclude,,\n", "line 2: '' is not the key of a sample; fill it in"),
        ("PAR1....", "is Parquet; marks are a CSV"),
        ("PK\x03\x04", "is a zip"),
        ("", "has no column key; its first line is nothing"),
        ("," * 20_000, "line 1: more lines or cells than marks have"),
    ],
)
def test_what_are_no_marks_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "marks.csv"
    path.write_bytes(text.encode())
    with pytest.raises(UserError, match=f"{path}: {said}"):
        read_marks(str(path))


def test_a_key_with_two_different_marks_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"{HEADER}a,exclude,,\nb,relabel,7,\nc,exclude,,x\nb,relabel,8,\na,relabel,7,\n")
    with pytest.raises(UserError, match=r"m.csv: different marks for 2 keys, such as b, a; keep one mark of each"):
        read_marks(str(tmp_path / "m.csv"))
    rows = [f"a,exclude,,{number:0200d}\n" for number in range(20_000)]
    assert len(parse_marks((HEADER + "".join(rows)).encode(), "m.csv").marks["a"].note) < 11_000
    table = read_mark_table(str(tmp_path / "m.csv"))
    assert (table.marks, table.conflicts) == ({"c": Mark("exclude", note="x")}, ("b", "a"))


def test_files_that_are_too_large_or_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large.csv").write_text(HEADER + "a,exclude,,\nb,exclude,,\nc,exclude,,\n")
    monkeypatch.setattr(marks_module, "MAX_MARKS", 2)
    for name, said in {
        "none.csv": "no such file",
        "fifo": "cannot be read: not a regular file",
        "large.csv": "more than 2",
    }.items():
        with pytest.raises(UserError, match=f"{name}: {said}"):
            read_marks(str(tmp_path / name))
    with pytest.raises(UserError, match="would have more than 2 marks"):
        MarksFile(tmp_path / "new.csv").apply({key: Mark("exclude") for key in "abc"})
    monkeypatch.setattr(marks_module, "_MAX_LINES", 9)
    with pytest.raises(UserError, match="line 10: more lines"):
        parse_marks(HEADER.encode() + b"\n" * 20, "marks.csv")
    monkeypatch.setattr(marks_module, "MAX_BYTES", 40)
    with pytest.raises(UserError, match=r"large\.csv: larger than"):
        read_marks(str(tmp_path / "large.csv"))


def test_a_note_is_no_longer_than_what_is_read_again(tmp_path: Path) -> None:
    marks = MarksFile(tmp_path / "marks.csv")
    marks.apply({"a": Mark("exclude", note='"' * 100_000)})
    assert len(marks.read()["a"].note) == 100_000
    with pytest.raises(UserError, match="a note of more than 100,000 characters; shorten it"):
        Mark("exclude", note="x" * 100_001)


def test_changes_return_what_was_before_and_can_be_undone(tmp_path: Path) -> None:
    file = MarksFile(tmp_path / "new" / "marks.csv")
    assert file.read() == {}
    assert file.apply({"b": Mark("exclude", note="a, b"), "a": Mark("relabel", "7")}) == {"a": None, "b": None}
    assert file.path.read_text() == f'{HEADER}a,relabel,7,\nb,exclude,,"a, b"\n'
    file.path.chmod(0o640)
    before = file.apply({"a": None, "c": Mark("exclude"), "d": None})
    assert before == {"a": Mark("relabel", "7"), "c": None, "d": None}
    assert MarksFile(file.path).read() == file.read() == {"b": Mark("exclude", note="a, b"), "c": Mark("exclude")}
    file.apply(before)
    assert file.path.read_text() == f'{HEADER}a,relabel,7,\nb,exclude,,"a, b"\n'
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o640
    assert sorted(path.name for path in file.path.parent.iterdir()) == [".marks.csv.lock", "marks.csv"]


def test_a_change_by_hand_is_seen_and_kept(tmp_path: Path) -> None:
    file = MarksFile(tmp_path / "marks.csv")
    file.apply({"a": Mark("exclude")})
    file.path.write_text("key;action;note\nz;exclude;by hand\n")
    file.apply({"b": Mark("exclude")})
    assert file.path.read_text() == f"{HEADER}b,exclude,,\nz,exclude,,by hand\n"
    for faulty, said in (
        (f"{HEADER}a,exclude,,\na,relabel,7,\n", "different marks for 1 key, such as a"),
        ("key,action,who\na,exclude,me\n", r"has other columns \('who'\), which would be lost"),
    ):
        file.path.write_text(faulty)
        with pytest.raises(UserError, match=said):
            file.apply({"b": Mark("exclude")})
        assert file.path.read_text() == faulty
    file.path.write_text("")
    assert file.read() == {}


def test_nothing_is_written_through_a_link_or_for_no_key(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text(HEADER)
    (tmp_path / "marks.csv").symlink_to("other.csv")
    with pytest.raises(UserError, match="is a symbolic link, through which nothing is written"):
        MarksFile(tmp_path / "marks.csv").apply({"a": Mark("exclude")})
    assert (tmp_path / "other.csv").read_text() == HEADER
    with pytest.raises(UserError, match="'a/b' is not the key of a sample"):
        MarksFile(tmp_path / "other.csv").apply({"a/b": Mark("exclude")})
    with pytest.raises(UserError, match="marks are made in a file of this machine"):
        MarksFile(Path("s3://bucket/marks.csv"))
    with pytest.raises(UserError, match=r"cannot be written: File exists"):
        MarksFile(tmp_path / "other.csv" / "marks.csv").apply({"a": Mark("exclude")})


def forked(action: Callable[[], None]) -> int:
    """Run an action in a process of its own; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child touches no thread
        pid = os.fork()
    if pid == 0:
        _leave(action)
    return pid


def _leave(action: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        action()
        code = 0
    finally:
        os._exit(code)


def test_two_processes_that_mark_at_once_lose_nothing(tmp_path: Path) -> None:
    def mark(name: str) -> None:
        file = MarksFile(tmp_path / "marks.csv")
        for number in range(8):
            file.apply({f"{name}{number}": Mark("exclude"), "shared": Mark("relabel", f"{name}{number}")})

    for pid in [forked(lambda name=name: mark(name)) for name in "ab"]:  # type: ignore[misc]
        assert os.waitpid(pid, 0)[1] == 0
    marks = MarksFile(tmp_path / "marks.csv").read()
    assert set(marks) == {f"{name}{number}" for name in "ab" for number in range(8)} | {"shared"}
    assert marks["shared"].landmark_id in ("a7", "b7")


def test_a_killed_process_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"

    def mark(ready: int) -> None:
        file, number = MarksFile(path), 0
        while True:
            file.apply({f"k{number}": Mark("exclude"), f"l{number}": Mark("exclude")})
            number += 1
            os.write(ready, b".")

    for round_number in range(1, 4):
        path.unlink(missing_ok=True)
        reading, writing = os.pipe()
        pid = forked(lambda writing=writing: mark(writing))  # type: ignore[misc]
        os.close(writing)
        done = 0
        while done < round_number:
            part = os.read(reading, 1)
            assert part, "it ended by itself"
            done += len(part)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while part := os.read(reading, 4096):
            done += len(part)
        os.close(reading)
        marks = MarksFile(path).read()
        assert len(marks) in (2 * done, 2 * done + 2), "what was said to be saved is there, and each change is whole"
        assert {key.replace("k", "l") for key in marks} == {key for key in marks if key[0] == "l"}
    MarksFile(path).apply({"z": Mark("exclude")})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".marks.csv.lock", "marks.csv"]


def test_who_holds_the_lock_for_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, lock = MarksFile(tmp_path / "marks.csv"), tmp_path / ".marks.csv.lock"
    file.apply({"a": Mark("exclude")})
    monkeypatch.setattr(marks_module, "_LOCK_WAIT_SECONDS", 0.03)
    with file_lock(lock):
        with pytest.raises(UserError, match=rf"process {os.getpid()} \(.+\) has held .*lock for more than 0.03 s"):
            file.apply({"b": Mark("exclude")})
        assert list(file.read()) == ["a"], "it is read all the same"
    assert lock_holder(lock) == lock_holder(tmp_path / "none") == "another process"
    file.apply({"b": Mark("exclude")})
    assert list(file.read()) == ["a", "b"]
