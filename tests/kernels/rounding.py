"""The unit of a kernel's output dtype, for tolerances (design rule 18)."""

from __future__ import annotations

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WIDE = torch.float32 if INTERPRETED else torch.float64
"""The widest dtype that the path under test takes: fp64 tensors never reach a Triton kernel."""


def slack(dtype: torch.dtype) -> float:
    """Relative error beyond rule 18: Triton's interpreter truncates to bf16, where hardware and torch round."""
    return 2**-8 if INTERPRETED and dtype == torch.bfloat16 else 0.0
