"""How far from the truth a kernel may be: design rule 18, and the units that it leaves open."""

from __future__ import annotations

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WIDE = torch.float32 if INTERPRETED else torch.float64
"""The widest dtype that the path under test takes: fp64 tensors never reach a Triton kernel."""


def slack(dtype: torch.dtype) -> float:
    """Relative error beyond rule 18: Triton's interpreter truncates to bf16, where hardware and torch round."""
    return 2**-8 if INTERPRETED and dtype == torch.bfloat16 else 0.0


def assert_rule_18(own: Tensor, same: Tensor, exact: Tensor, *, least_size: float = 0.0, what: object = "") -> None:
    """err(own, exact) <= 2 err(same, exact) + eps; `same` is the reference in the dtypes that `own` was given.

    eps is rounding at the largest value, 8 units of fp32 (sums) or half a unit of bf16 and fp16 (results alone), so
    that a reference which happens to be exact to the last bit asks for no more. `least_size`: of what the result is a
    sum of, where it cancels.
    """
    if not exact.numel():
        return
    exact = exact.double()
    size = max(least_size, float(exact.abs().max()))
    eps = torch.finfo(own.dtype).eps * (0.5 if own.dtype.itemsize == 2 else 8) + slack(own.dtype)
    error, error_of_same = (float((x.double().to(exact.device) - exact).abs().max()) for x in (own, same))
    allowed = 2 * error_of_same + eps * size
    assert error <= allowed, f"{what}: error {error:.3g}, the reference's {error_of_same:.3g}, size {size:.3g}"
