"""Inputs for the ops that read hidden states and a head, the float64 reference, and the same in plain torch."""

# T packed tokens, N sequences, D model, V vocabulary

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.harness import Outputs
from r1fast.kernels.grpo_loss import PolicyLoss

CLIP, KL_COEF = 0.2, 0.04
GRPO = PolicyLoss(clip_low=CLIP, clip_high=CLIP, kl="k3", kl_coef=KL_COEF, aggregate="token_mean")
NLL = PolicyLoss(objective="nll", kl="none", aggregate="token_mean")
CHUNK_BYTES = 256 << 20  # of the reference's float64 logits
LOGIT_STD = 3.0


@dataclass(frozen=True)
class Batch:
    """Sequences of equal length, as the peers that want [N, T / N] need them; every token counts."""

    hidden_TD: Tensor
    weight_VD: Tensor
    targets_T: Tensor
    advantage_N: Tensor
    advantage_T: Tensor
    cu_seqlens: Tensor
    old_logp_T: Tensor
    ref_logp_T: Tensor

    def padded(self, values_T: Tensor) -> Tensor:
        """[N, T / N, ...]."""
        return values_T.reshape(len(self.advantage_N), -1, *values_T.shape[1:])

    def leaves(self, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """Hidden states and head, new leaves that share memory; a frozen head needs no gradient."""
        return self.hidden_TD.detach().requires_grad_(), self.weight_VD.detach().requires_grad_(not frozen)


def head_batch(
    num_tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: str, num_sequences: int = 8
) -> Batch:
    """Logits of standard deviation 3, old and reference log-probs close to the current ones."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    hidden = normal(num_tokens, width).to(dtype)
    weight = (normal(vocabulary, width) * (LOGIT_STD / width**0.5)).to(dtype)
    targets = torch.randint(vocabulary, (num_tokens,), generator=generator, device=device)
    logp, _ = scores(hidden, weight, targets, dtype=torch.float32)
    advantage = normal(num_sequences)
    return Batch(
        hidden,
        weight,
        targets,
        advantage,
        advantage.repeat_interleave(num_tokens // num_sequences),
        torch.linspace(0, num_tokens, num_sequences + 1, device=device).long(),
        logp + 0.2 * normal(num_tokens),
        logp + 0.2 * normal(num_tokens),
    )


def scores(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy, a chunk of tokens at a time: the definition, written apart from the kernels."""
    parts = []
    weight_DV = weight_VD.detach().to(dtype).T
    for chunk in token_chunks(len(hidden_TD), len(weight_VD)):
        log_p = torch.log_softmax(hidden_TD[chunk].detach().to(dtype) @ weight_DV, 1)
        logp = log_p.gather(1, targets_T[chunk, None])[:, 0]
        parts.append((logp, -(log_p.exp() * log_p).sum(1)))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def token_chunks(num_tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (8 * vocabulary))
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def clip_loss(logp_T: Tensor, old_T: Tensor, ref_T: Tensor, advantage_T: Tensor) -> Tensor:
    """GRPO's loss a token, as its authors' followers write it: clip, k3 (DeepSeekMath eq. 3 and 4)."""
    ratio_T = (logp_T - old_T).exp()
    clipped_T = ratio_T.clamp(1 - CLIP, 1 + CLIP)
    d_T = ref_T - logp_T
    return -torch.minimum(ratio_T * advantage_T, clipped_T * advantage_T) + KL_COEF * (d_T.exp() - d_T - 1)


def reference_gradients(batch: Batch, *, nll: bool, frozen: bool) -> Outputs:
    """Loss and gradients in float64, a chunk of tokens at a time."""
    advantage_T = batch.advantage_T.double()
    weight_VD = batch.weight_VD.detach().double().requires_grad_(not frozen)
    total, dhidden = torch.zeros((), dtype=torch.float64, device=weight_VD.device), []
    for chunk in token_chunks(len(batch.hidden_TD), len(weight_VD)):
        hidden = batch.hidden_TD[chunk].detach().double().requires_grad_()
        logp = torch.log_softmax(hidden @ weight_VD.T, 1).gather(1, batch.targets_T[chunk, None])[:, 0]
        terms = -logp
        if not nll:
            old, ref = batch.old_logp_T[chunk].double(), batch.ref_logp_T[chunk].double()
            terms = clip_loss(logp, old, ref, advantage_T[chunk])
        loss = terms.sum() / len(batch.hidden_TD)
        loss.backward()
        total += loss.detach()
        assert hidden.grad is not None
        dhidden.append(hidden.grad)
    found = {"loss": total, "dhidden": torch.cat(dhidden)}
    if not frozen:
        assert weight_VD.grad is not None
        found["dweight"] = weight_VD.grad
    return found


def eager_loss(
    batch: Batch,
    hidden_TD: Tensor,
    weight_VD: Tensor,
    *,
    nll: bool = False,
    upcast: bool = True,
    entropy: bool = False,
) -> Tensor:
    """The whole loss with all logits in memory. `upcast`: to fp32, else they stay as they are. The entropy is for a
    metric, without a gradient."""
    logits_TV = hidden_TD @ weight_VD.T
    if upcast:
        logits_TV = logits_TV.float()
    log_p_TV = torch.log_softmax(logits_TV, 1)
    logp_T = log_p_TV.gather(1, batch.targets_T[:, None])[:, 0].float()
    if entropy:
        with torch.no_grad():
            (log_p_TV.exp() * log_p_TV).sum(1)
    terms_T = -logp_T if nll else clip_loss(logp_T, batch.old_logp_T, batch.ref_logp_T, batch.advantage_T)
    return terms_T.mean()


def backward(loss: Tensor, hidden_TD: Tensor, weight_VD: Tensor) -> Outputs:
    """The loss and the gradients of what needs one."""
    leaves = {"dhidden": hidden_TD, "dweight": weight_VD}
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    return {"loss": loss.detach(), **dict(zip(wanted, gradients, strict=True))}
