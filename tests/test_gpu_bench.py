"""`make gpu` on the CPU: every line of it that does not need CUDA, on small pictures and few classes."""

import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from pipelines.bench import gpu, gpu_checks
from pipelines.bench.gpu_checks import check_estimate, check_out_of_memory
from pipelines.bench.gpu_speed import Case, Speed, draw_dataset

CASE = Case("resnet50", 12, 64, "bf16")
DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_in_the_docs_is_that_of_its_results() -> None:
    results = json.loads((DOCS / "results" / "gpu_h200.json").read_text())
    for row in results["cases"]:
        case, speed = (
            kind(**{field.name: row[field.name] for field in fields(kind) if field.name in row})
            for kind in (Case, Speed)
        )
        assert f"\n{gpu.row(case, speed)}\n" in (DOCS / "benchmarks.md").read_text()
    assert all(check["ok"] for check in results["checks"])


@pytest.mark.slow
def test_the_cpu_runs_every_measurement_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm", reason="the extra `interop` is not installed")
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--models", "resnet50", "--batch-sizes", "4", "--classes", "12", "--amp", "bf16"]
    words += ["--size", "32", "--images", "240", "--seconds", "0.05", "--out", str(out)]
    assert gpu.main(words) == 0
    written = json.loads(out.read_text())
    assert [case["num_classes"] for case in written["cases"]] == [12]
    for case in written["cases"]:
        assert case["note"] == ""
        assert case["share"] == pytest.approx(case["both"] / case["fixed"])
        for measured in ("threads", "reader", "torchvision", "timm", "estimated"):
            assert case[measured] > 0
    outcomes = {check["name"]: check["ok"] for check in written["checks"]}
    assert outcomes.pop("resume")
    assert outcomes.pop("overflow of float16")
    assert set(outcomes) == {"tests -m cuda", "out of memory", "memory estimate"}
    assert set(outcomes.values()) == {None}
    said = capsys.readouterr().out
    assert said.count("| resnet50 |") == 1
    assert said.count("skipped ") == 3


def test_a_failed_check_is_the_exit_code_and_what_time_leaves_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = gpu_checks.Check("resume", False, "7 of 9 tensors differ")
    monkeypatch.setattr(gpu, "check_resume", lambda *_: failed)
    monkeypatch.setattr(gpu, "check_overflow", lambda *_: failed)
    words = ["--device", "cpu", "--classes", "3", "--size", "32", "--images", "30", "--minutes", "0", "--no-tests"]
    assert gpu.main([*words, "--out", str(tmp_path / "gpu.json")]) == 1
    said = capsys.readouterr().out
    assert said.count("not measured: 0 minutes were over") == 8
    assert "FAILED  resume: 7 of 9 tensors differ" in said


def test_an_estimate_far_from_what_was_allocated_fails() -> None:
    speed = Speed(allocated=4_000_000_000, reserved=5_000_000_000, estimated=5_800_000_000, overhead=800_000_000)
    assert check_estimate({CASE: speed}).ok
    small = replace(speed, estimated=2_000_000_000)
    assert check_estimate({CASE: speed, replace(CASE, amp="fp16"): small}).ok is False
    assert check_estimate({CASE: Speed(estimated=1)}).ok is None


@pytest.mark.slow
def test_a_training_that_runs_out_of_memory_says_so_in_a_line_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA is played: while the device's memory is limited, PyTorch raises its error of a device without memory."""
    dataset = draw_dataset(tmp_path / "drawn", 3, 90, 32)
    limits = [1.0]

    def hook(*_: Any) -> None:
        if limits[-1] < 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: limits.append(share))
    run = gpu_checks.train_main
    monkeypatch.setattr(gpu_checks, "train_main", lambda words: run([word.replace("cuda", "cpu") for word in words]))
    handle = register_module_forward_hook(hook)
    try:
        device: Any = SimpleNamespace(type="cuda")
        check = check_out_of_memory(dataset, device, tmp_path, "resnet32", 8)
    finally:
        handle.remove()
    assert check.ok, check.said
    assert limits[1] < 0.01
    assert limits[2] == 1
