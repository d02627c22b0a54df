"""Other libraries' ways to the same results, each through its own public call. One that is not installed says so.

Read with trl 1.16, liger-kernel 0.8.5, verl 0.9.1, cut-cross-entropy 25.1.1, quack-kernels 0.6.5 and torch 2.13.
"""

# T packed tokens, N sequences, D model, V vocabulary

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.device import missing
from bench.harness import Arm, Outputs, Variant, plain
from bench.heads import CLIP, KL_COEF, Batch, backward, clip_loss

TRL_VOCABULARY_CHUNK = 32768  # what its trainers pass
NO_ENTROPY = "no entropy"


def peer(package: str, name: str, make: Callable[[], Arm], note: str = "", *, needs_cuda: bool = False) -> Variant:
    """A variant of an installed package; `make` imports it."""
    absent = missing(package)
    if not absent and needs_cuda and not torch.cuda.is_available():
        absent = "needs a CUDA GPU"
    return Variant(name, "peer", None if absent else lambda: make()(), note, absent)


def _trl_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    function = importlib.import_module("trl.kernels").ChunkedLogProbFunction
    logp, entropy, *_ = function.apply(
        hidden, weight, None, targets, 1.0, TRL_VOCABULARY_CHUNK, None, 1.0, ("entropy",)
    )
    return logp, entropy


def _liger_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    function = importlib.import_module("liger_kernel.ops").LigerFusedLinearScaledCrossEntropyFunction
    nll, entropy = function.apply(hidden, weight, targets, 1.0, -100, 1, True)
    return -nll, entropy


def _verl_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    module = importlib.import_module("verl.utils.kernel.linear_cross_entropy")
    logp, entropy = module.linear_cross_entropy(hidden, weight, targets, 1.0, "none")
    return logp, entropy


SCORERS: dict[str, tuple[str, Callable[..., tuple[Tensor, Tensor]], bool]] = {
    "TRL chunked": ("trl", _trl_scores, False),
    "Liger scaled CE": ("liger-kernel", _liger_scores, False),
    "verl linear CE": ("verl", _verl_scores, True),
}
"""Log-prob and entropy from hidden states: package, function, whether only on CUDA."""


def scoring_peers(batch: Batch) -> list[Variant]:
    """Log-probs (and entropy) without a gradient."""
    hidden, weight, targets = batch.hidden_TD, batch.weight_VD, batch.targets_T

    def scorer(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], Arm]:
        @torch.no_grad()
        def run() -> Outputs:
            logp, entropy = function(hidden, weight, targets)
            return {"logp": logp, "entropy": entropy}

        return lambda: plain(run)

    found = [
        peer(package, name, scorer(function), needs_cuda=needs_cuda)
        for name, (package, function, needs_cuda) in SCORERS.items()
    ]
    return [
        *found,
        peer("cut-cross-entropy", "CCE", lambda: plain(_cce_scores(batch)), NO_ENTROPY, needs_cuda=True),
        *_torch_linear_ce(lambda options: plain(_torch_scores(batch, options)), NO_ENTROPY),
    ]


def _cce_scores(batch: Batch) -> Callable[[], Outputs]:
    function = importlib.import_module("cut_cross_entropy").linear_cross_entropy

    @torch.no_grad()
    def run() -> Outputs:
        return {"logp": -function(batch.hidden_TD, batch.weight_VD, batch.targets_T, reduction="none").float()}

    return run


def _torch_scores(batch: Batch, options: Any) -> Callable[[], Outputs]:
    @torch.no_grad()
    def run() -> Outputs:
        nll = torch.nn.functional.linear_cross_entropy(
            batch.hidden_TD, batch.weight_VD, batch.targets_T, reduction="none", options=options
        )
        return {"logp": -nll}

    return run


def _torch_linear_ce(make: Callable[[Any], Arm], note: str) -> list[Variant]:
    """torch's own chunked linear cross-entropy, with the settings that it picks itself."""
    name = "torch linear_cross_entropy"
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return [Variant(name, "peer", None, note, f"torch {torch.__version__} does not have it")]
    return [Variant(name, "peer", make(torch.nn.LinearCrossEntropyOptions()), note)]


def grpo_peers(batch: Batch, *, frozen: bool) -> list[Variant]:
    """GRPO's loss and the gradients of hidden states and head."""

    def two_step(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], Arm]:
        def run() -> Outputs:
            hidden, weight = batch.leaves(frozen=frozen)
            logp, entropy = function(hidden, weight, batch.targets_T)
            entropy.detach()
            terms = clip_loss(logp, batch.old_logp_T, batch.ref_logp_T, batch.advantage_T)
            return backward(terms.mean(), hidden, weight)

        return lambda: plain(run)

    found = [
        peer(package, f"{name} + loss", two_step(function), needs_cuda=needs_cuda)
        for name, (package, function, needs_cuda) in SCORERS.items()
    ]
    return [*found, peer("liger-kernel", "Liger fused GRPO", lambda: plain(_liger_grpo(batch, frozen)), NO_ENTROPY)]


def _liger_grpo(batch: Batch, frozen: bool) -> Callable[[], Outputs]:
    module = importlib.import_module("liger_kernel.chunked_loss.grpo_loss")
    function = module.LigerFusedLinearGRPOLoss(
        beta=KL_COEF, epsilon_low=CLIP, epsilon_high=CLIP, loss_type="dapo", compiled=torch.cuda.is_available()
    )
    targets = batch.padded(batch.targets_T)
    mask, old, ref = torch.ones_like(targets), batch.padded(batch.old_logp_T), batch.padded(batch.ref_logp_T)

    def run() -> Outputs:
        hidden, weight = batch.leaves(frozen=frozen)
        loss, _ = function(
            batch.padded(hidden),
            weight,
            targets,
            mask,
            batch.advantage_N,
            ref_per_token_logps=ref,
            old_per_token_logps=old,
        )
        return backward(loss, hidden, weight)

    return run


def nll_peers(batch: Batch) -> list[Variant]:
    """Cross-entropy (the mean over tokens) and the gradients of hidden states and head."""

    def fused(loss_of: Callable[[Tensor, Tensor], Tensor]) -> Arm:
        def run() -> Outputs:
            hidden, weight = batch.leaves()
            return backward(loss_of(hidden, weight), hidden, weight)

        return plain(run)

    def liger() -> Arm:
        module = importlib.import_module("liger_kernel.transformers.functional")
        return fused(
            lambda hidden, weight: module.liger_fused_linear_cross_entropy(
                hidden, weight, batch.targets_T, accum_dtype=torch.float32
            )
        )

    def cce() -> Arm:
        function = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        return fused(lambda hidden, weight: function(hidden, weight, batch.targets_T))

    def quack() -> Arm:
        function = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
        return fused(lambda hidden, weight: function(hidden, weight, batch.targets_T))

    def of_torch(options: Any) -> Arm:
        function = getattr(torch.nn.functional, "linear_cross_entropy")  # noqa: B009 torch 2.11 has none
        return fused(lambda hidden, weight: function(hidden, weight, batch.targets_T, options=options))

    return [
        peer("liger-kernel", "Liger fused linear CE", liger, NO_ENTROPY, needs_cuda=True),
        peer("cut-cross-entropy", "CCE", cce, NO_ENTROPY + ", leaves out small gradients", needs_cuda=True),
        peer("quack-kernels", "quack chunked CE", quack, NO_ENTROPY, needs_cuda=True),
        *_torch_linear_ce(of_torch, NO_ENTROPY),
    ]
