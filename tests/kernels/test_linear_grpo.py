"""The composed op against fp64 autograd from the hidden states on."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
from linear_batch import LENGTHS, batch, gradients
from loss_batch import KLS, LEVELS, OBJECTIVES, combinations
from rounding import INTERPRETED, assert_rule_18
from torch import Tensor

from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.kernels.linear_grpo import linear_grpo_loss, linear_grpo_loss_reference
from r1fast.kernels.linear_logprob import linear_logprob_reference


@pytest.mark.parametrize(("objective", "level", "kl"), list(product(OBJECTIVES, LEVELS, KLS)))
def test_gradients_of_every_combination(objective: str, level: str, kl: str) -> None:
    """From the hidden states on, against fp64 autograd; the chunks cut sequences."""
    singles = batch(torch.float32)
    doubles = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in singles.items()}
    budget = {"memory_budget_bytes": 5 * 19 * 4 * 4}
    for options in combinations(objective, level, kl):
        exact = gradients(linear_grpo_loss_reference, doubles, options)
        same = gradients(linear_grpo_loss_reference, singles, options)
        for own, reference, true in zip(
            gradients(linear_grpo_loss, singles | budget, options), same, exact, strict=True
        ):
            assert own.dtype == torch.float32
            assert_rule_18(own, reference, true, least_size=1.0, what=options)
        if not INTERPRETED:
            for own, true in zip(gradients(linear_grpo_loss, doubles | budget, options), exact, strict=True):
                torch.testing.assert_close(own, true, rtol=1e-11, atol=1e-11, msg=lambda m, o=options: f"{o}\n{m}")


def test_low_precision_gradients_are_as_good_as_their_inputs() -> None:
    options = PolicyLoss(kl="k3", kl_coef=0.1, entropy_coef=0.1)
    arguments = batch(torch.bfloat16)
    exact = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
    own = gradients(linear_grpo_loss, arguments, options)
    for a, b in zip(own, gradients(linear_grpo_loss_reference, exact, options), strict=True):
        assert (a.double() - b).abs().max() <= 2**-6 * b.abs().max() + 1e-4


@pytest.mark.parametrize("masked", [True, False])
def test_masked_hidden_states_may_be_nan_and_all_may_be_masked(masked: bool) -> None:
    options = PolicyLoss(kl="none", entropy_coef=0.1)
    arguments = batch()
    if not masked:
        arguments["mask_T"] = torch.zeros_like(arguments["mask_T"])
    clean = gradients(linear_grpo_loss, arguments, options)
    arguments["hidden_TD"] = arguments["hidden_TD"].masked_fill(~arguments["mask_T"][:, None], math.nan)
    for own, expected in zip(gradients(linear_grpo_loss, arguments, options), clean, strict=True):
        assert torch.equal(own, expected) and own.isfinite().all() and bool(own.any()) == masked


@pytest.mark.parametrize("aggregate", ["sequence_mean", "token_mean", "constant"])
def test_gradients_do_not_depend_on_micro_batches(aggregate: str) -> None:
    options = PolicyLoss(aggregate=aggregate, level="sequence", kl="k3", kl_coef=0.2, entropy_coef=0.1)
    arguments = batch()
    whole = gradients(linear_grpo_loss, arguments, options)
    sums = [torch.zeros_like(whole[0]), torch.zeros_like(whole[2]), torch.zeros_like(whole[3])]
    for n, (start, stop) in enumerate(pairwise(arguments["cu_seqlens"].tolist())):
        piece = {k: v[start:stop] if k.endswith(("_T", "_TD")) else v for k, v in arguments.items()}
        piece["temperature"] = arguments["temperature"][start:stop]
        piece |= {"advantage_N": arguments["advantage_N"][n : n + 1], "cu_seqlens": torch.tensor([0, stop - start])}
        loss, dhidden, dweight, dbias = gradients(linear_grpo_loss, piece, options)
        torch.testing.assert_close(dhidden, whole[1][start:stop])
        for total, part in zip(sums, (loss, dweight, dbias), strict=True):
            total += part
    torch.testing.assert_close(sums, [whole[0], whole[2], whole[3]])


def test_a_frozen_head_gets_no_gradient_and_metrics_hold_the_entropy() -> None:
    arguments = batch() | {"mask_T": None, "memory_budget_bytes": 1 << 16}
    hidden = arguments["hidden_TD"].requires_grad_()
    loss, metrics = linear_grpo_loss(**arguments, options=PolicyLoss())
    loss.backward()
    assert hidden.grad is not None and arguments["weight_VD"].grad is None
    names = ("bias_V", "temperature", "softcap")
    tokens = linear_logprob_reference(
        hidden.detach(),
        arguments["weight_VD"],
        arguments["targets_T"],
        **{n: arguments[n] for n in names},
        entropy=True,
    )
    assert tokens.entropy is not None
    torch.testing.assert_close(metrics["entropy_sum"], tokens.entropy.sum())
    assert metrics["tokens_count"] == sum(LENGTHS)


def test_a_mask_that_does_not_fit_raises() -> None:
    arguments = batch() | {"mask_T": torch.ones(3, dtype=torch.bool)}
    with pytest.raises(ValueError, match="mask must be bool"):
        linear_grpo_loss(**arguments, options=PolicyLoss(kl="none"))
