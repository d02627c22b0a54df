"""What must hold of each op at any size on any device: called with small shapes on a CPU, with real ones on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from linear_batch import Watch
from rounding import assert_rule_18
from torch import Tensor

from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.kernels.linear_grpo import linear_grpo_loss, linear_grpo_loss_reference
from r1fast.kernels.linear_logprob import linear_logprob, linear_logprob_reference
from r1fast.kernels.token_logprob import token_logprob, token_logprob_reference

SAMPLED = 48  # rows that are compared with fp64 where all of them would not fit


def normal(*shape: int, device: str, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)


def integers(high: int, size: int, device: str) -> Tensor:
    return torch.randint(high, (size,), generator=torch.Generator(device).manual_seed(9), device=device)


def some(num_rows: int, device: str) -> Tensor:
    """Rows to look at, the first and the last among them."""
    return torch.linspace(0, num_rows - 1, min(num_rows, SAMPLED), device=device).long().unique()


def head(num_tokens: int, width: int, vocabulary: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states and a weight whose logits have a standard deviation of 3."""
    weight = normal(vocabulary, width, device=device, dtype=dtype, seed=1, scale=3 / width**0.5)
    return normal(num_tokens, width, device=device, dtype=dtype), weight


def check_rows(device: str, dtype: torch.dtype, num_tokens: int, vocabulary: int, **options: Any) -> None:
    """Values of `token_logprob` and their gradient, on some of the rows."""
    logits = normal(num_tokens, vocabulary, device=device, dtype=dtype, scale=3)
    targets = integers(vocabulary, num_tokens, device)
    coefficients = normal(2, num_tokens, device=device, dtype=torch.float32, seed=2)
    rows = some(num_tokens, device)
    found = []
    for function, values, index in (
        (token_logprob, logits, torch.arange(num_tokens, device=device)),
        (token_logprob_reference, logits[rows], rows),
        (token_logprob_reference, logits[rows].double(), rows),
    ):
        leaf = values.detach().requires_grad_()
        result = function(leaf, targets[index], entropy=True, **options)
        total = (result.logp * coefficients[0, index] + result.entropy * coefficients[1, index]).sum()
        (grad,) = torch.autograd.grad(total, leaf)
        parts = [x.detach() for x in (*result, grad)]
        found.append([part[rows] for part in parts] if len(parts[0]) > len(rows) else parts)
    for own, same, exact in zip(*found, strict=True):
        assert_rule_18(own, same, exact)


