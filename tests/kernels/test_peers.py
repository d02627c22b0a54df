"""A second oracle: TRL's and Liger's own loss code, on the CPU, where definitions agree; and where theirs goes wrong.

`pip install -e ".[test,peers]"`, then `pytest tests/kernels/test_peers.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss
from r1fast.kernels.linear_grpo import linear_grpo_loss
from r1fast.kernels.token_logprob import token_logprob

pytestmark = pytest.mark.peers
liger = pytest.importorskip("liger_kernel.chunked_loss.grpo_loss", reason="needs the extra peers")
trl = pytest.importorskip("trl.trainer.grpo_trainer", reason="needs the extra peers")

LENGTHS, LONGEST, WIDTH, VOCABULARY = (5, 3, 6, 1), 6, 8, 23
BATCH = len(LENGTHS)


def padded() -> dict[str, Tensor]:
    """[B, T] as the peers want it; the mask leaves out the padding and one token in between."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    mask = torch.arange(LONGEST)[None, :] < torch.tensor(LENGTHS)[:, None]
    mask[2, 1] = False
    hidden, weight = normal(BATCH, LONGEST, WIDTH), normal(VOCABULARY, WIDTH)
    targets = torch.randint(VOCABULARY, (BATCH, LONGEST), generator=generator)
    logp = torch.log_softmax(hidden @ weight.T, -1).gather(2, targets[..., None])[..., 0]
    near = {name: logp + normal(BATCH, LONGEST, scale=0.3) for name in ("old", "ref", "rollout")}
    advantage = torch.tensor([1.0, -0.7, 0.4, -1.3])
    return {"hidden": hidden, "weight": weight, "targets": targets, "mask": mask, "advantage": advantage} | near


def ours(parts: dict[str, Tensor], options: PolicyLoss, denominator: float) -> tuple[Tensor, ...]:
    """Loss, gradients of hidden and weight."""
    hidden, weight = (parts[name].clone().requires_grad_() for name in ("hidden", "weight"))
    loss, _ = linear_grpo_loss(
        hidden.flatten(0, 1),
        weight,
        parts["targets"].flatten(),
        parts["advantage"],
        torch.arange(BATCH + 1) * LONGEST,
        old_logp_T=parts["old"].flatten(),
        ref_logp_T=parts["ref"].flatten(),
        rollout_logp_T=parts["rollout"].flatten(),
        mask_T=parts["mask"].flatten(),
        denominator=denominator,
        options=options,
    )
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def correction(parts: dict[str, Tensor], cap: float = 1.2) -> Tensor:
    """Their `vllm_is_ratio`: our correction = truncate."""
    return (parts["old"] - parts["rollout"]).exp().clamp(max=cap)


NUM_TOKENS = float(padded()["mask"].sum())
# their settings, ours, our denominator
AGREEING: dict[str, tuple[dict[str, Any], PolicyLoss, float]] = {
    "grpo": ({"loss_type": "grpo", "beta": 0.1}, PolicyLoss(kl="k3", kl_coef=0.1), BATCH),
    "grpo without kl": ({"loss_type": "grpo", "beta": 0.0}, PolicyLoss(kl="none"), BATCH),
    "dapo": (
        {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.28},
        PolicyLoss(kl="none", clip_high=0.28, aggregate="token_mean"),
        NUM_TOKENS,
    ),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "beta": 0.05, "max_completion_length": 11},
        PolicyLoss(kl="k3", kl_coef=0.05, aggregate="constant"),
        BATCH * 11.0,
    ),
    "cispo": (
        {"loss_type": "cispo", "beta": 0.0, "epsilon_high": 1.3},  # the bound itself
        PolicyLoss(objective="cispo", kl="none", clip_high=0.3, aggregate="token_mean"),
        NUM_TOKENS,
    ),
    "two-sided": ({"loss_type": "grpo", "beta": 0.0, "delta": 1.4}, PolicyLoss(kl="none", delta=1.4), BATCH),
    "gspo": (
        {"loss_type": "grpo", "beta": 0.1, "importance_sampling_level": "sequence"},
        PolicyLoss(level="sequence", kl="k3", kl_coef=0.1),
        BATCH,
    ),
    "weighted kl": (
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": True},
        PolicyLoss(kl="weighted_k3", kl_coef=0.1),
        BATCH,
    ),
    "truncated correction": (
        {"loss_type": "grpo", "beta": 0.1, "correction": True},
        PolicyLoss(kl="k3", kl_coef=0.1, correction="truncate", correction_cap=1.2),
        BATCH,
    ),
}


