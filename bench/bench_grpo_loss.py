"""`grpo_loss` from log-probs: loss, metrics and the gradient of the log-probs.

Bytes, the least: three vectors of log-probs read, a gradient written, 16 a token. At 64k tokens that is 1 MiB, so what
counts is the number of launches. `python -m bench.bench_grpo_loss [--quick] [--json FILE]`.
"""

# T packed tokens, N sequences

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.command import main
from bench.harness import Case, Figure, Measured, Outputs, Variant, Work, compiled, plain
from bench.heads import GRPO, clip_loss
from r1fast.kernels.grpo_loss import grpo_loss

OWN, FORWARD, COPY = "grpo_loss", "grpo_loss, forward", "copy of as many bytes"
JUDGED = 65536
TOKENS = {"cuda": (JUDGED, 4096, 524288), "cpu": (JUDGED,)}
SEQUENCE = 256  # tokens of one


def mean_loss(logp: Tensor, old: Tensor, ref: Tensor, advantage: Tensor) -> Tensor:
    return clip_loss(logp, old, ref, advantage).mean()


def build(num_tokens: int, device: str) -> Work:
    generator = torch.Generator(device).manual_seed(0)

    def normal(size: int, scale: float) -> Tensor:
        return torch.randn(size, generator=generator, device=device) * scale

    logp = -normal(num_tokens, 1.0).abs()
    old, ref = logp + normal(num_tokens, 0.2), logp + normal(num_tokens, 0.2)
    length = min(SEQUENCE, num_tokens)
    advantage = normal(num_tokens // length, 1.0)
    cu_seqlens = torch.arange(num_tokens // length + 1, device=device, dtype=torch.int32) * length
    spread = advantage.repeat_interleave(length)

    call = partial(
        grpo_loss,
        advantage_N=advantage,
        cu_seqlens=cu_seqlens,
        old_logp_T=old,
        ref_logp_T=ref,
        denominator=float(num_tokens),
        options=GRPO,
    )

    def own() -> Outputs:
        leaf = logp.detach().requires_grad_()
        loss, _ = call(leaf)
        return {"loss": loss.detach(), "dlogp": torch.autograd.grad(loss, leaf)[0]}

    @torch.no_grad()
    def forward() -> Outputs:
        return {"loss": call(logp)[0]}

    def in_torch(loss_of: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Callable[[], Outputs]:
        def run() -> Outputs:
            leaf = logp.detach().to(dtype).requires_grad_()
            loss = loss_of(leaf, old.to(dtype), ref.to(dtype), spread.to(dtype))
            return {"loss": loss.detach(), "dlogp": torch.autograd.grad(loss, leaf)[0]}

        return run

    source, target = (torch.zeros(2 * num_tokens, device=device) for _ in range(2))

    def copy() -> Outputs:
        target.copy_(source)
        return {}

    variants = [
        Variant(OWN, "own", plain(own)),
        Variant(FORWARD, "own", plain(forward), "the gradient is known then"),
        Variant("eager", "eager", plain(in_torch(mean_loss)), "no metrics"),
        Variant("torch.compile", "compile", compiled(in_torch, mean_loss), "no metrics"),
        Variant(COPY, "ceiling", plain(copy)),
    ]
    return Work(variants, in_torch(mean_loss, torch.float64), {"loss": 1e-5, "dlogp": 1e-5})


def figures(measured: Measured) -> list[Figure]:
    return [
        Figure("launches of loss, metrics and gradient", measured.value(FORWARD, "launches"), 1.0),
        Figure("time over eager's", measured.ratio(OWN, "eager"), 1.0),
        Figure("time over torch.compile's", measured.ratio(OWN, "torch.compile"), 1.0),
    ]


def case(num_tokens: int, device: str) -> Case:
    return Case(
        f"T={num_tokens}",
        {"T": num_tokens},
        "float32",
        0.0,
        16.0 * num_tokens,
        partial(build, num_tokens, device),
        figures if device == "cuda" and num_tokens == JUDGED else (lambda measured: []),
        count_launches=True,
    )


def cases(device: str, size: str = "full") -> Iterator[Case]:
    for num_tokens in (64,) if size == "tiny" else TOKENS[device] if size == "full" else TOKENS[device][:1]:
        yield case(num_tokens, device)


if __name__ == "__main__":
    main("bench.bench_grpo_loss", cases)
