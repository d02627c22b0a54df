"""`linear_grpo_loss`, forward and backward, from hidden states to the gradients of hidden states and head.

FLOPs: 3 products of 2 T D V (logits, dhidden, dweight), 2 with a frozen head. Bytes, the least: hidden states, head and
both gradients once each. `python -m bench.bench_linear_grpo [--quick] [--json FILE]`.
"""

# T packed tokens, D model, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.command import main
from bench.harness import Case, Figure, Measured, Outputs, Variant, Work, compiled, plain
from bench.heads import GRPO, NLL, Batch, backward, eager_loss, head_batch, reference_gradients
from bench.peers import grpo_peers, nll_peers
from bench.shapes import HEAD, SWEEP, TINY, Head
from r1fast.kernels.linear_grpo import linear_grpo_loss

OWN, OWN_300 = "linear_grpo_loss", "linear_grpo_loss, 300 MiB"
UPCAST, KEPT = "eager, logits to fp32", "eager, logits in bf16"
WIDE = "eager, product in fp32"
EAGER = "eager"
MIB = 1 << 20


def own(batch: Batch, *, nll: bool, frozen: bool, budget_bytes: int | None = None) -> Callable[[], Outputs]:
    def run() -> Outputs:
        hidden, weight = batch.leaves(frozen=frozen)
        loss, _ = linear_grpo_loss(
            hidden,
            weight,
            batch.targets_T,
            batch.advantage_N,
            batch.cu_seqlens,
            memory_budget_bytes=budget_bytes,
            old_logp_T=None if nll else batch.old_logp_T,
            ref_logp_T=None if nll else batch.ref_logp_T,
            denominator=float(len(hidden)),
            options=NLL if nll else GRPO,
        )
        return backward(loss, hidden, weight)

    return run


def eager(
    batch: Batch,
    loss_of: Callable[..., Tensor],
    *,
    nll: bool,
    frozen: bool,
    upcast: bool = False,
    entropy: bool = False,
    wide: bool = False,
) -> Callable[[], Outputs]:
    """`wide`: hidden states and head to fp32 first, the only eager way to logits that were never rounded to bf16."""

    def run() -> Outputs:
        hidden, weight = batch.leaves(frozen=frozen)
        given = (hidden.float(), weight.float()) if wide else (hidden, weight)
        return backward(loss_of(batch, *given, nll=nll, upcast=upcast, entropy=entropy), hidden, weight)

    return run


def products(batch: Batch, *, frozen: bool) -> Callable[[], Outputs]:
    """The products alone, of the library that torch calls, in the inputs' dtype."""
    hidden, weight = batch.hidden_TD, batch.weight_VD
    dlogits = torch.zeros(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)

    def run() -> Outputs:
        torch.mm(hidden, weight.T)
        torch.mm(dlogits, weight)
        if not frozen:
            torch.mm(dlogits.T, hidden)
        return {}

    return run


def eager_variants(batch: Batch, *, nll: bool, frozen: bool, low: bool) -> list[Variant]:
    """All logits at once; GRPO with the entropy, which ours always gives as a metric, and without."""
    call = partial(eager, batch, nll=nll, frozen=frozen)
    names = {UPCAST: True, KEPT: False} if low else {EAGER: False}
    found = []
    for name, upcast in names.items():
        less = "" if upcast or not low else ", no fp32 logits"
        found.append(Variant(name, "eager", plain(call(eager_loss, upcast=upcast)), f"no entropy{less}"))
        if not nll:
            run = call(eager_loss, upcast=upcast, entropy=True)
            found.append(Variant(f"{name}, with entropy", "eager", plain(run), less.removeprefix(", ")))
    if low:
        run = call(eager_loss, entropy=not nll, wide=True)
        found.append(Variant(WIDE, "eager", plain(run), "fp32 logits, as ours"))
    return found