def liger_loss(parts: dict[str, Tensor], settings: dict[str, Any]) -> tuple[Tensor, ...]:
    settings = dict(settings)
    corrected = settings.pop("correction", False)
    hidden, weight = (parts[name].clone().requires_grad_() for name in ("hidden", "weight"))
    function = liger.LigerFusedLinearGRPOLoss(compiled=False, use_ref_model=settings["beta"] > 0, **settings)
    loss, _ = function(
        hidden,
        weight,
        parts["targets"],
        parts["mask"].long(),
        parts["advantage"],
        ref_per_token_logps=parts["ref"],
        old_per_token_logps=parts["old"],
        vllm_is_ratio=correction(parts) if corrected else None,
    )
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def trl_loss(parts: dict[str, Tensor], settings: dict[str, Any]) -> tuple[Tensor, ...]:
    """Their trainer's own method, which reads its settings off the trainer; the rest of a trainer plays no part."""
    hidden, weight = (parts[name].clone().requires_grad_() for name in ("hidden", "weight"))
    log_p = torch.log_softmax(hidden @ weight.T, -1)
    logp = log_p.gather(2, parts["targets"][..., None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    alone = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, entropy.detach(), None),
        accelerator=alone,
        args=SimpleNamespace(
            delta=settings.get("delta"),
            use_bias_correction_kl=settings.get("use_bias_correction_kl", False),
            steps_per_generation=1,
        ),
        aux_loss_enabled=False,
        beta=settings["beta"],
        current_gradient_accumulation_steps=1,
        epsilon_high=settings.get("epsilon_high", 0.2),
        epsilon_low=0.2,
        importance_sampling_level=settings.get("importance_sampling_level", "token"),
        loss_type=settings["loss_type"],
        max_completion_length=settings.get("max_completion_length"),
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm="correction" in settings,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    prompt = torch.zeros(BATCH, 1, dtype=torch.long)
    batch = {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": parts["targets"],
        "completion_mask": parts["mask"].long(),
        "advantages": parts["advantage"],
        "old_per_token_logps": parts["old"],
        "ref_per_token_logps": parts["ref"],
        "importance_sampling_ratio": correction(parts),
        "num_items_in_batch": torch.tensor(NUM_TOKENS),
    }
    loss = trl.GRPOTrainer._compute_loss(trainer, None, batch)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("name", AGREEING)
@pytest.mark.parametrize("peer", [liger_loss, trl_loss])
def test_loss_and_gradients_agree(peer: Any, name: str) -> None:
    settings, options, denominator = AGREEING[name]
    parts = padded()
    for own, theirs in zip(ours(parts, options, denominator), peer(parts, settings), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-6)


def test_log_probs_and_entropy_agree_with_trl() -> None:
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits = torch.randn(7, 301, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.arange(7) * 43
    own = token_logprob(logits, targets, entropy=True)
    assert own.entropy is not None
    torch.testing.assert_close(own.logp, selective_log_softmax(logits[None], targets[None])[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.entropy, entropy_from_logits(logits), rtol=1e-5, atol=1e-6)


# Where they go wrong, or define it otherwise.


def test_trl_log_probs_of_bf16_logits_are_rounded_to_bf16() -> None:
    from trl.trainer.utils import selective_log_softmax

    logits = (torch.randn(64, 301, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()
    targets = torch.arange(64) * 4
    exact = torch.log_softmax(logits.double(), 1).gather(1, targets[:, None])[:, 0]
    theirs = selective_log_softmax(logits[None], targets[None])[0]
    assert (theirs.double() - exact).abs().max() > 1e-2
    assert (token_logprob(logits, targets).logp.double() - exact).abs().max() < 1e-5


def test_their_k3_is_0_for_policies_that_are_close() -> None:
    d = torch.full((3,), 1e-4)
    assert not liger.k3_loss_fn(d, torch.zeros(3)).any()
    _, metrics = grpo_loss(
        torch.zeros(3),
        torch.zeros(1),
        torch.tensor([0, 3]),
        ref_logp_T=d,
        denominator=1.0,
        options=PolicyLoss(kl="k3", kl_coef=1.0),
    )
    assert float(metrics["kl_sum"]) == pytest.approx(3 * 5e-9, rel=1e-3)


def test_what_stands_in_masked_places_spoils_their_loss() -> None:
    parts = padded()
    settings, options, denominator = AGREEING["grpo without kl"]
    clean = ours(parts, options, denominator)
    parts["hidden"] = parts["hidden"].masked_fill(~parts["mask"][..., None], math.nan)
    for peer in (liger_loss, trl_loss):
        assert peer(parts, settings)[0].isnan()
    for own, plain in zip(ours(parts, options, denominator), clean, strict=True):
        assert torch.equal(own, plain)


def test_sequence_level_weighted_kl_is_weighted_by_another_ratio() -> None:
    """Theirs weights a token's KL by the sequence's mean ratio; its expectation is the KL only with the token's."""
    settings = {"loss_type": "grpo", "importance_sampling_level": "sequence", "use_bias_correction_kl": True, "beta": 1}
    options = PolicyLoss(level="sequence", kl="weighted_k3", kl_coef=1.0)
    parts = padded() | {"advantage": torch.zeros(BATCH)}  # the KL is all there is
    mask = parts["mask"]
    hidden, weight = (parts[name].double().requires_grad_() for name in ("hidden", "weight"))
    logp = torch.log_softmax(hidden @ weight.T, -1).gather(2, parts["targets"][..., None])[..., 0]
    x, d = logp - parts["old"], parts["ref"] - logp
    mean_x = (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    by_ratio = {}
    for name, log_ratio in (("token", x), ("sequence", mean_x)):
        kl = (log_ratio.exp() * (torch.expm1(d) - d) * mask).sum(1) / mask.sum(1)
        by_ratio[name] = torch.autograd.grad(kl.mean(), (hidden, weight), retain_graph=True)
    for own, exact in zip(ours(parts, options, BATCH)[1:], by_ratio["token"], strict=True):
        torch.testing.assert_close(own.double(), exact, rtol=1e-4, atol=1e-6)
    for peer in (liger_loss, trl_loss):
        for theirs, exact, right in zip(peer(parts, settings)[1:], *reversed(by_ratio.values()), strict=True):
            torch.testing.assert_close(theirs.double(), exact, rtol=1e-4, atol=1e-6)
            assert (theirs - right).abs().max() > 0.05 * right.abs().max()
