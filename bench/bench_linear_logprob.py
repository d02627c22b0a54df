"""`linear_logprob` without a gradient: how old and reference log-probs are scored, with entropy.

FLOPs: one product of 2 T D V. Bytes, the least: hidden states and head once.
`python -m bench.bench_linear_logprob [--quick] [--json FILE]`.
"""

# T packed tokens, D model, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.command import main
from bench.harness import Case, Figure, Measured, Outputs, Variant, Work, compiled, plain
from bench.heads import Batch, head_batch, scores
from bench.peers import scoring_peers
from bench.shapes import HEAD, SWEEP, TINY, Head
from r1fast.kernels.linear_logprob import linear_logprob

OWN, CEILING = "linear_logprob", "one product"
MIB = 1 << 20


def own(batch: Batch, *, entropy: bool) -> Callable[[], Outputs]:
    @torch.no_grad()
    def run() -> Outputs:
        found = linear_logprob(batch.hidden_TD, batch.weight_VD, batch.targets_T, entropy=entropy)
        if found.entropy is None:
            return {"logp": found.logp}
        return {"logp": found.logp, "entropy": found.entropy}

    return run


def eager(hidden: Tensor, weight: Tensor, targets: Tensor, upcast: bool) -> Outputs:
    logits = hidden @ weight.T
    log_p = torch.log_softmax(logits.float() if upcast else logits, 1)
    return {"logp": log_p.gather(1, targets[:, None])[:, 0], "entropy": -(log_p.exp() * log_p).sum(1)}


def in_torch(batch: Batch, score: Callable[..., Outputs], *, upcast: bool) -> Callable[[], Outputs]:
    @torch.no_grad()
    def run() -> Outputs:
        return score(batch.hidden_TD, batch.weight_VD, batch.targets_T, upcast)

    return run


def product(batch: Batch) -> Callable[[], Outputs]:
    def run() -> Outputs:
        torch.mm(batch.hidden_TD, batch.weight_VD.T)
        return {}

    return run


def build(head: Head, device: str, *, peers: bool = True) -> Work:
    dtype = getattr(torch, head.dtype)
    batch = head_batch(head.tokens, head.width, head.vocabulary, dtype, device)
    low = dtype != torch.float32
    first = "eager, logits to fp32" if low else "eager"
    variants = [
        Variant(OWN, "own", plain(own(batch, entropy=True))),
        Variant(f"{OWN}, no entropy", "own", plain(own(batch, entropy=False)), "no entropy"),
        Variant(first, "eager", plain(in_torch(batch, eager, upcast=low))),
    ]
    if low:
        run = in_torch(batch, eager, upcast=False)
        variants.append(Variant("eager, logits in bf16", "eager", plain(run), "no fp32 logits"))
    if peers:  # a sweep has no time to compile
        variants.append(Variant("torch.compile", "compile", compiled(partial(in_torch, batch, upcast=low), eager)))
        variants += scoring_peers(batch)
    variants.append(Variant(CEILING, "ceiling", plain(product(batch))))

    def reference() -> Outputs:
        logp, entropy = scores(batch.hidden_TD, batch.weight_VD, batch.targets_T)
        return {"logp": logp, "entropy": entropy}

    return Work(variants, reference, {"logp": 1e-4, "entropy": 1e-4})


def figures(measured: Measured, *, device: str, peers: bool) -> list[Figure]:
    extra = measured.value(OWN, "extra_bytes")
    limit = 300.0 if device == "cuda" else 64.0
    found = [Figure("extra memory, MiB", None if extra is None else extra / MIB, limit)]
    if device == "cuda":
        found.append(Figure("time over one product", measured.ratio(OWN, CEILING), 1.15))
        for name, row in measured.rows.items():
            if peers and row["kind"] not in ("own", "ceiling") and measured.ratio(OWN, name) is not None:
                found.append(Figure(f"time over {name}'s", measured.ratio(OWN, name), 1.0))
                found.append(Figure(f"memory over {name}'s", measured.over(OWN, name, "extra_bytes"), 1.0))
    return found


def case(head: Head, device: str, *, peers: bool = True) -> Case:
    return Case(
        f"scoring, {head.label}",
        head.shape,
        head.dtype,
        2.0 * head.tokens * head.width * head.vocabulary,
        float(head.tokens + head.vocabulary) * head.width * head.element_bytes,
        partial(build, head, device, peers=peers),
        partial(figures, device=device, peers=peers) if head not in TINY.values() else (lambda measured: []),
    )


def cases(device: str, size: str = "full") -> Iterator[Case]:
    for head in TINY.values() if size == "tiny" else HEAD[device]:
        yield case(head, device)
    for head in SWEEP[device] if size == "full" else ():
        yield case(head, device, peers=False)


if __name__ == "__main__":
    main("bench.bench_linear_logprob", cases)
