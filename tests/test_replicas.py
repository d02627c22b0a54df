"""What ranks with whole weights exchange: buckets of gradients; an optimizer whose moments may be shared out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from r1fast import replicas
from r1fast.config import OptimizerConfig
from r1fast.distributed import Ranks
from r1fast.replicas import ReplicaOptimizer, _buckets, sum_gradients

CONFIG = OptimizerConfig(weight_decay=0.1)  # which is not for them
SHAPES = [(30, 20), (7,), (12, 9), (5, 5)]
LR = 1e-2


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def update(optimizer: Any, own: list[Tensor], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in own:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step(LR)


def make(own: list[Tensor], *, shared: bool) -> ReplicaOptimizer:
    return ReplicaOptimizer(own, CONFIG, Ranks(), shared=shared)


def test_buckets_are_filled_in_order_and_large_tensors_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "BUCKET_NUMBERS", 10)
    tensors = [torch.zeros(size) for size in (4, 6, 1, 25, 10, 3, 3)]
    assert [[len(tensor) for tensor in bucket] for bucket in _buckets(tensors)] == [[4, 6], [1], [25], [10], [3, 3]]
    assert not list(_buckets([]))


class TwoAlike(Ranks):
    """As if another rank had the same gradients."""

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        assert tensor.is_contiguous()
        return tensor.mul_(2)


def test_gradients_are_summed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "BUCKET_NUMBERS", 150)
    own = parameters()
    for number, parameter in enumerate(own[:-1]):
        parameter.grad = torch.full(parameter.shape, float(number))
    gradients = [parameter.grad for parameter in own[:-1]]
    sum_gradients(TwoAlike(world_size=2), own)
    for number, (parameter, gradient) in enumerate(zip(own, gradients, strict=False)):
        assert parameter.grad is gradient and bool((gradient == 2.0 * number).all())
    assert own[-1].grad is not None and not own[-1].grad.any()  # it had none


def test_it_is_adamw_without_decay() -> None:
    own, plain = parameters(), parameters()
    update(make(own, shared=False), own, range(3))
    expected = torch.optim.AdamW(plain, lr=LR, betas=(CONFIG.beta1, CONFIG.beta2), eps=CONFIG.eps, weight_decay=0.0)
    for step in range(3):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in plain:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        expected.step()
    assert all(torch.equal(a, b) for a, b in zip(own, plain, strict=True))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.usefixtures("group_of_one")
def test_states_go_on_bitwise_with_and_without_sharing(first: bool, second: bool) -> None:
    whole = parameters()
    update(make(whole, shared=False), whole, range(5))
    own = parameters()
    optimizer = make(own, shared=first)
    assert not optimizer.state_dict(0)["state"]
    update(optimizer, own, range(2))
    saved = copy.deepcopy(optimizer.state_dict(2))
    assert [moments["exp_avg"].shape for moments in saved["state"].values()] == [torch.Size(shape) for shape in SHAPES]
    other = [parameter.detach().clone().requires_grad_() for parameter in own]
    optimizer = make(other, shared=second)
    optimizer.load_state_dict(saved, 2)
    update(optimizer, other, range(2, 5))
    assert all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
