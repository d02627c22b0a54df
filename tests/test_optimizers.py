"""Every optimizer by name against torch's: the same update, states that go on bitwise, forms that are refused."""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from r1fast import optimizers
from r1fast.apex import apex_state
from r1fast.config import ConfigError, OptimizerConfig
from r1fast.distributed import Ranks
from r1fast.optimizer_config import OptimizerName
from r1fast.optimizers import adamw_groups, load_saved_form, make_optimizer, saved_form
from r1fast.trainer import Trainer
from tests.test_zero_trainer import OPTIMIZER, flat, train
from tests.tiny_model import tiny_policy

SHAPES = [(300, 256), (64,), (128, 96), (7, 5)]
STEPS = 5
LR = 1e-3
needs_op = pytest.mark.skipif(
    not importlib.util.find_spec("deepspeed") or not shutil.which("g++"), reason="needs deepspeed and g++"
)
needs_8bit = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
needs_apex = pytest.mark.skipif(apex_state() != "whole", reason="needs NVIDIA's apex")


def config(name: OptimizerName) -> OptimizerConfig:
    return OptimizerConfig(name=name, weight_decay=0.1)


def parameters(device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in SHAPES]


def updates(optimizer: torch.optim.Optimizer, own: list[Tensor], steps: range) -> None:
    """As `Trainer._update`: rate and decay are set before every step."""
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in own:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = LR, 0.1 if group["params"][0].dim() >= 2 else 0.0
        optimizer.step()


def distance(name: OptimizerName, device: str) -> float:
    """Of five updates from torch's, over what five updates move: the largest of a tensor's relative L2 errors."""
    plain, own = parameters(device), parameters(device)
    start = [parameter.detach().clone() for parameter in own]
    updates(make_optimizer(adamw_groups(plain), config("adamw")), plain, range(STEPS))
    updates(make_optimizer(adamw_groups(own), config(name)), own, range(STEPS))
    return max(
        float((a - b).detach().norm() / (a - c).detach().norm()) for a, b, c in zip(plain, own, start, strict=True)
    )


def goes_on_bitwise(name: OptimizerName, device: str, path: Path) -> None:
    """Five updates at once, and two, a file, three: the same bits."""
    whole, first = parameters(device), parameters(device)
    updates(make_optimizer(adamw_groups(whole), config(name)), whole, range(STEPS))
    optimizer = make_optimizer(adamw_groups(first), config(name))
    updates(optimizer, first, range(2))
    torch.save(saved_form(optimizer, config(name), 2), path)
    then = [parameter.detach().clone().requires_grad_() for parameter in first]
    optimizer = make_optimizer(adamw_groups(then), config(name))
    load_saved_form(optimizer, config(name), torch.load(path, weights_only=True), 2)
    updates(optimizer, then, range(2, STEPS))
    for one, other in zip(whole, then, strict=True):
        assert torch.equal(one, other)


def _cpu_adam(directory: Path) -> None:
    torch.set_num_threads(1)
    # float32 parameters that five updates move by 0.3%: rounding each update alone is 5e-5 of that, 4.3e-5 was measured
    assert distance("deepspeed_cpu", "cpu") < 1e-4
    goes_on_bitwise("deepspeed_cpu", "cpu", directory / "state.pt")
    # a state of torch's goes on with it, and the other way round
    expected = tiny_policy()
    metrics = train(Trainer(expected, OPTIMIZER), range(4), Ranks())
    for names in (("adamw", "deepspeed_cpu"), ("deepspeed_cpu", "adamw")):
        policies = [tiny_policy(), tiny_policy(seed=1)]
        first, second = (
            Trainer(policy, OptimizerConfig(name=name, max_grad_norm=0.5, weight_decay=0.1))  # type: ignore[arg-type]
            for policy, name in zip(policies, names, strict=True)
        )
        train(first, range(2), Ranks())
        second.load_state_dict(first.state_dict())
        found = train(second, range(2, 4), Ranks())
        assert float((flat(policies[1]) - flat(expected)).norm() / flat(expected).norm()) < 1e-6
        assert found[-1] == pytest.approx(metrics[-1], rel=1e-5, abs=1e-5)


