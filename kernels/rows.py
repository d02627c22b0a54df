"""The maths of rows of logits in plain torch, in place on blocks that stay in the cache: the path without Triton.

z = softcap(logits) / temperature;  lse = logsumexp(z),  logp = z_target - lse,  H = lse - sum_j p_j z_j
dz_j = g (1[j = target] - p_j) + l p_j - h p_j ((z_j - lse) + H)     with g, l, h the gradients of logp, lse, H
"""

# T packed tokens, V vocabulary, B the rows of one block

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from r1fast.kernels.checks import accumulator

# exp(FLOOR) is 0 in every dtype here and 0 * FLOOR is 0, where 0 * -inf would be NaN.
FLOOR = -1e4


class Scaling(NamedTuple):
    """How logits become z."""

    inverse_temperature: float | Tensor
    """A number, or [T] in the accumulator's dtype."""
    softcap: float | None

    @classmethod
    def of(cls, temperature: float, temperature_T: Tensor | None, softcap: float | None, dtype: torch.dtype) -> Scaling:
        """`temperature_T` counts where it is given; `dtype` is the accumulator's."""
        inverse = 1 / temperature if temperature_T is None else temperature_T.to(dtype).reciprocal()
        # a kernel's whole number would be another type of argument: another binary
        return cls(inverse, None if softcap is None else float(softcap))

    def select(self, index: slice | Tensor) -> Scaling:
        """That of some of the tokens."""
        inverse = self.inverse_temperature
        return Scaling(inverse[index] if isinstance(inverse, Tensor) else inverse, self.softcap)

    def cap_(self, logits_BV: Tensor, *, want_factor: bool = False) -> Tensor | None:
        """The soft cap, in place; its derivative 1 - tanh^2 where wanted, None without a cap."""
        if self.softcap is None:
            return None
        logits_BV.div_(self.softcap).tanh_()
        factor_BV = (logits_BV * logits_BV).neg_().add_(1.0) if want_factor else None
        logits_BV.mul_(self.softcap)
        return factor_BV

    def heat_(self, values_BV: Tensor) -> None:
        """Over the temperature, in place."""
        if isinstance(self.inverse_temperature, Tensor):
            values_BV.mul_(self.inverse_temperature[:, None])
        elif self.inverse_temperature != 1.0:
            values_BV.mul_(self.inverse_temperature)


class Rows(NamedTuple):
    """Per-token results, and the two statistics that backward needs: lse = row_max / temperature + log_sum.

    They are kept apart because exp(z - lse) loses digits where |lse| is large, and exp(z - max z) does not.
    `row_max` is the largest capped logit, before the temperature. fp32, or fp64 for fp64 inputs.
    """

    logp: Tensor
    row_max: Tensor
    log_sum: Tensor
    entropy: Tensor | None

    @classmethod
    def empty(cls, num_tokens: int, like: Tensor, *, entropy: bool) -> Rows:
        """Uninitialised, in the accumulator dtype of `like` and on its device."""
        dtype = accumulator(like.dtype)
        logp, row_max, log_sum, *more = (
            torch.empty(num_tokens, dtype=dtype, device=like.device) for _ in range(4 if entropy else 3)
        )
        return cls(logp, row_max, log_sum, more[0] if more else None)

    def select(self, index: slice | Tensor) -> Rows:
        """Those of some of the tokens; a slice is a view."""
        return Rows(*(None if field is None else field[index] for field in self))  # type: ignore[arg-type]

    def lse(self, scaling: Scaling) -> Tensor:
        return self.row_max * scaling.inverse_temperature + self.log_sum

    def outputs(self, scaling: Scaling) -> tuple[Tensor, ...]:
        """What a custom op returns of them: logp, lse, row_max, log_sum, entropy (empty where not asked for)."""
        entropy = self.logp.new_empty(0) if self.entropy is None else self.entropy
        return self.logp, self.lse(scaling), self.row_max, self.log_sum, entropy

    @staticmethod
    def fake_outputs(num_tokens: int, like: Tensor, *, entropy: bool) -> tuple[Tensor, ...]:
        """`outputs` without values, for shapes alone."""
        dtype = accumulator(like.dtype)
        return tuple(like.new_empty(n, dtype=dtype) for n in (*[num_tokens] * 4, num_tokens if entropy else 0))

    def put(self, logits_BV: Tensor, targets_B: Tensor, scaling: Scaling, spare_BV: Tensor | None = None) -> None:
        """Fill these rows from their logits, which turn into exp(z - max z). `spare_BV`: memory to work in."""
        scaling.cap_(logits_BV)
        torch.amax(logits_BV, 1, out=self.row_max)
        z_BV = logits_BV.sub_(self.row_max[:, None])
        scaling.heat_(z_BV)
        target_B = z_BV.gather(1, targets_B.long()[:, None])[:, 0]
        if self.entropy is None:
            sum_B = z_BV.exp_().sum(1)
        else:
            clamped_BV = torch.clamp(z_BV, min=FLOOR, out=torch.empty_like(z_BV) if spare_BV is None else spare_BV)
            sum_B = z_BV.exp_().sum(1)
            torch.sub(sum_B.log(), clamped_BV.mul_(z_BV).sum(1) / sum_B, out=self.entropy)
        torch.log(sum_B, out=self.log_sum)
        torch.sub(target_B, self.log_sum, out=self.logp)


