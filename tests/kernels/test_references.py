"""The definitions themselves, numerically: what every other test of these ops compares with."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product

import pytest
import torch
from linear_batch import batch as linear_batch
from loss_batch import KLS, LEVELS, OBJECTIVES, batch, combinations
from rounding import INTERPRETED
from torch import Tensor

from r1fast.kernels.group_advantage import BASELINES, SCALES, group_advantage_reference
from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss_reference
from r1fast.kernels.linear_grpo import linear_grpo_loss_reference
from r1fast.kernels.linear_logprob import linear_logprob_reference
from r1fast.kernels.token_logprob import TokenLogprob, token_logprob_reference

if INTERPRETED:
    pytest.skip("no Triton kernel has a part in these", allow_module_level=True)

HEAT = torch.tensor([0.5, 1.0, 1.7], dtype=torch.float64)
TARGETS = torch.tensor([4, 0, 2])
# all but CISPO's, whose ratio is no function of the log-prob by definition
SMOOTH = [name for name in OBJECTIVES if name != "cispo"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def present(result: TokenLogprob) -> tuple[Tensor, ...]:
    return tuple(x for x in result if x is not None)


@pytest.mark.parametrize(("softcap", "entropy", "temperature"), list(product([None, 4.0], [False, True], [0.7, HEAT])))
def test_token_logprob_reference(softcap: float | None, entropy: bool, temperature: float | Tensor) -> None:
    options = {"temperature": temperature, "softcap": softcap, "entropy": entropy}
    assert torch.autograd.gradcheck(lambda x: present(token_logprob_reference(x, TARGETS, **options)), (normal(3, 5),))


@pytest.mark.parametrize(("softcap", "entropy"), list(product([None, 4.0], [False, True])))
def test_linear_logprob_reference(softcap: float | None, entropy: bool) -> None:
    options = {"temperature": HEAT, "softcap": softcap, "entropy": entropy}
    assert torch.autograd.gradcheck(
        lambda h, w, b: present(linear_logprob_reference(h, w, TARGETS, bias_V=b, **options)),
        (normal(3, 4), normal(5, 4, seed=1), normal(5, seed=2)),
    )


@pytest.mark.parametrize(("objective", "level", "kl"), list(product(SMOOTH, LEVELS, KLS)))
def test_grpo_loss_reference(objective: str, level: str, kl: str) -> None:
    arguments = batch((3, 0, 2, 1), dtype=torch.float64)
    leaves = [arguments[name].requires_grad_() for name in ("logp_T", "entropy_T")]
    for plain in islice(combinations(objective, level, kl), 0, None, 4):
        options = replace(plain, entropy_coef=0.2, dual_clip=1.8 if objective == "clip" else None)

        def loss(logp: Tensor, entropy: Tensor, options: PolicyLoss = options) -> Tensor:
            return grpo_loss_reference(**{**arguments, "logp_T": logp, "entropy_T": entropy}, options=options)

        assert torch.autograd.gradcheck(loss, leaves)


def test_the_gradient_of_cispos_reference_by_hand() -> None:
    arguments = batch(dtype=torch.float64) | {"mask_T": None}
    logp = arguments["logp_T"].requires_grad_()
    options = PolicyLoss(objective="cispo", kl="none", aggregate="constant", clip_high=0.1)
    (grad,) = torch.autograd.grad(grpo_loss_reference(**arguments, options=options), logp)
    ratio = (logp.detach() - arguments["old_logp_T"]).exp()
    advantage = arguments["advantage_N"].repeat_interleave(arguments["cu_seqlens"].diff())
    assert (ratio > 1.1).any()
    torch.testing.assert_close(grad, -ratio.clamp(max=1.1) * advantage / arguments["denominator"])


@pytest.mark.parametrize("level", LEVELS)
def test_linear_grpo_loss_reference(level: str) -> None:
    arguments = linear_batch()
    leaves = [arguments[name].requires_grad_() for name in ("hidden_TD", "weight_VD", "bias_V")]
    options = PolicyLoss(level=level, kl="weighted_k3", kl_coef=0.3, entropy_coef=0.1, correction="truncate")

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        given = arguments | {"hidden_TD": hidden, "weight_VD": weight, "bias_V": bias}
        return linear_grpo_loss_reference(**given, options=options)

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize(("baseline", "scale"), list(product(BASELINES, SCALES)))
def test_group_advantage_reference(baseline: str, scale: str) -> None:
    group = torch.tensor([3, 1, 3, 1, 1, 8])
    options = {"baseline": baseline, "scale": scale, "eps": 1e-2}
    assert torch.autograd.gradcheck(lambda x: group_advantage_reference(x, group, **options), (normal(6),))
