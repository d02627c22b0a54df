"""Other optimizers and adapters under DeepSpeed's ZeRO: the updates of one process without it, and its states."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from r1fast.config import OptimizerConfig
from r1fast.distributed import Ranks
from r1fast.distributed_config import DistributedConfig
from r1fast.lora import add_adapters
from r1fast.lora_config import LoraConfig
from r1fast.optimizer_config import OptimizerName
from r1fast.policy import Policy
from r1fast.trainer import Trainer
from r1fast.zero_trainer import ZeroTrainer
from tests.test_optimizers import in_a_process, needs_op
from tests.test_zero_trainer import assert_same, flat, train
from tests.tiny_model import tiny_policy

pytest.importorskip("deepspeed")
HALF, STEPS = 2, 4


def options(name: OptimizerName = "adamw") -> OptimizerConfig:
    return OptimizerConfig(name=name, max_grad_norm=0.5, weight_decay=0.1)


def zero(policy: Policy, stage: int, name: OptimizerName = "adamw") -> ZeroTrainer:
    return ZeroTrainer(policy, options(name), DistributedConfig(engine="deepspeed", zero_stage=stage))


def _cpu_adam(directory: Path) -> None:
    torch.set_num_threads(1)
    expected = tiny_policy()
    alone = train(Trainer(expected, options()), range(STEPS), Ranks()), flat(expected)
    for stage in (2, 3):
        policy = tiny_policy()
        trainer = zero(policy, stage, "deepspeed_cpu")
        metrics = train(trainer, range(HALF), Ranks())
        state = trainer.state_dict()
        torch.save(state, directory / "state.pt")
        metrics += train(trainer, range(HALF, STEPS), Ranks())
        assert_same(metrics, flat(policy), alone)
        state = torch.load(directory / "state.pt", weights_only=True)
        for name in ("deepspeed_cpu", "adamw"):  # with it, or with torch's
            policy = tiny_policy(seed=1)
            second = zero(policy, stage, name)
            second.load_state_dict(state)
            assert_same(train(second, range(HALF, STEPS), Ranks()), flat(policy), alone)
        policy = tiny_policy(seed=2)  # without DeepSpeed
        plain = Trainer(policy, options())
        plain.load_state_dict(state)
        assert_same(train(plain, range(HALF, STEPS), Ranks()), flat(policy), alone)


@needs_op
@pytest.mark.slow
def test_deepspeeds_cpu_adam_under_zero(tmp_path: Path) -> None:
    in_a_process(_cpu_adam, tmp_path)


def _adapters(directory: Path) -> None:
    torch.set_num_threads(1)

    def adapted() -> Policy:
        policy = tiny_policy()
        add_adapters(policy, LoraConfig(rank=4), "key")
        return policy

    expected, policy = adapted(), adapted()
    plain, trainer = Trainer(expected, options()), zero(policy, 2)
    assert plain.names == trainer.names
    alone = train(plain, range(STEPS), Ranks()), flat(expected)
    metrics = train(trainer, range(HALF), Ranks())
    torch.save(trainer.state_dict(), directory / "state.pt")
    metrics += train(trainer, range(HALF, STEPS), Ranks())
    assert_same(metrics, flat(policy), alone)
    other = adapted()
    plain = Trainer(other, options())
    plain.load_state_dict(torch.load(directory / "state.pt", weights_only=True))
    assert_same(train(plain, range(HALF, STEPS), Ranks()), flat(other), alone)


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("peft") or not shutil.which("g++"), reason="needs peft, and DeepSpeed a compiler"
)
def test_adapters_under_zero(tmp_path: Path) -> None:
    in_a_process(_adapters, tmp_path)