class RowGrads(NamedTuple):
    """The gradients of logp, lse and entropy, [T], None for 0."""

    logp: Tensor | None
    lse: Tensor | None
    entropy: Tensor | None

    def select(self, index: slice | Tensor) -> RowGrads:
        """Those of some of the tokens."""
        return RowGrads(*(None if field is None else field[index] for field in self))

    def active(self, rows: Rows) -> Tensor:
        """Bool [T]: the rows where one is not 0. The others may hold NaN, which must not become NaN x 0."""
        active_T = torch.zeros_like(rows.log_sum, dtype=torch.bool)
        for grad_T in self:
            if grad_T is not None:
                active_T |= grad_T != 0
        return active_T

    def apply_(self, logits_BV: Tensor, targets_B: Tensor, rows: Rows, scaling: Scaling) -> None:
        """Turn a block's logits into their gradient. `self`, `rows` and `scaling` are the block's own."""
        factor_BV = scaling.cap_(logits_BV, want_factor=True)
        z_BV = logits_BV.sub_(rows.row_max[:, None])
        scaling.heat_(z_BV)
        heat = scaling.inverse_temperature
        zero_B = torch.zeros_like(rows.log_sum)
        logp_B = zero_B if self.logp is None else self.logp
        shared_B = (zero_B if self.lse is None else self.lse) - logp_B
        scale_B = torch.exp(-rows.log_sum) * heat
        if self.entropy is None:
            z_BV.exp_().mul_((shared_B * scale_B)[:, None])
        else:
            assert rows.entropy is not None
            constant_B = shared_B + self.entropy * (rows.log_sum - rows.entropy)
            e_BV = z_BV.clamp_(min=FLOOR).exp()
            z_BV.mul_((-self.entropy * scale_B)[:, None]).add_((constant_B * scale_B)[:, None]).mul_(e_BV)
        z_BV.scatter_add_(1, targets_B.long()[:, None], (logp_B * heat)[:, None])
        if factor_BV is not None:
            z_BV.mul_(factor_BV)


def blocks(num_rows: int, num_columns: int, device: torch.device) -> list[slice]:
    """Rows cut so that a block's passes over fp32 [B, V] run in a core's cache; long enough to fill a GPU."""
    size = block_rows(num_columns, device)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def block_rows(num_columns: int, device: torch.device) -> int:
    """Rows of one block: 2^17 elements on the CPU (two fp32 buffers of 512 KiB), 2^23 elsewhere; at least one row."""
    return int(max(1, (1 << (17 if device.type == "cpu" else 23)) // num_columns))
