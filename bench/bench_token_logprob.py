"""`token_logprob` with entropy, from logits: forward, and backward alone.

Bytes, the least: forward reads the logits once; backward reads them and writes their gradient. The ceiling is a copy
that moves as many bytes. `python -m bench.bench_token_logprob [--quick] [--json FILE]`.
"""

# T packed tokens, V vocabulary

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.command import main
from bench.harness import Arm, Case, Figure, Measured, Outputs, Variant, Work, plain
from bench.heads import LOGIT_STD, token_chunks
from bench.peers import peer
from bench.shapes import HEAD, TINY, Head
from r1fast.kernels.token_logprob import token_logprob

OWN, COPY, TWO_PASSES = "token_logprob", "copy of as many bytes", "TRL, two passes in torch"
Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
TOKENS = (1024, 2048, 4096, 16384, 32768)
VOCABULARIES = (128256, 151669)


def own(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    found = token_logprob(logits, targets, entropy=True)
    assert found.entropy is not None
    return found.logp, found.entropy


def eager(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(logits.float(), 1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)


def trl_one_pass(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = importlib.import_module("trl.trainer.utils").selective_log_softmax_and_entropy(
        logits[None], targets[None]
    )
    return found[0][0], found[1][0]


def trl_two_passes(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Its torch code, which its own Triton kernel replaced on GPUs in 1.16; what most trainers still do."""
    module: Any = importlib.import_module("trl.trainer.utils")
    supported = module._supports_trl_loss_kernel
    module._supports_trl_loss_kernel = lambda *args: False
    try:
        return module.selective_log_softmax(logits, targets), module.entropy_from_logits(logits)
    finally:
        module._supports_trl_loss_kernel = supported


def forward(score: Score, logits: Tensor, targets: Tensor) -> Arm:
    @torch.no_grad()
    def run() -> Outputs:
        logp, entropy = score(logits, targets)
        return {"logp": logp, "entropy": entropy}

    return plain(run)


def backward(score: Score, logits: Tensor, targets: Tensor, dlogp: Tensor, dentropy: Tensor) -> Arm:
    """Forward is made ready, untimed."""

    def arm() -> Callable[[], Outputs]:
        leaf = logits.detach().requires_grad_()
        logp, entropy = score(leaf, targets)
        grads = dlogp.to(logp.dtype), dentropy.to(entropy.dtype)
        return lambda: {"dlogits": torch.autograd.grad((logp, entropy), leaf, grads)[0]}

    return arm


def build(head: Head, device: str, *, is_backward: bool, peers: bool) -> Work:
    dtype = getattr(torch, head.dtype)
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.empty(head.tokens, head.vocabulary, dtype=dtype, device=device)
    logits.normal_(0, LOGIT_STD, generator=generator)
    targets = torch.randint(head.vocabulary, (head.tokens,), generator=generator, device=device)
    dlogp, dentropy = (torch.randn(head.tokens, generator=generator, device=device) for _ in range(2))
    make = partial(backward, dlogp=dlogp, dentropy=dentropy) if is_backward else forward

    def arm(score: Score) -> Arm:
        return make(score, logits, targets)

    variants = [
        Variant(OWN, "own", arm(own)),
        Variant("eager", "eager", arm(eager)),
    ]
    if peers:  # a sweep has no time to compile
        variants.append(Variant("torch.compile", "compile", lazily(arm)))
        variants.append(peer("trl", "TRL", lambda: arm(trl_one_pass), "one pass: its Triton kernel on a GPU"))
        variants.append(peer("trl", TWO_PASSES, lambda: arm(trl_two_passes)))
    half = head.tokens * head.vocabulary // (1 if is_backward else 2)
    variants.append(Variant(COPY, "ceiling", lambda: copy(logits, half)))

    def reference() -> Outputs:
        parts = []
        for chunk in token_chunks(head.tokens, head.vocabulary):
            leaf = logits[chunk].double().requires_grad_(is_backward)
            log_p = torch.log_softmax(leaf, 1)
            logp, entropy = log_p.gather(1, targets[chunk, None])[:, 0], -(log_p.exp() * log_p).sum(1)
            if is_backward:
                grads = dlogp[chunk].double(), dentropy[chunk].double()
                parts.append({"dlogits": torch.autograd.grad((logp, entropy), leaf, grads)[0].float()})
            else:
                parts.append({"logp": logp, "entropy": entropy})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    low = dtype != torch.float32
    return Work(variants, reference, {"logp": 1e-5, "entropy": 1e-5, "dlogits": 1e-2 if low else 1e-5})


def lazily(arm: Callable[[Score], Arm]) -> Arm:
    """torch.compile is loaded where it is first made ready."""
    known: list[Arm] = []

    def first() -> Callable[[], Outputs]:
        if not known:
            known.append(arm(torch.compile(eager, dynamic=False)))
        return known[0]()

    return first


def copy(like: Tensor, num_elements: int) -> Callable[[], Outputs]:
    """Reads and writes so many elements of the logits' dtype."""
    source, target = (torch.zeros(num_elements, dtype=like.dtype, device=like.device) for _ in range(2))

    def run() -> Outputs:
        target.copy_(source)
        return {}

    return run


def figures(measured: Measured, *, is_backward: bool) -> list[Figure]:
    share = measured.ratio(COPY, OWN)
    found = [Figure("share of the copy's bandwidth", share, 0.8 if is_backward else 0.85, at_least=True)]
    if not is_backward:
        found.append(Figure("times as fast as TRL's two passes", measured.ratio(TWO_PASSES, OWN), 10.0, at_least=True))
    return found


def case(head: Head, device: str, *, is_backward: bool, peers: bool = True) -> Case:
    judged = device == "cuda" and head in HEAD["cuda"]
    return Case(
        f"{'backward' if is_backward else 'forward'}, {head.dtype}, T={head.tokens} V={head.vocabulary}",
        {"T": head.tokens, "V": head.vocabulary},
        head.dtype,
        0.0,
        (2.0 if is_backward else 1.0) * head.tokens * head.vocabulary * head.element_bytes,
        partial(build, head, device, is_backward=is_backward, peers=peers),
        partial(figures, is_backward=is_backward) if judged else (lambda measured: []),
    )


def cases(device: str, size: str = "full") -> Iterator[Case]:
    for head in TINY.values() if size == "tiny" else HEAD[device]:
        yield case(head, device, is_backward=False)
        yield case(head, device, is_backward=True)
    if size == "full" and device == "cuda":
        sweep = [Head(tokens, 0, 151936, "bfloat16") for tokens in TOKENS]
        for head in [*sweep, *(Head(8192, 0, vocabulary, "bfloat16") for vocabulary in VOCABULARIES)]:
            yield case(head, device, is_backward=False, peers=False)
            yield case(head, device, is_backward=True, peers=False)


if __name__ == "__main__":
    main("bench.bench_token_logprob", cases)