def build(head: Head, device: str, *, nll: bool = False, frozen: bool = False, peers: bool = True) -> Work:
    dtype = getattr(torch, head.dtype)
    batch = head_batch(head.tokens, head.width, head.vocabulary, dtype, device)
    common = {"nll": nll, "frozen": frozen}
    variants = [Variant(OWN, "own", plain(own(batch, **common)))]
    if device == "cuda" and not frozen:
        variants.append(Variant(OWN_300, "own", plain(own(batch, **common, budget_bytes=300 * MIB))))
    low = dtype != torch.float32
    variants += eager_variants(batch, low=low, **common)
    if peers:  # a sweep has no time to compile
        run = partial(eager, batch, **common, upcast=low, entropy=not nll)
        variants.append(Variant("torch.compile", "compile", compiled(run, eager_loss)))
    if peers:
        variants += nll_peers(batch) if nll else grpo_peers(batch, frozen=frozen)
    name = f"{2 if frozen else 3} products"
    variants.append(Variant(name, "ceiling", lambda: products(batch, frozen=frozen)))
    gradient = 2e-2 if low else 1e-4  # bf16 gradients are rounded to 2^-9 of their values
    return Work(
        variants,
        lambda: reference_gradients(batch, nll=nll, frozen=frozen),
        {"loss": 1e-3 if low else 1e-4, "dhidden": gradient, "dweight": gradient},
        0 if frozen else 4 * head.vocabulary * head.width,
    )


def cpu_figures(measured: Measured, *, low: bool) -> list[Figure]:
    """Of time, against the same work (ours always gives the entropy, as a metric), and against less."""
    name = "bf16" if low else "fp32"
    limits = {UPCAST: 0.7, KEPT: 1.1} if low else {EAGER: 1.0}
    found = []
    for other, limit in limits.items():
        for against in (f"{other}, with entropy", other):
            found.append(Figure(f"{name}: time over '{against}'", measured.ratio(OWN, against), limit))
        memory = measured.over(OWN, other, "extra_bytes")
        found.append(Figure(f"{name}: peak extra memory over '{other}'", memory, 0.25))
    return found


def gpu_figures(measured: Measured, *, frozen: bool, peers: bool) -> list[Figure]:
    ceiling = "2 products" if frozen else "3 products"
    scratch = measured.value(OWN, "scratch_bytes")
    found = [Figure(f"time over {ceiling}", measured.ratio(OWN, ceiling), 1.25 if frozen else 1.2)]
    if not frozen:
        found.append(Figure("scratch, MiB", None if scratch is None else scratch / MIB, 600.0))
        found.append(Figure(f"time over {ceiling} with 300 MiB", measured.ratio(OWN_300, ceiling), 1.35))
    if peers:
        others = [name for name, row in measured.rows.items() if row["kind"] not in ("own", "ceiling")]
        for name in others:
            if measured.ratio(OWN, name) is not None:
                found.append(Figure(f"time over {name}'s", measured.ratio(OWN, name), 1.0))
                found.append(Figure(f"memory over {name}'s", measured.over(OWN, name, "extra_bytes"), 1.0))
    return found


def case(head: Head, device: str, *, nll: bool = False, frozen: bool = False, peers: bool = True) -> Case:
    work = "nll" if nll else "grpo"
    num_products = 2 if frozen else 3
    low = head.dtype != "float32"
    judged = head in HEAD[device] and (device == "cuda" or not nll)
    figures = partial(gpu_figures, frozen=frozen, peers=peers)
    if device == "cpu":
        figures = partial(cpu_figures, low=low)
    return Case(
        f"{work}{', frozen head' if frozen else ''}, {head.label}",
        head.shape,
        head.dtype,
        num_products * 2.0 * head.tokens * head.width * head.vocabulary,
        (2.0 * head.tokens + (1 if frozen else 2) * head.vocabulary) * head.width * head.element_bytes,
        partial(build, head, device, nll=nll, frozen=frozen, peers=peers),
        figures if judged else (lambda measured: []),
    )


def cases(device: str, size: str = "full") -> Iterator[Case]:
    if size == "tiny":
        yield case(TINY["float32"], device)
        yield case(TINY["bfloat16"], device, frozen=True)
        yield case(TINY["bfloat16"], device, nll=True)
        return
    for head in HEAD[device]:
        yield case(head, device)
    if device == "cuda":
        yield case(HEAD["cuda"][0], device, frozen=True)
    for head in HEAD[device] if size == "full" else ():
        yield case(head, device, nll=True)
    for head in SWEEP[device] if size == "full" else ():
        yield case(head, device, peers=False)


if __name__ == "__main__":
    main("bench.bench_linear_grpo", cases)
