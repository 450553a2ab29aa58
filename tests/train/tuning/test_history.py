"""experiment.json: what a stranger may have written is refused in one line, and nothing in it is executed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmk_data.errors import UserError
from lmk_train.tuning.history import DONE, REPEATED, History, Proposal, TrialRecord, read_history, write_history
from lmk_train.tuning.space import Choice, Range, SearchSpace
from tests.train.tuning.searches import SPACE

POINT = {"lr": 1e-3, "loss": "ce", "weight_decay": 0.01}


def honest() -> dict[str, Any]:
    return {
        "format": "lmk-search",
        "version": 1,
        "node": "Sobol",
        "trials": [
            {
                "point": dict(POINT),
                "proposal": {"node": "Sobol", "generator": "Sobol", "seed": 0, "position": 1},
                "state": "done",
                "values": {"1": 0.5, "2": 0.25},
                "reason": "",
            }
        ],
    }


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    space = SearchSpace(
        {"lr": Range(1e-5, 0.1, log=True), "n": Range(1, 9, whole=True), "s": Choice((1.0, 2.0))}, SPACE.base
    )
    proposals = (Proposal("Sobol", "Sobol", 2**63 - 1, 3), Proposal("MBM", "BoTorch"), None)
    records = [
        TrialRecord({"lr": 0.1 + 0.2 - 0.25, "n": 9, "s": 1.0}, proposal, DONE, {1: 1 / 3}) for proposal in proposals
    ]
    records.append(TrialRecord({"lr": 1e-5 * (1 - 1e-12), "n": 1, "s": 2.0}, None, REPEATED, reason="é"))
    write_history(tmp_path / "x.json", History(node="MBM", trials=records))
    read = read_history(tmp_path / "x.json", space, 4)
    assert read.trials == records
    assert isinstance(read.trials[0].point["s"], float)
    assert read.node == "MBM"


def changed(*path: str | int, to: object) -> Callable[[], object]:
    def change() -> object:
        value: Any = honest()
        at = value
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = to
        return value

    return change


@pytest.mark.parametrize(
    "make",
    [
        changed("format", to="lmk-checkpoint"),
        changed("version", to=2),
        changed("trials", to={}),
        changed("trials", 0, to=5),
        changed("trials", 0, "more", to=1),
        changed("trials", 0, "state", to="paused"),
        changed("trials", 0, "point", "lr", to=1.0),
        changed("trials", 0, "point", "lr", to="1e-3"),
        changed("trials", 0, "point", "lr", to=True),
        changed("trials", 0, "point", "loss", to="__import__('os')"),
        changed("trials", 0, "point", "more", to=1),
        changed("trials", 0, "point", to={"lr": 1e-3}),
        changed("trials", 0, "values", to={"0": 1.0}),
        changed("trials", 0, "values", to={"2": 1.0}),
        changed("trials", 0, "values", to={str(n): 1.0 for n in range(1, 6)}),
        changed("trials", 0, "values", to={"1": float("nan")}),
        changed("trials", 0, "values", to={"1": "0.5"}),
        changed("trials", 0, "proposal", "position", to=10**12),
        changed("trials", 0, "proposal", "seed", to=-1),
        lambda: [],
        lambda: {"experiment": {"__type": "Experiment", "expression": "exec('...')"}, "generation_strategy": None},
    ],
)
def test_what_is_not_the_history_of_the_search_is_refused(tmp_path: Path, make: Callable[[], object]) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(honest()))
    assert len(read_history(path, SPACE, 4).trials) == 1
    path.write_text(json.dumps(make()))
    with pytest.raises(UserError, match=r"x\.json: not the trials of this search \("):
        read_history(path, SPACE, 4)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"{", b"[" * 100_000, '{"format": "\ud800"}'.encode("utf-8", "surrogatepass")]
)
def test_what_is_not_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError, match="not the trials of this search"):
        read_history(tmp_path / "x.json", SPACE, 4)


def test_a_history_that_never_begins_or_never_ends_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experiment.json"
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        read_history(path, SPACE, 4)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than"):
        read_history(path, SPACE, 4)
