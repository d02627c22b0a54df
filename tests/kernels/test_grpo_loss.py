"""Gradients of every combination of options against fp64 autograd, and the edges where losses go wrong."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_batch import (
    AGGREGATES,
    CORRECTIONS,
    KLS,
    LEVELS,
    OBJECTIVES,
    batch,
    close,
    combinations,
    doubled,
    gradients,
    permuted,
    simple,
)
from rounding import INTERPRETED, WIDE, assert_rule_18
from torch import Tensor

from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss, grpo_loss_reference


@pytest.mark.parametrize(("objective", "level"), list(product(OBJECTIVES, LEVELS)))
def test_gradients_of_every_combination(objective: str, level: str) -> None:
    lengths = (3, 4) if INTERPRETED else (5, 0, 7, 1, 9)
    arguments = batch(lengths, dtype=torch.float64)
    single = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
    for options in combinations(objective, level):
        expected = gradients(grpo_loss_reference, arguments, options)
        same = gradients(grpo_loss_reference, single, options)
        for rough, reference, exact in zip(gradients(grpo_loss, single, options), same, expected, strict=True):
            assert_rule_18(rough, reference, exact, least_size=1.0, what=options)
        for own, exact in zip(() if INTERPRETED else gradients(grpo_loss, arguments, options), expected, strict=False):
            torch.testing.assert_close(own, exact, rtol=1e-10, atol=1e-12, msg=lambda m, o=options: f"{o}\n{m}")


@pytest.mark.parametrize(
    "options",
    [
        PolicyLoss(dual_clip=1.5),
        PolicyLoss(delta=1.5, aggregate="token_mean"),
        PolicyLoss(delta=1.5, level="sequence", kl="weighted_k3", kl_coef=0.5),
        PolicyLoss(clip_low=1.0, clip_high=math.inf, level="sequence_sum"),
        PolicyLoss(objective="cispo", clip_high=math.inf),
        PolicyLoss(correction="truncate", correction_cap=math.inf),
        PolicyLoss(entropy_coef=0.5, kl_coef=0.0),
    ],
)
@pytest.mark.parametrize("absent", [(), ("mask_T",), ("old_logp_T",), ("log_kept_mass_T", "mask_T")])
def test_more_options_and_absent_inputs(options: PolicyLoss, absent: tuple[str, ...]) -> None:
    arguments = batch(noise=0.8) | dict.fromkeys(absent)
    close(gradients(grpo_loss, arguments, options), gradients(grpo_loss_reference, doubled(arguments), options))


@pytest.mark.parametrize(("objective", "level"), [("clip", "token"), ("clip", "sequence"), ("clip", "sequence_sum")])
def test_gradcheck(objective: str, level: str) -> None:
    """Numerically, so that a mistake shared by the reference would show; the ratio is all in the loss here."""
    arguments = batch(dtype=torch.float64)
    options = PolicyLoss(
        objective=objective, level=level, kl="weighted_k3", kl_coef=0.3, entropy_coef=0.2, dual_clip=1.8
    )

    def loss(logp: Tensor, entropy: Tensor) -> Tensor:
        return grpo_loss(**{**arguments, "logp_T": logp, "entropy_T": entropy}, options=options)[0]

    leaves = [arguments[name].requires_grad_() for name in ("logp_T", "entropy_T")]
    assert torch.autograd.gradcheck(loss, leaves)


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    objective=st.sampled_from(OBJECTIVES),
    level=st.sampled_from(LEVELS),
    kl=st.sampled_from(KLS),
    aggregate=st.sampled_from(AGGREGATES),
    data=st.data(),
)
def test_neither_micro_batches_nor_packing_change_anything(
    lengths: list[int], objective: str, level: str, kl: str, aggregate: str, data: st.DataObject
) -> None:
    arguments = batch(tuple(lengths))
    options = PolicyLoss(
        objective=objective,
        level=level,
        kl=kl,
        kl_coef=0.3,
        aggregate=aggregate,
        correction="truncate",
        correction_level="sequence",
        entropy_coef=0.1,
    )
    loss, dlogp, dentropy = gradients(grpo_loss, arguments, options)
    _, metrics = grpo_loss(**arguments, options=options)
    order = data.draw(st.permutations(range(len(lengths))))
    cut = data.draw(st.integers(0, len(order)))
    total, parts = torch.zeros_like(loss), [torch.zeros_like(dlogp), torch.zeros_like(dentropy)]
    reduced: dict[str, Tensor] = {}
    for some in (order[:cut], order[cut:]):
        piece = permuted(arguments, some)
        index = piece.pop("index")
        piece_loss, *found = gradients(grpo_loss, piece, options)
        total += piece_loss
        for part, own in zip(parts, found, strict=True):
            part[index] = own
        for name, value in grpo_loss(**piece, options=options)[1].items():
            reduce = {"min": torch.minimum, "max": torch.maximum}.get(name.rpartition("_")[2], torch.add)
            reduced[name] = reduce(reduced[name], value) if name in reduced else value
    torch.testing.assert_close(total, loss)
    torch.testing.assert_close(parts, [dlogp, dentropy])
    torch.testing.assert_close(reduced, metrics)


@pytest.mark.parametrize(("objective", "level"), list(product(OBJECTIVES, LEVELS)))
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_stands_in_masked_places_is_never_read(objective: str, level: str, poison: float) -> None:
    clean = batch((2, 0, 4, 1) if INTERPRETED else (5, 0, 7, 1, 9))
    dirty = dict(clean)
    mask = clean["mask_T"]
    for name in ("logp_T", "old_logp_T", "ref_logp_T", "rollout_logp_T", "log_kept_mass_T", "entropy_T"):
        dirty[name] = torch.where(mask, clean[name], poison)
        clean[name] = torch.where(mask, clean[name], 0.0)
    dirty["advantage_N"] = clean["advantage_N"].clone()
    dirty["advantage_N"][[1, 3]] = poison  # the empty sequence, and the one that is masked throughout
    assert not mask[clean["cu_seqlens"][3]] and mask.any()
    for kl, (correction, at) in zip(KLS, CORRECTIONS, strict=False) if INTERPRETED else product(KLS, CORRECTIONS):
        options = PolicyLoss(
            objective=objective, level=level, kl=kl, correction=correction, correction_level=at, entropy_coef=0.1
        )
        found = []
        for arguments in (dirty, clean):
            leaves = [arguments[name].clone().requires_grad_() for name in ("logp_T", "entropy_T")]
            given = arguments | {"logp_T": leaves[0], "entropy_T": leaves[1]}
            loss, metrics = grpo_loss(**given, options=options)
            found.append((metrics, loss, *torch.autograd.grad(loss, leaves)))
        assert found[0][0] == found[1][0]
        for own, other in zip(found[0][1:], found[1][1:], strict=True):
            assert torch.equal(own, other) and own.isfinite().all()


@pytest.mark.parametrize("level", LEVELS)
def test_a_nan_that_is_not_masked_stays_in_its_sequence(level: str) -> None:
    arguments = batch() | {"mask_T": None}
    arguments["old_logp_T"][6] = math.nan
    options = PolicyLoss(level=level, kl="none", correction="truncate", correction_level="sequence")
    _, dlogp, _ = gradients(grpo_loss, arguments, options)
    assert dlogp[6].isnan() and dlogp[[*range(5), *range(12, 22)]].isfinite().all()


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_nothing_to_learn_from_is_a_finite_zero(aggregate: str) -> None:
    options = PolicyLoss(aggregate=aggregate, entropy_coef=0.1, level="sequence")
    arguments = batch()
    for case in (
        arguments | {"mask_T": torch.zeros(22, dtype=torch.bool)},
        batch((0, 0)),
        permuted(arguments, []),
    ):
        case.pop("index", None)
        loss, dlogp, dentropy = gradients(grpo_loss, case, options)
        assert loss == 0 and not dlogp.any() and not dentropy.any()
        metrics = grpo_loss(**case, options=options)[1]
        assert metrics["tokens_count"] == 0 and metrics["loss_sum"] == 0 and metrics["loss_count"] == 0
        assert metrics["ratio_min"] == math.inf and metrics["ratio_max"] == -math.inf


def test_metrics_by_hand() -> None:
    log = [math.log(x) for x in (1.0, 1.5, 0.5, 4.0)]
    arguments = simple(log, 1.0, cu_seqlens=torch.tensor([0, 2, 4]))
    arguments["advantage_N"] = torch.tensor([1.0, -1.0], dtype=WIDE)
    arguments |= {
        "ref_logp_T": arguments["logp_T"] - 1,
        "rollout_logp_T": torch.tensor([0.0, 0.5, -math.log(4), 0.0], dtype=WIDE),
        "entropy_T": torch.tensor([0.1, 0.2, 0.3, 9.0], dtype=WIDE),
        "mask_T": torch.tensor([True, True, True, False]),
    }
    options = PolicyLoss(kl="k2", kl_coef=0.1, correction="truncate", correction_cap=2.0)
    loss, metrics = grpo_loss(**arguments, options=options)
    weight = [1.0, math.exp(-0.5), 2.0]
    terms = [-1.0 * weight[0], -1.2 * weight[1], 0.8 * weight[2]]
    numerator = (terms[0] + terms[1]) / 2 + terms[2] + 0.1 * 0.5 * 2
    expected = {
        "loss_sum": numerator,
        "loss_count": 2,
        "tokens_count": 3,
        "ratio_sum": 3,
        "ratio_min": 0.5,
        "ratio_max": 1.5,
        "clip_low_sum": 1,
        "clip_high_sum": 1,
        "kl_sum": 1.5,
        "entropy_sum": 0.6,
        "logp_gap_abs_sum": 0.5 + math.log(4),
        "logp_gap_abs_max": math.log(4),
        "correction_weight_sum": sum(weight),
        "correction_clipped_sum": 1,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, rel=2e-6)
    assert not any(value.requires_grad or value.dim() for value in metrics.values())
    half = grpo_loss(**{**arguments, "denominator": torch.tensor(2.0)}, options=options)[0]
    assert float(loss) == pytest.approx(numerator) and float(half) == pytest.approx(numerator / 2)


def test_the_losss_gradient_scales_it_and_backward_runs_twice() -> None:
    arguments = batch()
    logp = arguments["logp_T"].requires_grad_()
    loss, _ = grpo_loss(**arguments, options=PolicyLoss())
    (once,) = torch.autograd.grad(loss, logp, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss * -3, logp)[0], once * -3)
