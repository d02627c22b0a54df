"""Optimizers and adapters that cannot be are refused when the options are read, with value, constraint and fix."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from r1fast import training_checks
from r1fast.checks import check_device
from r1fast.config import ConfigError
from r1fast.options import parse

DEEPSPEED = ("--distributed.engine", "deepspeed")
LORA = ("--lora.rank", "8")


@pytest.fixture(autouse=True)
def everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """But apex, whatever this machine has."""
    monkeypatch.setattr(training_checks, "find_spec", lambda name: name)
    monkeypatch.setattr("r1fast.checks.find_spec", lambda name: name)
    monkeypatch.setattr(training_checks.shutil, "which", lambda name: name)
    monkeypatch.setattr(training_checks, "apex_state", lambda: "absent")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer.name", "adam"], "must be one of adamw, deepspeed_fused, deepspeed_cpu, apex, adamw_8bit"),
        (["--optimizer.name", "apex"], "'apex': NVIDIA's is not installed; git clone https://github.com/NVIDIA/apex"),
        (["--stages.sft_1.optimizer.name", "apex"], "'apex': NVIDIA's is not installed"),
        (["--optimizer.name", "adamw_8bit", *DEEPSPEED], "'adamw_8bit' with distributed.engine = 'deepspeed': ZeRO"),
        (
            ["--optimizer.name", "deepspeed_fused", *DEEPSPEED, "--distributed.offload_optimizer", "cpu"],
            "'deepspeed_fused' runs on a GPU, and distributed.offload_optimizer = 'cpu' takes its masters away",
        ),
        (["--lora.alpha", "8"], "lora.alpha is set and lora.rank = 0 trains no adapters: give a rank"),
        ([*LORA, "--lora.dropout", "0.1"], "lora.dropout = 0.1 would train another policy than the one"),
        ([*LORA, "--lora.targets", "q_proj,lm_head"], "lora.targets names 'lm_head': the loss and the rollout read"),
        ([*LORA, "--lora.targets", "q_proj,all-linear"], "name layers, or all-linear alone"),
        ([*LORA, "--lora.targets", "[]"], "name layers, or all-linear alone"),
        ([*LORA, "--rollout.backend", "vllm"], "lora.rank = 8 with rollout.backend = 'vllm', whose weights"),
        ([*LORA, *DEEPSPEED, "--distributed.zero_stage", "3"], "lora.rank = 8 with distributed.zero_stage = 3, which"),
        (["--stages.reward_models.lora.rank", "8"], "stages.reward_models.lora: this stage trains no adapters, r1_ze"),
        (
            ["--stages.reward_models.optimizer.weight_decay", "0.1"],
            "stages.reward_models.optimizer.weight_decay = 0.1: reward models are trained without it; leave it out",
        ),
        (
            ["--stages.reward_models.distributed.sequence_parallel", "2"],
            "leave it out, or give it for policies, as distributed.sequence_parallel",
        ),
        (["--lora.rank", "-1"], "lora.rank = -1 must be >= 0"),
    ],
)
def test_what_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--optimizer.name", "adamw_8bit", *LORA],
        ["--optimizer.name", "deepspeed_cpu", *DEEPSPEED, "--distributed.offload_optimizer", "cpu"],
        ["--stages.r1_zero.lora.rank", "8", "--stages.sft_1.lora.targets", "q_proj", "--stages.sft_1.lora.rank", "4"],
        [*LORA, *DEEPSPEED],
        [*LORA, "--rl.strict", "true"],
        ["--optimizer.weight_decay", "0.1", "--stages.reward_models.optimizer.gradient_checkpointing", "true"],
    ],
)
def test_what_can(words: list[str]) -> None:
    parse(words)


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_checks, "find_spec", lambda name: None)
    for words, message in (
        (["--optimizer.name", "adamw_8bit"], r"needs bitsandbytes: pip install 'r1fast\[adam8bit\]'"),
        (["--optimizer.name", "deepspeed_cpu"], "needs deepspeed: pip install deepspeed, or use 'adamw'"),
        ([*LORA], r"lora.rank = 8 needs peft: pip install 'r1fast\[lora\]'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(words)
    monkeypatch.setattr(training_checks, "find_spec", importlib.util.find_spec)
    monkeypatch.setattr(training_checks.shutil, "which", lambda name: None)
    if importlib.util.find_spec("deepspeed"):
        with pytest.raises(ConfigError, match=r"compiles an op with g\+\+, which is missing"):
            parse(["--optimizer.name", "deepspeed_cpu"])


def test_apex_that_is_another_or_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for state, message in (("other", "PyPI's Pyramid toolkit"), ("unbuilt", "no amp_C")):
        monkeypatch.setattr(training_checks, "apex_state", lambda state=state: state)
        with pytest.raises(ConfigError, match=f"{message}.*pip uninstall apex; git clone"):
            parse(["--optimizer.name", "apex"])
    monkeypatch.setattr(training_checks, "apex_state", lambda: "whole")
    check_device(parse(["--optimizer.name", "apex"]).config, "cuda")


@pytest.mark.parametrize(
    ("words", "device", "message"),
    [
        (["--optimizer.name", "deepspeed_fused"], "cpu", "runs on a GPU only, and this run is on cpu"),
        (["--optimizer.name", "deepspeed_cpu"], "cuda", "masters in the host's memory, and this run has them on cuda"),
        (["--optimizer.name", "deepspeed_cpu", *DEEPSPEED], "cuda", "distributed.offload_optimizer = 'cpu', or use"),
    ],
)
def test_devices(words: list[str], device: str, message: str) -> None:
    config: Any = parse(words).config
    with pytest.raises(ConfigError, match=message):
        check_device(config, device)
    check_device(config, "cuda" if device == "cpu" else "cpu")


def test_cpu_adam_on_a_gpu_is_for_policies() -> None:
    words = ["--optimizer.name", "deepspeed_cpu", *DEEPSPEED, "--distributed.offload_optimizer", "cpu"]
    with pytest.raises(ConfigError, match=r'cuda.*: set stages\.reward_models\.optimizer\.name = "adamw"'):
        check_device(parse(words).config, "cuda")
    check_device(parse([*words, "--stages.reward_models.optimizer.name", "adamw"]).config, "cuda")
