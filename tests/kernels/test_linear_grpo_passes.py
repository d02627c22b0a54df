"""How `linear_grpo_loss` gets there: products, memory, chunks, and the tokens it leaves out."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from linear_batch import LENGTHS, Watch, batch, gradients
from rounding import INTERPRETED
from torch import Tensor

from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.kernels.linear_grpo import linear_grpo_loss, linear_grpo_loss_reference

PLAIN = PolicyLoss(kl="none")
WIDE = torch.float32 if INTERPRETED else torch.float64
UNIT = 2e-5 if INTERPRETED else 1e-10


def close(own: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(own.double(), exact.double(), rtol=UNIT, atol=UNIT * (1 + float(exact.abs().max())))


def run(arguments: dict[str, Any], options: PolicyLoss, needs: tuple[bool, bool, bool] = (True, True, True)) -> Watch:
    names = ("hidden_TD", "weight_VD", "bias_V")
    leaves = {name: arguments[name].clone().requires_grad_(need) for name, need in zip(names, needs, strict=True)}
    with Watch() as watch:
        loss, _ = linear_grpo_loss(**{**arguments, **leaves}, options=options)
        if any(needs):
            loss.backward()
    assert [leaf.grad is not None for leaf in leaves.values()] == list(needs)
    return watch


@pytest.mark.parametrize("needs", list(product([False, True], repeat=3)))
@pytest.mark.parametrize(
    ("options", "scores_first"),
    [
        (PLAIN, False),
        (PolicyLoss(kl="k3", entropy_coef=0.1, correction="mask"), False),
        (PolicyLoss(objective="nll", kl="none"), False),
        (PolicyLoss(objective="reinforce", level="sequence", kl="none"), False),
        (PolicyLoss(level="sequence", kl="none"), True),
        (PolicyLoss(kl="none", correction="truncate", correction_level="sequence"), True),
    ],
)
def test_three_products_two_with_a_frozen_head_one_without_gradients(
    needs: tuple[bool, bool, bool], options: PolicyLoss, scores_first: bool
) -> None:
    watch = run(batch(WIDE), options, needs)
    assert watch.products == 1 + needs[0] + needs[1] + (scores_first and any(needs))


def test_no_gradient_is_made_where_none_can_be_asked_for() -> None:
    arguments = {k: v.requires_grad_() if k == "hidden_TD" else v for k, v in batch(WIDE).items()}
    with torch.no_grad(), Watch() as watch:
        loss, _ = linear_grpo_loss(**arguments, options=PLAIN)
    assert watch.products == 1 and not loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_passes_the_budget(dtype: torch.dtype) -> None:
    vocabulary, total = (300, 40) if INTERPRETED else (3000, 400)
    hidden, weight = torch.randn(total, 4).to(dtype), torch.randn(vocabulary, 4).to(dtype)
    budget = vocabulary * total * dtype.itemsize // 3
    arguments = {
        "hidden_TD": hidden,
        "weight_VD": weight,
        "bias_V": torch.zeros(vocabulary),
        "targets_T": torch.randint(vocabulary, (total,)),
        "advantage_N": torch.randn(2),
        "cu_seqlens": torch.tensor([0, total // 4, total]),
        "denominator": 2,
        "memory_budget_bytes": budget,
    }
    assert 0 < run(arguments, PLAIN, (True, True, False)).bytes <= budget
    with pytest.raises(ValueError, match=r"memory_budget_bytes = 99 holds no token .* give at least \d+"):
        linear_grpo_loss(**arguments | {"memory_budget_bytes": 99}, options=PLAIN)


@pytest.mark.parametrize(
    "options",
    [
        PolicyLoss(kl="weighted_k3", kl_coef=0.3, correction="truncate", entropy_coef=0.1),
        PolicyLoss(kl="none", aggregate="token_mean"),
        PolicyLoss(level="sequence", kl="none", correction="truncate", correction_level="sequence"),
    ],
)
@pytest.mark.parametrize("dtype", [WIDE, torch.bfloat16])
def test_chunks_that_cut_sequences_change_nothing(options: PolicyLoss, dtype: torch.dtype) -> None:
    arguments = batch(dtype)
    exact = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
    true = gradients(linear_grpo_loss_reference, exact, options)
    whole = gradients(linear_grpo_loss, arguments, options)
    for tokens in (1, 2, 5):
        budget = {"memory_budget_bytes": tokens * len(arguments["weight_VD"]) * 4 * 8}
        cut = gradients(linear_grpo_loss, arguments | budget, options)
        for own, one, best in zip(cut, whole, true, strict=True):
            error, error_of_one = (float((x.double() - best).abs().max()) for x in (own, one))
            # an accumulator in bf16 would lose digits with every chunk
            assert error <= 2 * error_of_one + UNIT * (1 + float(best.abs().max()))


def test_the_weights_gradient_is_as_good_from_many_chunks_as_from_one() -> None:
    """400 chunks of one token whose gradients are alike: a bf16 accumulator stops growing at 256 of them."""
    total = 40 if INTERPRETED else 400
    arguments = {
        "hidden_TD": torch.ones(total, 4, dtype=torch.bfloat16),
        "weight_VD": torch.zeros(8, 4, dtype=torch.bfloat16),
        "targets_T": torch.zeros(total, dtype=torch.int64),
        "advantage_N": torch.ones(1),
        "cu_seqlens": torch.tensor([0, total]),
        "denominator": 1.0,
    }
    options = PolicyLoss(objective="nll", kl="none", aggregate="constant")
    found = []
    for budget in (8 * 16, 1 << 20):
        weight = arguments["weight_VD"].clone().requires_grad_()
        given = arguments | {"weight_VD": weight, "memory_budget_bytes": budget}
        found.append(torch.autograd.grad(linear_grpo_loss(**given, options=options)[0], weight)[0])
    exact = torch.full((8, 4), total / 8)
    exact[0] -= total
    assert all(torch.equal(grad.float(), exact) for grad in found)


def test_tokens_with_advantage_zero_never_reach_a_product_and_still_count() -> None:
    arguments = batch(WIDE)
    arguments["advantage_N"][2] = 0.0
    start = sum(LENGTHS[:2])
    inside = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    inside[start : start + LENGTHS[2]] = True
    dirty = arguments | {"hidden_TD": arguments["hidden_TD"].masked_fill(inside[:, None], math.nan)}
    for aggregate in ("sequence_mean", "token_mean"):
        options = PolicyLoss(kl="none", aggregate=aggregate)
        loss, dhidden, *rest = gradients(linear_grpo_loss, dirty, options)
        for own, exact in zip(
            (loss, dhidden, *rest), gradients(linear_grpo_loss_reference, arguments, options), strict=True
        ):
            close(own, exact)
        _, metrics = linear_grpo_loss(**dirty, options=options)
        scored = arguments["mask_T"] & ~inside
        assert metrics["ratio_count"] == metrics["entropy_count"] == scored.sum() < arguments["mask_T"].sum()
        assert metrics["tokens_count"] == arguments["mask_T"].sum()
        assert metrics["loss_count"] == (3 if aggregate == "sequence_mean" else arguments["mask_T"].sum())
        own_ratios = linear_grpo_loss(**arguments | {"mask_T": scored}, options=options)[1]["ratio_sum"]
        close(metrics["ratio_sum"], own_ratios)


@pytest.mark.parametrize("options", [PolicyLoss(kl="k3", kl_coef=0.3), PolicyLoss(kl="none", entropy_coef=0.1)])
def test_a_group_without_variance_keeps_its_kl_and_its_entropy_gradient(options: PolicyLoss) -> None:
    arguments = batch(WIDE)
    arguments["advantage_N"] = torch.zeros_like(arguments["advantage_N"])
    own = gradients(linear_grpo_loss, arguments, options)
    assert own[1].any()
    for a, b in zip(own, gradients(linear_grpo_loss_reference, arguments, options), strict=True):
        close(a, b)
    assert "ratio_count" not in linear_grpo_loss(**arguments, options=options)[1]


def test_the_losss_gradient_scales_it_and_backward_runs_twice() -> None:
    arguments = batch(WIDE)
    hidden = arguments["hidden_TD"].requires_grad_()
    loss, _ = linear_grpo_loss(**arguments, options=PLAIN)
    (once,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    close(torch.autograd.grad(loss * -3, hidden)[0], once * -3)


def test_fp16_gradients_survive_until_the_loss_is_scaled() -> None:
    """1 / (global tokens) is below fp16's smallest number; a loss scaler multiplies it back, after forward."""
    arguments = batch(torch.float16) | {"denominator": 1e7, "mask_T": None}
    exact = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
    found = []
    for function, given in ((linear_grpo_loss, arguments), (linear_grpo_loss_reference, exact)):
        leaves = {n: given[n].clone().requires_grad_() for n in ("hidden_TD", "weight_VD", "bias_V")}
        result = function(**{**given, **leaves}, options=PLAIN)
        loss = result[0] if isinstance(result, tuple) else result
        found.append(torch.autograd.grad(loss * 1e6, list(leaves.values())))
    for own, true in zip(*found, strict=True):
        assert (own.double() - true).abs().max() <= 2**-8 * true.abs().max()


def test_the_same_bits_every_time() -> None:
    arguments = batch(torch.bfloat16) | {"memory_budget_bytes": 3 * 19 * 4 * 8}
    first, second = (gradients(linear_grpo_loss, arguments, PLAIN) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
