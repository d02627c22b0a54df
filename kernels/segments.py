"""Packed sequences: sums and extremes of per-token values over whole sequences, masked tokens left out."""

# T packed tokens, N sequences

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from r1fast.kernels.checks import describe, reads_values


class Segments:
    """Sequence n is tokens cu_seqlens[n] to cu_seqlens[n + 1]; empty ones are legal. `mask_T` True: the token counts.

    `keep_T`: the mask as numbers. `length_N`: unmasked tokens of each sequence, at least 1, to divide by; given where
    only a part of each sequence is here.
    """

    def __init__(
        self, cu_seqlens: Tensor, mask_T: Tensor | None, like_T: Tensor, length_N: Tensor | None = None
    ) -> None:
        self.mask_T = mask_T
        self.offsets = cu_seqlens.long()
        position_T = torch.arange(len(like_T), device=like_T.device)
        self.sequence_T = torch.searchsorted(self.offsets[1:], position_T, right=True)
        self.keep_T = self.masked(torch.ones_like(like_T))
        here_N = self.sum_of_each(self.keep_T) if length_N is None else length_N.to(like_T.dtype)
        self.length_N = here_N.clamp(min=1)

    def masked(self, values_T: Tensor) -> Tensor:
        """0 in masked places, whatever stands there."""
        return values_T if self.mask_T is None else torch.where(self.mask_T, values_T, 0.0)

    def sum_of_each(self, values_T: Tensor) -> Tensor:
        """[N], of values that are 0 where masked; the same bits every time, and a NaN stays in its sequence.

        In fp64: `segment_reduce` adds one value after another, which in fp32 costs a long sequence four digits.
        """
        total_N = torch.segment_reduce(values_T.double(), "sum", offsets=self.offsets, initial=0, unsafe=True)
        return total_N.to(values_T.dtype)

    def spread(self, values_N: Tensor) -> Tensor:
        """[T]: each token gets its sequence's value."""
        return values_N[self.sequence_T]

    def sum(self, values_T: Tensor) -> Tensor:
        """Over all unmasked tokens; booleans are counted."""
        return self.masked(values_T.to(self.keep_T.dtype)).sum()

    def extreme(self, values_T: Tensor, sign: int) -> Tensor:
        """Largest (sign 1) or smallest (-1) over unmasked tokens; the neutral infinity where there are none."""
        neutral = -sign * math.inf
        if not len(values_T):
            return torch.full((), neutral, dtype=values_T.dtype, device=values_T.device)
        if self.mask_T is not None:
            values_T = torch.where(self.mask_T, values_T, neutral)
        return values_T.amax() if sign > 0 else values_T.amin()


def check_segments(cu_seqlens: Tensor, num_sequences: int, device: torch.device) -> None:
    """Raises ValueError unless integer [N + 1] on `device`."""
    if (
        cu_seqlens.shape != (num_sequences + 1,)
        or cu_seqlens.dtype not in (torch.int32, torch.int64)
        or cu_seqlens.device != device
    ):
        raise ValueError(
            f"cu_seqlens must be int32 or int64 [{num_sequences + 1}] on {device} (one sequence per advantage), it is "
            f"{describe(cu_seqlens)}"
        )


def check_offsets(cu_seqlens: Tensor, num_tokens: int, check: bool) -> None:
    """ValueError unless rising from 0 to T, where values are read."""
    if not reads_values(cu_seqlens, check):
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != num_tokens or any(low > high for low, high in pairwise(bounds)):
        raise ValueError(
            f"cu_seqlens must rise from 0 to {num_tokens} (the tokens), it is {bounds[:4]} ... {bounds[-1]}"
        )
