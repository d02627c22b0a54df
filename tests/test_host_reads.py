"""A decode step needs nothing of the host, whatever the model and the sampling; what would is found by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from r1fast.ops.decode_plan import DecodePlan
from r1fast.policy import Policy
from r1fast.records import Prompt
from r1fast.rollout.batch import DecodeBatch
from r1fast.rollout.engine import RolloutEngine
from r1fast.rollout.guess_step import GuessRows
from r1fast.rollout.host_reads import HostRead, NoHostReads
from r1fast.sampling import Sampling
from tests.test_rollout_models import FAMILIES, _policy
from tests.tiny_model import NUM_VOCAB, tiny_policy

READERS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "to", "cuda", "tensor")
PROMPTS = [Prompt(id=f"p{n}", text="", token_ids=tuple(range(5 + n, 12 + 2 * n))) for n in range(6)]
SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cuts": {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "banned": {"bad_token_ids": (7, 9, 11), "min_tokens": 4},
}


class NoReaders(TorchFunctionMode):
    """Python's ways to a tensor's numbers, which on a CPU pass PyTorch's dispatcher by. Casts are none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = getattr(func, "__name__", ""), kwargs or {}
        is_cast = name == "to" and all(isinstance(x, (torch.Tensor, torch.dtype)) for x in (*args, *options.values()))
        assert is_cast or name not in READERS or options.get("device") == torch.device("cpu"), name
        return func(*args, **options)


def _watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every step of every batch runs where reading is refused; how many rows each had."""
    rows, real = [], DecodeBatch._step

    def step(self: DecodeBatch, num_rows: int) -> None:
        with NoReaders(), NoHostReads():
            real(self, num_rows)
        rows.append(num_rows)

    monkeypatch.setattr(DecodeBatch, "_step", step)
    monkeypatch.setattr(DecodePlan, "check", lambda plan: None)  # of a CPU alone
    return rows


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_needs_nothing_of_the_host(monkeypatch: pytest.MonkeyPatch, family: str, name: str) -> None:
    policy = _policy(FAMILIES[family])
    sampling = Sampling(**({"temperature": 1.0, "max_tokens": 9, "stage": "x", "visit": 0} | SAMPLINGS[name]))
    expected = RolloutEngine(policy, rows=16, seed=0).generate(PROMPTS, 4, sampling)
    rows = _watch(monkeypatch)
    found = RolloutEngine(policy, rows=16, seed=0).generate(PROMPTS, 4, sampling)
    assert len(rows) >= 8 and set(rows) == {16}
    assert [r.token_ids.tolist() for r in found] == [r.token_ids.tolist() for r in expected]
    assert all(torch.equal(one.logp, other.logp) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_step_with_guesses_needs_nothing_either(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    policy = _policy(FAMILIES["llama"])
    changes = {"temperature": 0.0, "max_tokens": 60, "stage": "x", "visit": 0}
    sampling = Sampling(**(SAMPLINGS[name] | changes))
    expected = RolloutEngine(policy, rows=16, seed=0).generate(PROMPTS, 2, sampling)
    rows, real = _watch(monkeypatch), DecodeBatch._guess_step

    def step(self: DecodeBatch, guessing: GuessRows) -> None:
        with NoReaders(), NoHostReads():
            real(self, guessing)
        rows.append(-1)

    monkeypatch.setattr(DecodeBatch, "_guess_step", step)
    found = RolloutEngine(policy, rows=16, seed=0, draft_tokens=3).generate(PROMPTS, 2, sampling)
    assert rows.count(-1) >= 8
    assert [r.token_ids.tolist() for r in found] == [r.token_ids.tolist() for r in expected]


def test_bf16_weights_need_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _watch(monkeypatch)
    sampling = Sampling(temperature=1.0, max_tokens=9, stage="x", visit=0)
    assert RolloutEngine(tiny_policy(dtype=torch.bfloat16), rows=16, seed=0).generate(PROMPTS, 4, sampling)
    assert rows


def test_a_model_that_asks_the_host_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    policy: Policy = tiny_policy(rope_parameters=scaling)  # it looks at the longest position in every forward
    sampling = Sampling(temperature=1.0, max_tokens=9, stage="x", visit=0)
    engine, real = RolloutEngine(policy, rows=16, seed=0), DecodeBatch._step
    assert engine.generate(PROMPTS, 2, sampling)

    def step(self: DecodeBatch, num_rows: int) -> None:
        with NoHostReads():
            real(self, num_rows)

    monkeypatch.setattr(DecodeBatch, "_step", step)
    with pytest.raises(HostRead, match=r"aten\S+ gives the host a number"):
        engine.generate(PROMPTS, 2, sampling)


NUMBERS = torch.arange(6.0)
READS: dict[str, tuple[Callable[[], object], str]] = {
    "item": (lambda: NUMBERS[2].item(), "aten._local_scalar_dense.default gives"),
    "truth": (lambda: bool(NUMBERS[2] > 1), "aten.(_local_scalar_dense|is_nonzero).default gives"),
    "equal": (lambda: torch.equal(NUMBERS, NUMBERS + 1), "aten.equal.default gives"),
    "mask": (lambda: NUMBERS[NUMBERS > 2], "aten.*default gives|aten.index.Tensor gives"),
    "nonzero": (lambda: NUMBERS.nonzero(), "aten.nonzero.default gives"),
    "list": (lambda: torch.tensor([1.0, 2.0]), "torch.tensor makes"),
    "device": (lambda: NUMBERS.to("meta"), "aten._to_copy.default copies between cpu and meta"),
    "copy": (lambda: torch.empty(6, device="meta").copy_(NUMBERS), "aten.copy_.default copies between"),
}


@pytest.mark.parametrize("name", READS)
def test_reads_are_found_by_name(name: str) -> None:
    read, message = READS[name]
    read()
    with NoHostReads(), pytest.raises(HostRead, match=message):
        read()


@pytest.mark.parametrize("read", [NUMBERS.tolist, NUMBERS.numpy, NUMBERS.cpu, lambda: int(NUMBERS[0])])
def test_the_watch_sees_what_the_dispatcher_does_not(read: Callable[[], object]) -> None:
    with NoReaders(), pytest.raises(AssertionError):
        read()


def test_work_on_the_device_is_no_read() -> None:
    with NoReaders(), NoHostReads():
        total = (NUMBERS.to(torch.bfloat16) @ torch.ones(6, NUM_VOCAB, dtype=torch.bfloat16)).cumsum(0)
        total[:3].copy_(torch.where(total[:3] > 4, total[:3], -1))
    assert total.shape == (NUM_VOCAB,)
