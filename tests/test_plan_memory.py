"""bench.plan_memory: what was measured is still what the plan predicts, and a case measured here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.plan_memory import CPU_RESULTS, MOST_OFF, cases, predicted
from r1fast.architectures import known_config
from r1fast.model_size import ModelSize

ROOT = Path(__file__).parent.parent
MEASURED = json.loads(CPU_RESULTS.read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def smollm2() -> ModelSize:
    return ModelSize.of(known_config("HuggingFaceTB/SmolLM2-135M-Instruct"))


def test_every_case_of_a_cpu_was_measured() -> None:
    assert MEASURED.keys() == {case.name for case in cases("cpu")}
    kinds = {(row["kind"], row["dtype"], row["checkpointing"]) for row in MEASURED.values()}
    trained = {("train", dtype, saves) for dtype in ("float32", "bfloat16") for saves in (True, False)}
    assert trained < kinds and {("rollout", "bfloat16", False), ("rl", "float32", False)} < kinds


@pytest.mark.parametrize("name", list(MEASURED))
def test_the_prediction_of_today_is_within_a_tenth_of_what_was_measured(name: str, smollm2: ModelSize) -> None:
    row = MEASURED[name]
    case = next(case for case in cases("cpu") if case.name == name)
    assert {key: row[key] for key in ("kind", "dtype", "tokens", "length", "rows")} == {
        key: getattr(case, key) for key in ("kind", "dtype", "tokens", "length", "rows")
    }
    assert max(predicted(case, smollm2, "cpu").values()) == pytest.approx(row["measured"]["all"], rel=MOST_OFF)


def test_names_are_unique_and_a_gpu_has_cases() -> None:
    for device in ("cpu", "cuda"):
        names = [case.name for case in cases(device)]
        assert len(names) == len(set(names)) >= 6


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.plan_memory", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)


@pytest.mark.slow
def test_a_training_step_and_a_rollout_measured_here() -> None:
    result = run("--case", "train-float32-checkpointing-512", "--case", "rollout-bfloat16-32")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("predicted over it") == 2


@pytest.mark.gpu
def test_a_gpus_peak_is_predicted() -> None:
    assert torch.cuda.is_available()
    result = run("--device", "cuda")
    assert result.returncode == 0, result.stdout + result.stderr
