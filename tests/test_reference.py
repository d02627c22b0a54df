"""What KL is measured against: a copy that may idle, or earlier adapters on the policy's own weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from r1fast.adapters import adapter_parameters, other_adapters
from r1fast.config import Config, LossConfig, OptimizerConfig
from r1fast.distributed import Ranks
from r1fast.lora import add_adapters
from r1fast.lora_config import LoraConfig
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.reference import AdapterReference, CopiedReference, make_reference
from r1fast.rollout.strict import strict_logprobs
from r1fast.trainer import Trainer, score
from tests.test_zero_trainer import train
from tests.tiny_model import random_sequences, tiny_policy

BATCHES = pack(random_sequences(6, seed=9), micro_batch_tokens=100)


def scores(policy: Policy) -> Tensor:
    return torch.cat(score(policy, BATCHES, temperature=0.8))


@pytest.mark.parametrize("idles", [False, True])
def test_a_copy(idles: bool) -> None:
    policy = tiny_policy()
    reference = CopiedReference(policy.copy(), idles=idles)
    start = scores(policy)
    train(Trainer(policy, OptimizerConfig()), range(2), Ranks())
    assert torch.equal(torch.cat(reference.score(BATCHES, temperature=0.8)), start) and reference.version == 0
    reference.refresh(policy)
    assert torch.equal(torch.cat(reference.score(BATCHES, temperature=0.8)), scores(policy)) and reference.version == 2
    other = CopiedReference(tiny_policy(seed=3), idles=idles)
    other.load_state_dict(reference.state_dict())
    assert torch.equal(torch.cat(other.score(BATCHES, temperature=0.8)), scores(policy)) and other.version == 2


@pytest.mark.parametrize("strict", [False, True])
def test_adapters_off_and_as_they_were(strict: bool) -> None:
    pytest.importorskip("peft")
    logprobs = strict_logprobs if strict else None
    policy, base = tiny_policy(), tiny_policy()
    add_adapters(policy, LoraConfig(rank=4), "key")
    reference = AdapterReference(policy)
    trainer = Trainer(policy, OptimizerConfig())

    def found() -> Tensor:
        return torch.cat(reference.score(BATCHES, temperature=0.8, logprobs=logprobs))

    def expected(of: Policy) -> Tensor:
        return torch.cat(score(of, BATCHES, temperature=0.8, logprobs=logprobs)).detach()

    train(trainer, range(2), Ranks())
    adapters = adapter_parameters(policy.module)
    places = {name: parameter.data_ptr() for name, parameter in adapters.items()}
    assert torch.equal(found(), expected(base)) and not torch.equal(found(), expected(policy))
    reference.refresh(policy)
    refreshed = expected(policy)
    train(trainer, range(2, 4), Ranks())
    assert torch.equal(found(), refreshed) and not torch.equal(found(), expected(policy))
    assert reference.version == 2 and policy.version == 4
    masters = [master.clone() for master in trainer.state_dict()["masters"]]
    with other_adapters(policy.module, reference.adapters):  # a thread that saves now sees the trainer's own
        assert all(map(torch.equal, masters, trainer.state_dict()["masters"]))
    assert places == {name: parameter.data_ptr() for name, parameter in adapters.items()}
    assert all(parameter.requires_grad for parameter in adapters.values())
    restored = AdapterReference(policy)
    restored.load_state_dict(reference.state_dict())
    assert torch.equal(torch.cat(restored.score(BATCHES, temperature=0.8, logprobs=logprobs)), refreshed)
    assert restored.version == 2
    own = sum(parameter.numel() for parameter in adapters.values())
    assert sum(x.numel() for x in reference.adapters.values()) == own  # that, and no weights, is its memory


def test_which_one_a_stage_has() -> None:
    pytest.importorskip("peft")
    policy = tiny_policy()
    assert make_reference(policy, Config(loss=LossConfig(kl="none")), tiny_policy) is None
    assert isinstance(make_reference(policy, Config(), tiny_policy), CopiedReference)
    add_adapters(policy, LoraConfig(rank=2), "key")
    assert isinstance(make_reference(policy, Config(lora=LoraConfig(rank=2)), tiny_policy), AdapterReference)