@needs_op
@pytest.mark.slow
def test_deepspeeds_cpu_adam(tmp_path: Path) -> None:
    """In a process of its own: DeepSpeed stays in one. The first start on a machine compiles the op."""
    in_a_process(_cpu_adam, tmp_path)


def in_a_process(main: Any, directory: Path) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=main, args=(directory,))
    worker.start()
    worker.join(timeout=600)
    assert worker.exitcode == 0


@needs_8bit
def test_8bit_moments(tmp_path: Path) -> None:
    assert 1e-5 < distance("adamw_8bit", "cpu") < 0.03  # Dettmers et al.: a step's error is that of 8-bit moments
    goes_on_bitwise("adamw_8bit", "cpu", tmp_path / "state.pt")
    policy = tiny_policy()
    trainer = Trainer(policy, OptimizerConfig(name="adamw_8bit"))
    train(trainer, range(2), Ranks())
    state = trainer.state_dict()
    other = Trainer(tiny_policy(seed=1), OptimizerConfig(name="adamw_8bit"))
    torch.save(state, tmp_path / "trainer.pt")
    other.load_state_dict(torch.load(tmp_path / "trainer.pt", weights_only=True))
    other.release()  # its state goes to the host and back, shared tables included
    assert train(other, range(2, 4), Ranks()) == train(trainer, range(2, 4), Ranks())
    assert torch.equal(flat(other.policy), flat(policy))
    before = flat(policy)
    plain = Trainer(tiny_policy(seed=2), OptimizerConfig())
    with pytest.raises(ValueError, match=r"has 8-bit moments \(optimizer.name = 'adamw_8bit'\) .*go on with"):
        plain.load_state_dict(state)
    with pytest.raises(ValueError, match=r"has float32 moments .* 'adamw_8bit' keeps 8-bit ones: go on with 'adamw'"):
        trainer.load_state_dict(plain.state_dict())
    assert torch.equal(flat(policy), before)  # refused before anything changed


@needs_8bit
def test_8bit_moments_take_a_quarter() -> None:
    own = [torch.randn(512, 512, requires_grad=True)]
    optimizer = make_optimizer(adamw_groups(own), config("adamw_8bit"))
    updates_of = optimizers.state_tensors
    own[0].grad = torch.randn(512, 512)
    optimizer.step()
    num_bytes = sum(tensor.nbytes for tensor in updates_of(optimizer))
    assert num_bytes < 0.26 * 8 * own[0].numel()


def test_what_is_saved_is_torchs_whichever_it_is() -> None:
    """The index order and groups of a state from a maker of ours: here torch's own, told to be another."""
    own = parameters("cpu")
    optimizer = make_optimizer(adamw_groups(own), config("adamw"))
    updates(optimizer, own, range(1))
    plain, other = optimizer.state_dict(), saved_form(optimizer, config("deepspeed_cpu"), 1)
    assert other["state"].keys() == plain["state"].keys()
    for index, found in other["state"].items():
        assert found.keys() == plain["state"][index].keys()
        assert all(torch.equal(found[key], plain["state"][index][key]) for key in found)
    for found, expected in zip(other["param_groups"], plain["param_groups"], strict=True):
        assert found.keys() == expected.keys() and found["params"] == expected["params"]


def test_a_library_that_fails_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the op did not build\nand much more") from OSError("no compiler")

    monkeypatch.setitem(optimizers.MAKERS, "apex", broken)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'apex' cannot be used here \(the op did not build; no compiler\)"):
        make_optimizer(adamw_groups(parameters("cpu")), config("apex"))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("apex", marks=needs_apex),
        pytest.param("deepspeed_fused", marks=needs_op),
        pytest.param("adamw_8bit", marks=needs_8bit),
    ],
)
def test_on_a_gpu(name: OptimizerName, tmp_path: Path) -> None:
    assert distance(name, "cuda") < (0.03 if name == "adamw_8bit" else 2e-6)
    goes_on_bitwise(name, "cuda", tmp_path / "state.pt")