def batch(num_tokens: int, width: int, vocabulary: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `linear_grpo_loss`: four sequences, one of them empty."""
    hidden, weight = head(num_tokens, width, vocabulary, device, dtype)
    targets = integers(vocabulary, num_tokens, device)
    logp = linear_logprob(hidden, weight, targets).logp
    near = {
        name: logp + normal(num_tokens, device=device, dtype=torch.float32, seed=seed, scale=0.3)
        for seed, name in enumerate(("old_logp_T", "ref_logp_T", "rollout_logp_T"), start=3)
    }
    bounds = [0, num_tokens // 3, num_tokens // 3, num_tokens // 2, num_tokens]
    return near | {
        "hidden_TD": hidden,
        "weight_VD": weight,
        "targets_T": targets,
        "advantage_N": normal(4, device=device, dtype=torch.float32, seed=7),
        "cu_seqlens": torch.tensor(bounds, device=device),
        "denominator": float(num_tokens),
    }


def loss_gradients(function: Any, arguments: dict[str, Any], options: PolicyLoss) -> tuple[Tensor, ...]:
    """Loss, and its gradients of hidden and weight."""
    leaves = {name: arguments[name].detach().requires_grad_() for name in ("hidden_TD", "weight_VD")}
    result = function(**arguments | leaves, options=options)
    loss = result[0] if isinstance(result, tuple) else result
    return loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))


def wide(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}


def check_head(device: str, dtype: torch.dtype, num_tokens: int, width: int, vocabulary: int) -> None:
    """Values of `linear_logprob` on some of the rows, and that a pass over many tokens is one over few."""
    hidden, weight = head(num_tokens, width, vocabulary, device, dtype)
    targets = integers(vocabulary, num_tokens, device)
    rows = some(num_tokens, device)
    own = linear_logprob(hidden, weight, targets, entropy=True)
    exact = linear_logprob_reference(hidden[rows].double(), weight.double(), targets[rows], entropy=True)
    for a, b in zip(own, exact, strict=True):
        assert a is not None and b is not None
        assert float((a[rows].double() - b).abs().max()) < 5e-4  # bf16 logits would be off by 0.03


def check_loss(
    device: str, dtype: torch.dtype, num_tokens: int, width: int, vocabulary: int, options: PolicyLoss
) -> None:
    """All values and gradients of `linear_grpo_loss`, where fp64 logits fit."""
    arguments = batch(num_tokens, width, vocabulary, device, dtype)
    own = loss_gradients(linear_grpo_loss, arguments, options)
    same = loss_gradients(linear_grpo_loss_reference, arguments, options)
    exact = loss_gradients(linear_grpo_loss_reference, wide(arguments, torch.float64), options)
    # the loss's terms cancel; and on a CPU the logits of bf16 are exact to 2^-16, not 2^-24
    size = 1.0 if device != "cpu" or dtype == torch.float32 else 16.0
    for name, a, b, c in zip(("loss", "dhidden", "dweight"), own, same, exact, strict=True):
        assert_rule_18(a, b, c, least_size=size if name == "loss" else 0.0, what=name)


def check_loss_rows(device: str, num_tokens: int, width: int, vocabulary: int) -> None:
    """dhidden of `linear_grpo_loss` in bf16 on some of the rows, each of which depends on no other."""
    options = PolicyLoss(kl="k3", kl_coef=0.1, entropy_coef=0.01, aggregate="token_mean")
    arguments = batch(num_tokens, width, vocabulary, device, torch.bfloat16)
    own = loss_gradients(linear_grpo_loss, arguments, options)[1]
    rows = some(num_tokens, device)
    sequence = torch.searchsorted(arguments["cu_seqlens"][1:], rows, right=True)
    part = {k: v[rows] if k.endswith(("_T", "_TD")) else v for k, v in arguments.items()}
    part |= {"advantage_N": arguments["advantage_N"][sequence]}
    part |= {"cu_seqlens": torch.arange(len(rows) + 1, device=device)}
    part["hidden_TD"] = part["hidden_TD"].double().requires_grad_()
    given = wide({k: v for k, v in part.items() if k != "hidden_TD"}, torch.float64) | {"hidden_TD": part["hidden_TD"]}
    exact = torch.autograd.grad(linear_grpo_loss_reference(**given, options=options), given["hidden_TD"])[0]
    assert (own[rows].double() - exact).abs().max() <= 2**-7 * exact.abs().max()


def check_same_bits(call: Callable[[], tuple[Tensor, ...]]) -> None:
    first, second = call(), call()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def peak_bytes(device: str, call: Callable[[], Any]) -> int:
    """Most memory above what was held before. On a CPU, which does not say, the largest tensor."""
    if device == "cpu":
        with Watch() as watch:
            call()
        return watch.bytes
    call()  # cuBLAS' workspace and the kernels' binaries are there from now on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def check_loss_memory(device: str, num_tokens: int, width: int, vocabulary: int, budget: int) -> None:
    """Budget, gradients and one fp32 accumulator of the weight's; no [T, V] of any kind beside them."""
    arguments = batch(num_tokens, width, vocabulary, device, torch.bfloat16) | {"memory_budget_bytes": budget}
    options = PolicyLoss(kl="k3", kl_coef=0.1)
    taken = peak_bytes(device, lambda: loss_gradients(linear_grpo_loss, arguments, options))
    gradients = 2 * (num_tokens + vocabulary) * width
    assert taken <= budget + gradients + 4 * vocabulary * width + (16 << 20)


def check_score_memory(device: str, num_tokens: int, width: int, vocabulary: int, limit: int) -> None:
    hidden, weight = head(num_tokens, width, vocabulary, device, torch.bfloat16)
    targets = integers(vocabulary, num_tokens, device)
    with torch.no_grad():
        assert peak_bytes(device, lambda: linear_logprob(hidden, weight, targets)) <= limit
