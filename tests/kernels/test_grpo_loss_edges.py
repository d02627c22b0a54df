"""Where losses go wrong: clip edges, overflow, the KL far away and close by, what must raise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_batch import LEVELS, OBJECTIVES, PLAIN, batch, doubled, gradients, simple
from rounding import INTERPRETED, WIDE
from torch import Tensor

from r1fast.kernels.grpo_loss import K3_LINEAR_FROM, PolicyLoss, grpo_loss, grpo_loss_reference


def test_without_old_log_probs_the_ratio_is_1_and_the_gradient_minus_the_advantage() -> None:
    for level in LEVELS:
        arguments = simple([-1.0, -2.0, -3.0], 0.7, old_logp_T=None)
        loss, dlogp, _ = gradients(grpo_loss, arguments, replace(PLAIN, level=level))
        torch.testing.assert_close(loss, torch.tensor(-2.1, dtype=WIDE))
        slope = -2.1 if level == "sequence_sum" else -0.7  # R1's product of ratios has every token's in it
        torch.testing.assert_close(dlogp, torch.full((3,), slope, dtype=WIDE))
        metrics = grpo_loss(**arguments, options=PLAIN)[1]
        assert metrics["ratio_sum"] == 3 and metrics["ratio_min"] == metrics["ratio_max"] == 1


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.25, 1.0, -1.25),  # exactly on the edge the gradient passes
        (0.75, -1.0, 0.75),
        (1.2501, 1.0, 0.0),
        (0.7499, -1.0, 0.0),
        (1.2501, -1.0, 1.2501),
        (0.7499, 1.0, -0.7499),
        (1.3, 0.0, 0.0),
        (0.5, 0.0, 0.0),
    ],
)
def test_the_edges_of_the_clip(ratio: float, advantage: float, slope: float) -> None:
    options = replace(PLAIN, clip_low=0.25, clip_high=0.25)
    logp = math.log(ratio)
    assert math.exp(logp) == ratio or ratio not in (1.25, 0.75)
    if INTERPRETED and ratio in (1.25, 0.75):
        pytest.skip("in fp32 exp(log(ratio)) is not the ratio to the last bit; the next test has an edge that is")
    for function in (grpo_loss, grpo_loss_reference):
        _, dlogp, _ = gradients(function, simple([logp], advantage), options)
        assert float(dlogp) == pytest.approx(slope, abs=2e-7 if INTERPRETED else 1e-12)


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("level", LEVELS)
def test_a_ratio_of_exactly_1_on_a_clip_at_exactly_1(advantage: float, level: str) -> None:
    options = replace(PLAIN, clip_low=0.0, clip_high=0.0, level=level)
    for function in (grpo_loss, grpo_loss_reference):
        _, dlogp, _ = gradients(function, simple([0.0], advantage), options)
        assert float(dlogp) == -advantage


def test_the_dual_clip_is_the_delta() -> None:
    for bound in ({"dual_clip": 3.0}, {"delta": 3.0}):
        options = replace(PLAIN, **bound)
        loss, dlogp, _ = gradients(grpo_loss, simple([math.log(2.0), math.log(5.0)], -1.0), options)
        assert float(loss) == pytest.approx(2 + 3)
        torch.testing.assert_close(dlogp, torch.tensor([2.0, 0.0], dtype=WIDE))
        metrics = grpo_loss(**simple([math.log(2.0), math.log(5.0)], -1.0), options=options)[1]
        assert metrics["clip_dual_sum"] == 1 and metrics["clip_high_sum"] == 0


@pytest.mark.parametrize("level", LEVELS)
def test_ratios_that_overflow_spoil_nothing_that_is_clipped(level: str) -> None:
    logp = torch.full((4,), 100.0)
    for advantage in (1.0, 0.0):
        arguments = simple([0.0] * 4, advantage)
        arguments = {
            k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()
        }
        arguments["logp_T"] = logp
        for objective in ("clip", "cispo"):
            options = replace(PLAIN, level=level, objective=objective)
            loss, dlogp, _ = gradients(grpo_loss, arguments, options)
            assert loss.isfinite() and dlogp.isfinite().all()


def test_k3_is_exact_for_close_policies_and_pulls_back_from_far_ones() -> None:
    options = PolicyLoss(kl="k3", kl_coef=1.0, aggregate="constant")
    d = torch.tensor([1e-4, 1.0, 19.0, K3_LINEAR_FROM, 25.0, 90.0, 800.0, -800.0])
    for kl in ("k3", "weighted_k3"):
        arguments = {
            "logp_T": torch.zeros(len(d), requires_grad=True),
            "advantage_N": torch.zeros(1),
            "cu_seqlens": torch.tensor([0, len(d)]),
            "ref_logp_T": d,
            "denominator": 1.0,
        }
        loss, metrics = grpo_loss(**arguments, options=replace(options, kl=kl))
        (slope,) = torch.autograd.grad(loss, arguments["logp_T"])
        assert loss.isfinite() and metrics["kl_sum"] == loss
        assert (slope[:7] < 0).all() and slope[7] > 0 and slope.isfinite().all()
        torch.testing.assert_close(slope[:4], -torch.expm1(d[:4]) if kl == "k3" else -d[:4], rtol=1e-5, atol=0)
        arguments["entropy_T"] = arguments["old_logp_T"] = torch.zeros(len(d))
        own = gradients(grpo_loss, arguments, replace(options, kl=kl))
        expected = gradients(grpo_loss_reference, doubled(arguments), replace(options, kl=kl))
        torch.testing.assert_close([part.double() for part in own], list(expected), rtol=1e-5, atol=1e-9)
    one = {name: arguments[name][:1].detach() for name in ("logp_T", "ref_logp_T", "old_logp_T", "entropy_T")}
    small = arguments | one | {"cu_seqlens": torch.tensor([0, 1])}
    assert float(grpo_loss(**small, options=options)[0]) == pytest.approx(5e-9, rel=1e-3)


def test_a_group_without_a_winner_keeps_its_kl_gradient() -> None:
    arguments = batch() | {"advantage_N": torch.zeros(5, dtype=WIDE)}
    _, dlogp, _ = gradients(grpo_loss, arguments, PolicyLoss(kl_coef=0.1))
    assert (dlogp != 0).equal(arguments["mask_T"])


def test_kl_off_never_reads_the_reference() -> None:
    poisoned = batch() | {"ref_logp_T": torch.full((22,), math.nan, dtype=WIDE)}
    for options in (PolicyLoss(kl="none"), PolicyLoss(kl_coef=0.0)):
        for own, plain in zip(
            gradients(grpo_loss, poisoned, options),
            gradients(grpo_loss, batch() | {"ref_logp_T": None}, options),
            strict=True,
        ):
            assert torch.equal(own, plain)
        assert "kl_sum" not in grpo_loss(**poisoned, options=options)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "ppo"}, "objective = 'ppo' must be one of clip, cispo"),
        ({"level": "group"}, "level = 'group' must be one of token"),
        ({"kl": "k1"}, "kl = 'k1' must be one of none"),
        ({"correction": "tis"}, "correction = 'tis' must be one of none"),
        ({"aggregate": "mean"}, "aggregate = 'mean' must be one of sequence_mean"),
        ({"clip_low": -0.1}, r"clip_low = -0.1 must be at least 0"),
        ({"kl_coef": math.nan}, "kl_coef = nan must be a number"),
        ({"entropy_coef": math.inf}, "entropy_coef = inf"),
        ({"dual_clip": 3.0, "delta": 3.0}, "set one"),
        ({"dual_clip": 1.0}, "dual_clip = 1.0 must be above 1"),
        ({"delta": 1.1}, r"delta = 1.1 must be above 1 \+ clip_high = 1.2"),
        ({"dual_clip": 3.0, "objective": "nll"}, "belong to objective = 'clip'"),
        ({"correction": "mask", "correction_cap": 1.0}, "correction_cap = 1.0 must be above 1"),
        ({"correction_cap": 0.0}, "correction_cap = 0.0 must be above 0"),
    ],
)
def test_bad_options_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyLoss(**options)


@pytest.mark.parametrize("kl", ["none", "k2", "k3", "weighted_k3"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["old_logp_T", "ref_logp_T"])
def test_nan_is_never_clipped_to_a_number(name: str, objective: str, level: str, kl: str) -> None:
    """What has no gradient in the definition has none here, and no more than that."""
    arguments = batch()
    token = int(arguments["mask_T"].nonzero()[0])
    arguments[name] = arguments[name].clone()
    arguments[name][token] = math.nan
    options = PolicyLoss(objective=objective, level=level, kl=kl, kl_coef=0.3)  # type: ignore[arg-type]
    loss, dlogp, _ = gradients(grpo_loss, arguments, options)
    # the same in fp64, which takes no Triton kernel
    expected_loss, expected_dlogp, _ = gradients(grpo_loss, doubled(arguments), options)
    read = kl != "none" if name == "ref_logp_T" else objective in ("clip", "cispo") or kl == "weighted_k3"
    assert loss.isnan() == expected_loss.isnan() == read
    assert dlogp.isnan().equal(expected_dlogp.isnan()) and dlogp.isnan().any() == read
