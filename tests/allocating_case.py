"""A bench for the test of peak memory: a variant that holds 96 MiB at its peak and returns 32 of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import Case, Outputs, Variant, Work, plain

MIB = 1 << 20


def run() -> Outputs:
    result = torch.ones(32 * MIB, dtype=torch.uint8)
    torch.ones(64 * MIB, dtype=torch.uint8)
    return {"x": result}


def cases(device: str, size: str = "full") -> Iterator[Case]:
    variants = [Variant("allocates", "own", plain(run))]
    yield Case("one", {}, "uint8", 0.0, 0.0, lambda: Work(variants, lambda: {}, {}))
