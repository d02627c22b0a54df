"""The step: gradients independent of micro-batches, packing and ranks; fp32 masters; bitwise continuation."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_two
from tiny_model import random_sequences, tiny_policy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from r1fast.config import OptimizerConfig
from r1fast.distributed import Ranks, start
from r1fast.kernels import linear_grpo, linear_logprob
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.records import Batch, Sequence
from r1fast.trainer import Trainer, global_denominator, score

AGGREGATES = ["sequence_mean", "token_mean"]
NLL = PolicyLoss(objective="nll", kl="none", kl_coef=0.0, aggregate="token_mean")


def _grpo(aggregate: str) -> PolicyLoss:
    return PolicyLoss(objective="clip", kl="k3", kl_coef=0.05, clip_low=0.2, clip_high=0.3, aggregate=aggregate)


def _optimizer(**changes: Any) -> OptimizerConfig:
    return OptimizerConfig(**({"max_grad_norm": 0.0, "weight_decay": 0.0} | changes))


def _capture(trainer: Trainer) -> list[Tensor]:
    """The flat gradients that the trainer updates with, as they come."""
    captured: list[Tensor] = []
    update = trainer._update

    def record(gradient: Tensor, grad_norm: float, lr: float) -> None:
        captured.append(gradient.clone())
        update(gradient, grad_norm, lr)

    trainer._update = record  # type: ignore[method-assign]
    return captured


def _gradient(
    sequences: list[Sequence], aggregate: str, micro_batch_tokens: int, ranks: Ranks | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Gradient and metrics of one off-policy step with a reference; old and reference models are other random ones."""
    ranks = ranks or Ranks()
    policy = tiny_policy()
    batches = pack(sequences, micro_batch_tokens=micro_batch_tokens)
    old = _perturbed(policy, 1)
    trainer = Trainer(policy, _optimizer(), ranks=ranks)
    gradients = _capture(trainer)
    metrics = trainer.step(
        batches,
        loss=_grpo(aggregate),
        denominator=global_denominator(aggregate, batches, ranks),
        lr=1e-3,
        temperature=0.8,
        old_logp=score(old, batches, temperature=0.8),
        ref_logp=score(_perturbed(policy, 2), batches, temperature=0.8),
    )
    return gradients[0], metrics


def _perturbed(policy: Policy, seed: int) -> Policy:
    other = policy.copy()
    generator = torch.Generator().manual_seed(seed)
    for parameter in other.module.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return other


def _reference_gradient(sequences: list[Sequence], aggregate: str) -> tuple[float, Tensor]:
    """GRPO as published, one sequence at a time in fp64, on logits that exist."""
    policy = tiny_policy()
    models = [policy, _perturbed(policy, 1), _perturbed(policy, 2)]
    for model in models:
        model.module.double()
    total: Tensor | float = 0.0
    num_tokens = 0
    for sequence in sequences:
        (batch,) = pack([sequence], micro_batch_tokens=1)
        logp, old, ref = (_logp(model, batch) for model in models)
        ratio = (logp - old.detach()).exp()
        surrogate = torch.minimum(ratio * sequence.advantage, ratio.clamp(0.8, 1.3) * sequence.advantage)
        gap = ref.detach() - logp
        terms = -surrogate + 0.05 * (gap.exp() - gap - 1)
        total = total + (terms.mean() if aggregate == "sequence_mean" else terms.sum())
        num_tokens += len(terms)
    assert isinstance(total, Tensor)
    total = total / (len(sequences) if aggregate == "sequence_mean" else num_tokens)
    total.backward()
    return float(total.detach()), torch.cat(
        [p.grad.flatten() for p in policy.module.parameters() if p.grad is not None]
    )


def _logp(policy: Policy, batch: Batch) -> Tensor:
    logits = policy.hidden(batch)[batch.predictor_index] @ policy.head_weight.T / 0.8
    return logits.log_softmax(-1).gather(1, batch.targets[:, None]).squeeze(1)


