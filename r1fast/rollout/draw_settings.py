"""How the rows of a decode batch are drawn: a call's numbers, at addresses that stay because CUDA graphs read them."""

# R rows, X tokens that may not be drawn

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from r1fast.sampling import Sampling


@dataclass(frozen=True)
class DrawSettings:
    """What `sample` is told of each row, all [R], and `bad`: buffers of banned tokens, by their lengths."""

    temperature_R: Tensor
    top_k_R: Tensor
    top_p_R: Tensor
    min_p_R: Tensor
    bad: dict[int, Tensor] = field(default_factory=dict)

    @staticmethod
    def allocate(rows: int, device: torch.device) -> DrawSettings:
        temperature, top_p, min_p = (torch.ones(rows, device=device) for _ in range(3))
        return DrawSettings(temperature, torch.zeros(rows, dtype=torch.int32, device=device), top_p, min_p)

    def fill(self, sampling: Sampling) -> None:
        """Every row from now on is drawn so."""
        self.temperature_R.fill_(sampling.temperature)
        self.top_k_R.fill_(sampling.top_k)
        self.top_p_R.fill_(sampling.top_p)
        self.min_p_R.fill_(sampling.min_p)
        if size := num_bad(sampling):
            buffer = self.bad.setdefault(size, torch.empty(size, dtype=torch.int32, device=self.top_k_R.device))
            absent = [-1] * (size - len(sampling.bad_token_ids))
            buffer.copy_(torch.tensor([*sampling.bad_token_ids, *absent], dtype=torch.int32))

    def rows(self, first: int, count: int) -> DrawSettings:
        """Views of some rows."""
        part = slice(first, first + count)
        return DrawSettings(
            self.temperature_R[part], self.top_k_R[part], self.top_p_R[part], self.min_p_R[part], self.bad
        )

    def banned(self, sampling: Sampling, num_generated_R: Tensor, min_tokens_R: Tensor, eos: Tensor) -> Tensor | None:
        """What may not be drawn now, int32 [R, X] with -1 for nothing: the same operations in every step."""
        columns = []
        if size := num_bad(sampling):
            columns.append(self.bad[size].expand(len(num_generated_R), -1))
        if sampling.min_tokens and len(eos):
            columns.append(torch.where((num_generated_R < min_tokens_R)[:, None], eos, -1))
        return torch.cat(columns, 1).contiguous() if columns else None


def num_bad(sampling: Sampling) -> int:
    """Length of the buffer of banned tokens: a power of two, so that few lengths serve all calls; 0 without any."""
    count = len(sampling.bad_token_ids)
    return 1 << (count - 1).bit_length() if count else 0
