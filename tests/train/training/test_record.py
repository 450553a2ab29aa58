"""Lines of metrics.jsonl and the best checkpoint."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmk_train.data.reader import SplitReader
from lmk_train.runtime import clock
from lmk_train.training import record, trainer
from lmk_train.training.loop import train
from tests.train.run_files import Config
from tests.train.runtime.test_clock import Device
from tests.train.updates import after_each_update


def timed_lines(run: Path) -> list[dict[str, float]]:
    """The training lines of a run, whose shares of the time are sound."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in read if line["kind"] == "train"]
    for line in found:
        shares = [line[f"{what}_share"] for what in ("data", "copy", "compute")]
        assert all(0 <= share <= 1 for share in shares)
        assert sum(shares) == pytest.approx(1, abs=0.01)
        assert line["images_per_second"] > 0
    return found


@pytest.mark.slow
def test_each_line_says_what_the_time_went_into(config: Config, tmp_path: Path) -> None:
    """Waiting for a slow reader or for the order is waiting; saving is in no share and in no rate."""

    slept = [0.0]
    shifted = SimpleNamespace(perf_counter=lambda: time.perf_counter() + slept[0])

    def save(*_: object) -> None:
        slept[0] += 1000

    def slowed(owner: object, name: str, slow: Callable[..., object]) -> dict[str, float]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, slow)
            patch.setattr(clock, "time", shifted)
            run = tmp_path / name
            train(config(out=run, model="resnet32", weights=None, workers=1, epochs=1, checkpoint_minutes=1e-6))
        (line,) = timed_lines(run)
        return line

    def late(called: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: (time.sleep(0.5), called(*arguments))[1]

    for owner, name in ((SplitReader, "decode"), (trainer, "epoch_order")):
        line = slowed(owner, name, late(getattr(owner, name)))
        assert line["data_share"] * 40 / line["images_per_second"] >= 0.49, "seconds of the first batch"
    assert slowed(record, "save_checkpoint", save)["images_per_second"] > 40 / 1000


def test_a_busy_device_computes_while_the_host_waits_for_data(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of the host, it would be the reader that limits."""

    class Busy(Device):
        def mark(self) -> float:
            self.now = time.perf_counter()
            return super().mark()

    device = Busy()
    monkeypatch.setattr(clock.TimeShares, "of", lambda _: clock.TimeShares(device))
    decode = SplitReader.decode

    def slow_decode(*arguments: Any) -> None:
        time.sleep(0.02)
        decode(*arguments)

    monkeypatch.setattr(SplitReader, "decode", slow_decode)
    with after_each_update(lambda *_: device.work(60.0)):
        train(config(workers=1, epochs=1))
    (line,) = timed_lines(tmp_path / "run")
    assert line["compute_share"] > 0.9


def test_the_earlier_of_two_epochs_as_good_is_the_best(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmk_train.training import loop

    scores = iter([0.5, 0.75, 0.75, 0.25])
    summarize = loop.summarize
    monkeypatch.setattr(loop, "summarize", lambda *given: {**summarize(*given), "macro_f1": next(scores)})
    result = train(config(model="resnet32", epochs=4), evaluate_test=False)
    assert (result.best_epoch, result.best_metric) == (2, 0.75)