def _assert_same(gradient: Tensor, expected: Tensor) -> None:
    error = (gradient.double() - expected.double()).norm() / expected.double().norm()
    assert error < 2e-5, f"relative error {error}"


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_gradient_is_that_of_the_formula_whatever_the_packing(aggregate: str) -> None:
    sequences = random_sequences(17)
    loss, expected = _reference_gradient(sequences, aggregate)
    baseline: dict[str, float] = {}
    for budget in (10_000, 150, 60, 1):
        shuffled = random.Random(budget).sample(sequences, len(sequences))
        gradient, metrics = _gradient(shuffled, aggregate, budget)
        _assert_same(gradient, expected)
        baseline = baseline or metrics
        assert metrics == pytest.approx(baseline, rel=1e-4, abs=1e-5)
    assert baseline["loss_sum"] == pytest.approx(loss, rel=1e-4) and baseline["loss_count"] == 1
    assert baseline["packed_tokens_count"] == sum(len(s.token_ids) for s in sequences)
    assert baseline["grad_norm_sum"] == pytest.approx(float(expected.norm()), rel=1e-4)


def _rank_main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    sequences = random_sequences(17)
    results: dict[str, Any] = {}
    for aggregate in AGGREGATES:
        results[aggregate] = _gradient(ranks.shard(sequences), aggregate, 100, ranks)
    results["idle"] = _gradient(sequences if rank == 0 else [], "sequence_mean", 100, ranks)
    policy = tiny_policy(seed=rank)  # unequal on purpose: ranks start from rank 0's
    trainer = Trainer(policy, _optimizer(weight_decay=0.1), ranks=ranks)
    for step in range(3):
        batches = pack(ranks.shard(random_sequences(5, seed=step)), micro_batch_tokens=64)
        trainer.step(batches, loss=NLL, denominator=global_denominator("token_mean", batches, ranks), lr=1e-3)
    results["weights"] = [p.detach() for p in policy.module.parameters()]
    torch.save(results, directory / f"rank{rank}.pt")
    ranks.shutdown()


def test_gradient_and_metrics_do_not_depend_on_the_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = random_sequences(17)
    alone = {aggregate: _gradient(sequences, aggregate, 100) for aggregate in AGGREGATES}
    run_two(_rank_main, tmp_path, monkeypatch)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for aggregate in AGGREGATES:
        gradient, metrics = first[aggregate]
        assert torch.equal(gradient, second[aggregate][0]) and metrics == second[aggregate][1]
        _assert_same(gradient, alone[aggregate][0])
        assert metrics == pytest.approx(alone[aggregate][1], rel=1e-4, abs=1e-5)
    # a rank without a batch still takes part
    _assert_same(first["idle"][0], alone["sequence_mean"][0])
    assert second["idle"][1] == pytest.approx(alone["sequence_mean"][1], rel=1e-4, abs=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))


def _train(policy: Policy, trainer: Trainer, steps: range, lr: float = 1e-3) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for step in steps:
        batches = pack(random_sequences(6, seed=step % 2), micro_batch_tokens=80)
        denominator = global_denominator("token_mean", batches, trainer.ranks)
        metrics = trainer.step(batches, loss=NLL, denominator=denominator, lr=lr)
    return metrics


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any op returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return result


