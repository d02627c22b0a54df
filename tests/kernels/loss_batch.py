"""A batch for the loss's tests, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import torch
from rounding import INTERPRETED, WIDE
from torch import Tensor

from r1fast.kernels.grpo_loss import PolicyLoss

OBJECTIVES = ("clip", "cispo", "reinforce", "nll")
LEVELS = ("token", "sequence", "sequence_sum")
KLS = ("none", "k2", "k3", "weighted_k3")
CORRECTIONS = (
    ("none", "token"),
    ("truncate", "token"),
    ("truncate", "sequence"),
    ("mask", "token"),
    ("mask", "sequence"),
)
AGGREGATES = ("sequence_mean", "token_mean", "constant")
PLAIN = PolicyLoss(kl="none", aggregate="constant")


RTOL, ATOL = (1e-4, 1e-5) if INTERPRETED else (1e-10, 1e-12)


def combinations(objective: str, level: str, *kls: str) -> Iterator[PolicyLoss]:
    """Every KL (or those named) x correction x aggregation; an entropy bonus where there is no correction."""
    for kl, (correction, at), aggregate in product(kls or KLS, CORRECTIONS, AGGREGATES):
        yield PolicyLoss(
            objective=objective,  # type: ignore[arg-type]
            level=level,  # type: ignore[arg-type]
            kl=kl,  # type: ignore[arg-type]
            kl_coef=0.3,
            correction=correction,  # type: ignore[arg-type]
            correction_level=at,  # type: ignore[arg-type]
            aggregate=aggregate,  # type: ignore[arg-type]
            entropy_coef=0.2 if correction == "none" else 0.0,
        )


def batch(
    lengths: tuple[int, ...] = (5, 0, 7, 1, 9), seed: int = 0, noise: float = 0.3, dtype: torch.dtype = WIDE
) -> dict[str, Any]:
    """Keyword arguments of `grpo_loss`; a third masked, the fourth sequence whole."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)

    def normal(scale: float, size: int = total) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(dtype)

    old = -normal(1.0).abs()
    mask = torch.rand(total, generator=generator) > 1 / 3
    if 1 in lengths:
        mask[sum(lengths[: lengths.index(1)])] = False
    return {
        "logp_T": old + normal(noise),
        "advantage_N": normal(1.0, len(lengths)),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
        "old_logp_T": old,
        "ref_logp_T": old + normal(0.5),
        "rollout_logp_T": old + normal(0.5),
        "log_kept_mass_T": -normal(0.1).abs(),
        "entropy_T": normal(1.0).abs(),
        "mask_T": mask,
        "denominator": 3.7,
    }


def gradients(function: Any, arguments: dict[str, Any], options: PolicyLoss) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its gradients in logp and entropy (0 where there is none)."""
    leaves = [arguments[name].clone().requires_grad_() for name in ("logp_T", "entropy_T")]
    result = function(**{**arguments, "logp_T": leaves[0], "entropy_T": leaves[1]}, options=options)
    loss = result[0] if isinstance(result, tuple) else result
    found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return loss.detach(), *found


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same in fp64: what the reference is given."""
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}


def close(own: Any, exact: Any) -> None:
    """Within the rounding of the path under test."""
    for a, b in zip(own, exact, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=RTOL, atol=ATOL)


def permuted(arguments: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """The sequences in another order, or some of them."""
    bounds = list(pairwise(arguments["cu_seqlens"].tolist()))
    index = torch.cat([torch.arange(*bounds[n]) for n in order] or [torch.zeros(0, dtype=torch.long)])
    changed = {name: value[index] for name, value in arguments.items() if name.endswith("_T")}
    lengths = [bounds[n][1] - bounds[n][0] for n in order]
    changed["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0)
    changed["advantage_N"] = arguments["advantage_N"][order]
    return {**arguments, **changed, "index": index}


def simple(logp: list[float], advantage: float, **more: Any) -> dict[str, Any]:
    """One sequence, old log-probs 0."""
    zeros = torch.zeros(len(logp), dtype=WIDE)
    return {
        "logp_T": torch.tensor(logp, dtype=WIDE),
        "advantage_N": torch.tensor([advantage], dtype=WIDE),
        "cu_seqlens": torch.tensor([0, len(logp)]),
        "old_logp_T": zeros,
        "entropy_T": zeros,
        "denominator": 1.0,
    } | more
