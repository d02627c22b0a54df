"""The training-step bench: every variant is asked for the same and gives the right gradient, in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.bench_step import (
    CHECK,
    ENGINE,
    MEMORY,
    OWN,
    PEERS,
    STEP,
    TIME,
    TOLERANCE,
    Contestant,
    Given,
    against_trl,
    cases,
    engine_figures,
    figures,
)
from bench.harness import Measured, Settings, Variant, Work, WrongResult, check, measure
from bench.rollout_work import SMOLLM2, TINY
from bench.save import measure as measure_saving
from bench.step_gpu import MFU, PACK, TRAINING, WHOLE, Pack, gpu_cases
from bench.step_work import Ask, compare, move

SETTINGS = Settings(rounds=1, size="tiny")


def test_what_is_asked_is_the_same_every_time_and_within_bounds() -> None:
    prompts, completions = STEP.prompts(49152), STEP.completions(49152)
    assert prompts == STEP.prompts(49152) and completions == STEP.completions(49152)
    lengths = [len(prompts[n // 8]) + len(completion) for n, completion in enumerate(completions)]
    assert len(lengths) == STEP.num_samples == 32 and all(128 <= length <= 512 for length in lengths)
    assert sum(lengths) == STEP.tokens() and max(lengths) - min(lengths) > 256
    other = [len(completion) for completion in STEP.completions(97)]
    assert other == [len(completion) for completion in completions]  # FLOPs count them for any vocabulary
    for start in range(0, 32, 8):
        group = torch.tensor(STEP.advantages()[start : start + 8])
        assert group.sum().abs() < 1e-5 and group.std() == pytest.approx(1.0)
    assert min(CHECK.advantages()) > 0


def test_flops_are_those_of_the_products() -> None:
    """Of a model that is nearly all head, and of a group that shares its prompt."""
    one = Ask("one", 1, 2, 16, 16)
    (prompt,), completions = one.prompts(97), one.completions(97)
    drawn = sum(map(len, completions))
    layers = TINY.num_hidden_layers * (64 * 32 * (2 * 4 + 2 * 2) // 2 + 3 * 64 * 128)
    assert TINY.layer_weights == pytest.approx(layers, rel=0.5)
    least = 4 * (2 * TINY.layer_weights * (drawn + len(prompt)) + 2 * 64 * 97 * drawn)
    assert least < one.flops(TINY) < 1.2 * least


def test_the_policy_is_moved_alike_whatever_holds_its_weights() -> None:
    one, other = (torch.nn.Linear(8, 8, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    with torch.no_grad():
        for own, parameter in zip(other.parameters(), one.parameters(), strict=True):
            parameter.copy_(own)
    before = one.weight.clone()
    move(one)
    move(other)
    assert torch.equal(one.weight, other.weight.float()) and not torch.equal(one.weight, before)


def test_a_gradient_is_compared_over_all_parameters() -> None:
    exact = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}

    def error(named: dict[str, torch.Tensor]) -> float:
        return compare(named, set(exact), lambda name: exact[name].clone())

    assert error(exact) == 0.0
    assert error({"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([4.0])}) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="other parameters"):
        error({"a": exact["a"]})


def test_the_step_is_right_and_what_is_absent_is_a_row() -> None:
    found = next(iter(cases("cpu", "tiny", Given())))
    rows, none = measure("bench.bench_step", found, SETTINGS)
    own, peer = rows
    assert [row["variant"] for row in rows] == [OWN, "TRL, 2 rows"] and none == []
    assert own["errors"]["gradient_error"] < 0.05 and own["errors"]["loss_error"] < 0.05
    assert set(own["phases_s"]) == {"score", "loss and gradient", "update"}
    assert 0 < sum(own["phases_s"].values()) < 1.1 * own["wall_s"] and own["cpu_s"] > 0
    assert 1 << 20 < own["peak_bytes"] < 1 << 30 and own["rounds"] == 1
    assert peer["status"] == "left out: no --trl-python" and "median_s" not in peer


def test_a_wrong_gradient_ends_the_bench() -> None:
    answer = (
        "import json, sys\nprint(json.dumps({'ready': True}), flush=True)\nfor line in sys.stdin:\n"
        "    print(json.dumps({'loss_error': 0.0, 'gradient_error': 0.2}), flush=True)"
    )
    contestant = Contestant([sys.executable, "-c", answer], {}, [], False)
    variants, zeros = [Variant("ours", "own", contestant.arm)], dict.fromkeys(TOLERANCE, torch.zeros(1))
    with pytest.raises(WrongResult, match="gradient_error"):
        check(Work(variants, lambda: zeros, TOLERANCE), variants, {"ours": {}})
    contestant.close()


@pytest.mark.slow
def test_engines_and_two_processes_take_the_same_step() -> None:
    for found in list(cases("cpu", "tiny", Given()))[1:]:
        rows, judged = measure("bench.bench_step", found, SETTINGS)
        assert [row["variant"] for row in rows] == ["torch", "deepspeed, ZeRO 1"]
        assert all(row["errors"]["gradient_error"] < 0.05 and "median_s" in row for row in rows)
        assert judged[0].value == pytest.approx(rows[1]["over_own"])


def test_figures_are_over_the_fastest_and_the_leanest() -> None:
    names = [OWN, *PEERS]
    rows = {
        name: {"variant": name, "median_s": seconds, "peak_bytes": peak}
        for name, seconds, peak in zip(names, (6.0, 10.0, 12.0), (3, 6, 4), strict=True)
    }
    measured = Measured(rows, {name: [row["median_s"]] for name, row in rows.items()})
    found = {figure.line: (figure.value, figure.limit) for figure in figures(measured)}
    assert found == {
        "time over TRL, 4 rows": (0.6, TIME),
        "peak memory over TRL, 4 rows": (0.5, MEMORY),
        "peak memory over the leanest, TRL, 8 rows, checkpointing": (0.75, MEMORY),
    }
    assert [figure.value for figure in figures(Measured({}, {}))] == [None, None, None]
    assert engine_figures(Measured({}, {}))[0].record()["limit"] == ENGINE
    assert against_trl(64, PEERS)["TRL, 8 rows, checkpointing"]["gradient_checkpointing"]


def test_the_phases_of_a_large_shape_run_on_any_device() -> None:
    (found,) = gpu_cases("tiny", device="cpu")
    rows, _ = measure("bench.bench_step", found, Settings(rounds=1, memory=False))
    assert [row["variant"] for row in rows] == [WHOLE, TRAINING]
    assert set(rows[0]["phases_s"]) == {"score", "loss and gradient", "update"}
    assert all(row["errors"] == {"not_finite": 0.0} and row["median_s"] > 0 for row in rows)


def test_a_gpu_is_judged_by_its_share_of_the_peak() -> None:
    full = list(cases("cuda"))
    assert [case.shape["L"] for case in full] == [28, 6] and all(case.shape["T"] == sum(PACK) == 8192 for case in full)
    pack = Pack((8,), 3)
    flops = 2 * SMOLLM2.layer_weights * 8 + 2 * 576 * 49152 * 5 + 4 * 30 * 9 * 64 * 32
    assert pack.forward_flops(SMOLLM2) == flops and pack.training_flops(SMOLLM2) == 3 * flops
    seconds = full[0].flops * 0.75 / 989e12 / 0.5
    (figure,) = full[0].figures(Measured({TRAINING: {"median_s": seconds}}, {}))
    assert figure.limit == MFU and figure.at_least and figure.value == pytest.approx(0.5)


def test_the_command_lists_what_a_gpu_must_reach(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.bench_step", "--list", "cuda"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "Qwen2.5-1.5B, a pack of 8,192 tokens" in shown and "MFU of training" in shown


def test_saving_is_measured_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = measure_saving(100_000, 1)
    assert found["state_gb"] == pytest.approx(1.2e-3, rel=0.01)
    for row in found["rows"].values():
        assert 0 < row["blocked_s"] <= row["whole_s"] and row["steps_slower"] > 0
    assert json.loads(json.dumps(found)) and not list(tmp_path.iterdir())