@pytest.mark.parametrize("loss", [_grpo("token_mean"), replace(_grpo("sequence_mean"), level="sequence"), NLL])
def test_logits_are_never_built(loss: PolicyLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step of RL with its two passes of scoring, and in one of fine-tuning, which distillation is, too."""
    for module, name in ((linear_grpo, "loss_budget"), (linear_logprob, "score_budget")):
        monkeypatch.setattr(module, name, lambda device: 1 << 20)
    vocabulary = 3000
    policy = tiny_policy(vocab_size=vocabulary)

    def refuse(*_: Any) -> None:
        raise AssertionError("the head was called as a module: its output is logits")

    policy.module.get_output_embeddings().register_forward_pre_hook(refuse)
    trainer = Trainer(policy, _optimizer())
    (batch,) = pack(random_sequences(16), micro_batch_tokens=10_000)
    with Largest() as largest:
        scored = loss.objective != "nll"
        old, ref = (score(policy, [batch], temperature=0.8) if scored else None for _ in range(2))
        trainer.step([batch], loss=loss, denominator=1.0, lr=1e-3, old_logp=old, ref_logp=ref)
    weights = sum(p.numel() for p in policy.module.parameters())
    assert largest.numel <= weights + 1000 < len(batch.targets) * vocabulary


def test_training_lowers_the_loss_and_counts_versions() -> None:
    policy = tiny_policy()
    trainer = Trainer(policy, _optimizer())
    (batch,) = pack(random_sequences(6), micro_batch_tokens=1000)
    before = score(policy, [batch], temperature=1.0)[0].mean()
    _train(policy, trainer, range(40), lr=1e-2)
    assert score(policy, [batch], temperature=1.0)[0].mean() > before + 2.0
    assert policy.version == trainer.num_steps == 40
    assert all(p.grad is None for p in policy.module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_round_trip_continues_bitwise(dtype: torch.dtype, tmp_path: Path) -> None:
    options = _optimizer(weight_decay=0.1, max_grad_norm=((0, 1.0), (4, 0.5)))
    policy = tiny_policy(dtype=dtype)
    trainer = Trainer(policy, options)
    _train(policy, trainer, range(3))
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    expected = _train(policy, trainer, range(3, 6))

    other = tiny_policy(seed=9, dtype=dtype)
    continued = Trainer(other, options)
    continued.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.version == 3
    assert _train(other, continued, range(3, 6)) == expected
    for one, two in ((trainer.masters, continued.masters), (trainer.parameters, continued.parameters)):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert other.version == policy.version == 6


def test_state_of_another_model_is_refused() -> None:
    trainer = Trainer(tiny_policy(), _optimizer())
    with pytest.raises(ValueError, match="another model"):
        trainer.load_state_dict(Trainer(tiny_policy(num_hidden_layers=1), _optimizer()).state_dict())


def test_bfloat16_learns_at_a_rate_below_its_resolution() -> None:
    """lr 3e-6 on weights of 0.1: each step is far below half a bf16 unit, the masters must carry it."""
    policy = tiny_policy(dtype=torch.bfloat16)
    trainer = Trainer(policy, _optimizer())
    start_masters = [m.clone() for m in trainer.masters]
    start_weights = [p.detach().clone() for p in trainer.parameters]
    for _ in range(60):
        batches = pack(random_sequences(4), micro_batch_tokens=1000)
        trainer.step(batches, loss=NLL, denominator=100.0, lr=3e-6)
    moved = torch.cat([(m - s).abs().flatten() for m, s in zip(trainer.masters, start_masters, strict=True)])
    assert moved.mean() > 100e-6  # of the 180e-6 that Adam's unit steps allow
    changed = torch.cat([(p != s).flatten() for p, s in zip(trainer.parameters, start_weights, strict=True)])
    assert changed.float().mean() > 0.1
    for parameter, master in zip(trainer.parameters, trainer.masters, strict=True):
        assert parameter.dtype == torch.bfloat16 and master.dtype == torch.float32
        assert torch.equal(parameter, master.bfloat16())


def test_bfloat16_accumulates_micro_batches_in_float32() -> None:
    sequences = random_sequences(24, longest=12)
    gradients = []
    for budget in (12, 100_000):
        trainer = Trainer(tiny_policy(dtype=torch.bfloat16), _optimizer())
        captured = _capture(trainer)
        batches = pack(sequences, micro_batch_tokens=budget)
        trainer.step(batches, loss=NLL, denominator=100.0, lr=0.0)
        gradients.append(captured[0])
    assert gradients[0].dtype == torch.float32
    assert not torch.equal(gradients[0], gradients[0].bfloat16().float())  # more bits than bf16 holds
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 0.02


def test_clipping_scales_to_the_norm_and_reports_the_norm_before() -> None:
    sequences = random_sequences(6)
    batches = pack(sequences, micro_batch_tokens=80)
    seen = []
    for max_norm in (0.0, 0.01):
        trainer = Trainer(tiny_policy(), _optimizer(max_grad_norm=max_norm))
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_: seen.append(
                torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"]])
            )
        )
        metrics = trainer.step(batches, loss=NLL, denominator=50.0, lr=0.0)
        assert metrics["grad_norm_sum"] == pytest.approx(float(seen[0].norm()), rel=1e-4)
    assert float(seen[1].norm()) == pytest.approx(0.01, rel=1e-4)
    torch.testing.assert_close(seen[1] / seen[1].norm(), seen[0] / seen[0].norm())


def test_weight_decay_acts_on_matrices_only() -> None:
    policy = tiny_policy()
    trainer = Trainer(policy, _optimizer(weight_decay=0.5))
    before = {n: p.detach().clone() for n, p in policy.module.named_parameters()}
    (batch,) = pack(random_sequences(3), micro_batch_tokens=1000)
    loss = replace(_grpo("sequence_mean"), kl="none", kl_coef=0.0)
    still = replace(batch, advantage=torch.zeros_like(batch.advantage))  # gradient 0: decay alone moves
    trainer.step([still], loss=loss, denominator=3.0, lr=0.1)
    for name, parameter in policy.module.named_parameters():
        factor = 0.95 if parameter.dim() >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_gradient_that_is_not_finite_updates_nothing() -> None:
    policy = tiny_policy()
    trainer = Trainer(policy, _optimizer())
    before = policy.head_weight.detach().clone()
    (batch,) = pack(random_sequences(3), micro_batch_tokens=1000)
    bad = replace(batch, advantage=torch.full_like(batch.advantage, torch.inf))
    with pytest.raises(RuntimeError, match="nothing was updated"):
        trainer.step([bad], loss=replace(_grpo("token_mean"), kl="none", kl_coef=0.0), denominator=3.0, lr=1.0)
    assert torch.equal(policy.head_weight, before) and policy.version == 0
    assert all(p.grad is None for p in policy.module.parameters())


def test_wrong_arguments_are_refused() -> None:
    trainer = Trainer(tiny_policy(), _optimizer())
    batches = pack(random_sequences(2), micro_batch_tokens=1000)
    with pytest.raises(ValueError, match=r"denominator = 0"):
        trainer.step(batches, loss=NLL, denominator=0, lr=1e-3)
    with pytest.raises(ValueError, match="old_logp has 0 tensors for 1 batches"):
        trainer.step(batches, loss=NLL, denominator=1, lr=1e-3, old_logp=[])
    with pytest.raises(ValueError, match="no trainable parameter"):
        Trainer(tiny_policy().copy(), _optimizer())


def test_denominators() -> None:
    sequences = random_sequences(7)
    batches = pack(sequences, micro_batch_tokens=50)
    assert global_denominator("sequence_mean", batches, Ranks()) == 7
    num_tokens = sum(len(s.token_ids) - s.num_prompt_tokens for s in sequences)
    assert global_denominator("token_mean", batches, Ranks()) == num_tokens
    assert global_denominator("constant", batches, Ranks(), tokens_per_sequence=32) == 7 * 32
    with pytest.raises(ValueError, match="tokens_per_sequence"):
        global_denominator("constant", batches, Ranks())


def test_score_is_the_log_softmax_at_the_temperature() -> None:
    policy = tiny_policy()
    bare = Sequence(token_ids=torch.tensor([4, 5]), num_prompt_tokens=2)
    batches = [*pack(random_sequences(5), micro_batch_tokens=60), *pack([bare], micro_batch_tokens=60)]
    scores = score(policy, batches, temperature=0.8)
    for value, batch in zip(scores, batches, strict=True):
        assert value.dtype == torch.float32 and not value.requires_grad
        torch.testing.assert_close(value, _logp(policy, batch).detach(), rtol=1e-4, atol=1e-5)
    assert scores[-1].shape == (0,)


def test_a_batch_without_completion_tokens_is_no_error() -> None:
    trainer = Trainer(tiny_policy(), _optimizer())
    bare = Sequence(token_ids=torch.tensor([4, 5]), num_prompt_tokens=2)
    batches = pack([bare], micro_batch_tokens=8)
    metrics = trainer.step(batches, loss=NLL, denominator=1.0, lr=1e-3)
    assert metrics["grad_norm_sum"] == 0.0 and metrics["packed_tokens_count"] == 0  # it was not run
