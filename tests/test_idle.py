"""Weights that are on the device only while they are used: the same scores, other places, refreshed while idle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from r1fast.idle import Idle
from r1fast.reward_model import RewardModel
from tests.tiny_model import tiny_policy
from tests.tiny_run import math_prompt

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_they_come_for_as_long_as_they_are_used(device: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8)).to(device).requires_grad_(False)
    x = torch.randn(5, 64, device=device)
    expected, first = module(x), module[0].weight
    idle = Idle(module, torch.device(device))
    assert module[0].weight is first and first.device.type == "cpu" and first.is_pinned() == (device == "cuda")
    assert idle.num_bytes == 4 * (64 * 32 + 32 + 32 * 8 + 8)
    host = first.data_ptr()
    for _ in range(2):
        with idle.awake():
            assert first.device.type == device and first.data_ptr() != host
            assert torch.equal(module(x), expected)
        assert first.data_ptr() == host
    first.zero_()  # refreshed while idle: no copy back is needed
    with idle.awake():
        assert not first.any()
    with pytest.raises(KeyError), idle.awake():
        raise KeyError
    assert first.data_ptr() == host


def test_trained_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Idle(torch.nn.Linear(2, 2), torch.device("cpu"))


@pytest.mark.parametrize("device", DEVICES)
def test_a_reward_model_idles(device: str, tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    policy.save(tmp_path / "policy")
    policy.module.to(device)  # type: ignore[arg-type]
    policy.device = torch.device(device)
    model = RewardModel.from_policy(policy, tmp_path / "policy")
    torch.nn.init.normal_(model.module.score.weight)
    prompts, responses = [math_prompt(f"q{n}") for n in range(5)], [f"w{n} w7" for n in range(5)]
    expected = model.score_responses(prompts, responses, rows=2)
    model.idle()
    weight = model.module.score.weight
    assert weight.device.type == "cpu" and not weight.requires_grad
    assert model.score_responses(prompts, responses, rows=2) == expected != [expected[0]] * 5
    assert weight.device.type == "cpu"


@pytest.mark.gpu
def test_the_gpu_has_its_memory_meanwhile() -> None:
    device = torch.device("cuda")
    module = torch.nn.Linear(8192, 4096, bias=False, device=device).requires_grad_(False)
    before = torch.cuda.memory_allocated()
    idle = Idle(module, device)
    assert before - torch.cuda.memory_allocated() >= 128 << 20
    with idle.awake():
        assert torch.cuda.memory_allocated() >= before
    assert before - torch.cuda.memory_allocated() >= 128 << 20
