"""Activations that wait on the host: the same gradients, bit by bit, with and without checkpointing and adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from r1fast import activations
from r1fast.activations import offloaded_activations
from r1fast.adapters import adapter_parameters
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.lora import add_adapters
from r1fast.lora_config import LoraConfig
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.trainer import micro_batch_loss
from tests.tiny_model import NUM_VOCAB, random_sequences, tiny_policy

LOSS = PolicyLoss(kl="none")


def gradients(one: Policy) -> tuple[Tensor, dict[str, Tensor]]:
    (batch,) = pack(random_sequences(8, seed=3), micro_batch_tokens=1000, num_vocab=NUM_VOCAB)
    options: dict[str, Any] = {"options": LOSS, "denominator": 8.0, "temperature": 1.0}
    value, _ = micro_batch_loss(one, batch, None, None, **options)
    value.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in one.module.named_parameters() if p.grad is not None}
    return value.detach(), found


def make(checkpointing: bool, rank: int) -> Policy:
    pytest.importorskip("peft")
    one = tiny_policy(gradient_checkpointing=checkpointing)
    add_adapters(one, LoraConfig(rank=rank), "key")
    for name, parameter in adapter_parameters(one.module).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return one


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_bitwise_the_same(checkpointing: bool, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(make(checkpointing, rank))
    monkeypatch.setattr(activations, "LEAST_BYTES", 1)
    stores = []

    def spied(*arguments: Any) -> Any:
        stores.append(offloaded_activations(*arguments))
        return stores[-1]

    monkeypatch.setattr(activations, "offloaded_activations", spied)
    one = make(checkpointing, rank)
    one.offload_activations = True
    found = gradients(one)
    assert len(stores) == 1
    assert torch.equal(found[0], expected[0]) and found[1].keys() == expected[1].keys() != set()
    assert all(torch.equal(gradient, expected[1][name]) for name, gradient in found[1].items())
    with torch.no_grad():
        one.hidden(pack(random_sequences(2), micro_batch_tokens=1000)[0])
    assert len(stores) == 1  # nothing to keep


def test_checkpointed_gradients_are_those_without() -> None:
    """With our attention, whose context travels as a keyword, and with adapters, whose base is frozen."""
    for rank in (0, 4):
        plain, checkpointed = gradients(make(False, rank)), gradients(make(True, rank))
        assert torch.equal(plain[0], checkpointed[0])
        for name, gradient in plain[1].items():
            torch.testing.assert_close(checkpointed[1][name], gradient, rtol=1e-6, atol=1e-9)


def test_weights_stay_and_a_tensor_goes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "LEAST_BYTES", 1)
    layers = torch.nn.ModuleList(torch.nn.Linear(32, 16) for _ in range(3))
    x = torch.randn(20, 32, requires_grad=True)
    kept = x * 1.0
    with offloaded_activations(layers, torch.device("cpu")) as store:
        total = sum(layer(kept).sum() for layer in layers)
        assert store.num_bytes == kept.nbytes  # for all three, and no weight
        changed = (kept.detach() * 2.0).requires_grad_()
        square = (changed * changed).sum()
        assert store.num_bytes == 2 * kept.nbytes
    assert not store.seen
    assert isinstance(total, Tensor)
    (total + square).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and changed.grad is not None
    expected = sum(layer.weight.sum(0) for layer in layers).expand(20, 32)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(x.grad, expected)
    assert torch.equal(changed.grad, 2 * changed)


def test_a_number_given_again_is_another_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a freed tensor leaves to the next one must not be taken for it; nor what was changed in place."""
    monkeypatch.setattr(activations, "LEAST_BYTES", 1)
    x = torch.full((64,), 3.0, requires_grad=True)
    with offloaded_activations(torch.nn.Module(), torch.device("cpu")):
        total = torch.zeros(())
        for factor in range(1, 20):
            total = total + torch.exp(x * (factor / 100)).sum()  # exp saves its result, which is gone at once
    total.backward()  # type: ignore[no-untyped-call]
    expected = sum(f / 100 * torch.exp(torch.tensor(3.0 * f / 100)) for f in range(1, 20))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.as_tensor(expected).expand(64))


@pytest.mark.gpu
def test_a_gpu_has_the_memory_of_the_activations() -> None:
    peaks = []
    for offload in (False, True):
        one = tiny_policy(hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
        one.module.to("cuda")  # type: ignore[arg-type]
        one.device, one.offload_activations = torch.device("cuda"), offload
        batch = pack(random_sequences(200, seed=1), micro_batch_tokens=100_000)[0]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        hidden = one.hidden(batch)
        peaks.append(torch.cuda.memory_allocated() - before)
        hidden.square().sum().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in one.module.model.parameters())
    assert peaks[1] < peaks[0] / 4
