"""Draws one token for each row of logits: temperature, banned tokens, top-k, top-p, min-p; random numbers by counter.

The tokens are in vocabulary order and the random number is Philox-4x32-10's (r1fast/sampling.py). Weights are summed
as integers of 2^-43 of the largest, so that a row's result is bitwise the same in any batch, on any number of threads
and by any instruction set.
"""

# R rows, V vocab, B banned tokens

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from r1fast.ops.checks import DTYPES, check_tensor, describe, pointer
from r1fast.ops.compiled import compiled_op
from r1fast.ops.extension import INSTALL_CUDA, cuda_targets, extension
from r1fast.ops.run import run

MAX_VOCAB = 1 << 20
COLUMNS = ("token_R", "logp_R", "log_kept_mass_R", "entropy_R", "status_R")  # of Drawn
NOTHING_TO_DRAW = 2
FAULTS = {
    1: "a logit is NaN or +inf",
    NOTHING_TO_DRAW: "no token can be drawn: each is -inf or banned",
    4: "temperature, top_k, top_p, min_p or a banned token is out of range",
}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What `sample` writes, at addresses that stay: a CUDA graph may hold them. Natural logarithms.

    A row that is faulty (status 1, 2 or 4: FAULTS) has token -1 and NaN numbers.
    """

    token_R: Tensor  # int32
    logp_R: Tensor  # fp32, of softmax(logits / temperature) over the whole vocabulary
    log_kept_mass_R: Tensor  # fp32, of the tokens that might be drawn; 0 where nothing was cut
    entropy_R: Tensor  # fp32, over the whole vocabulary
    status_R: Tensor  # int32

    @classmethod
    def allocate(cls, rows: int, device: torch.device | str = "cpu") -> Drawn:
        """For `rows` rows of logits. Raises ValueError."""
        if rows < 0:
            raise ValueError(f"rows = {rows} must not be negative")

        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(rows, dtype=dtype, device=device)

        return cls(
            token_R=column(torch.int32),
            logp_R=column(torch.float32),
            log_kept_mass_R=column(torch.float32),
            entropy_R=column(torch.float32),
            status_R=column(torch.int32),
        )

    def rows(self, first: int, count: int) -> Drawn:
        """Views of some rows."""
        columns = {name: column[first : first + count] for name, column in vars(self).items()}
        return Drawn(**columns)

    def check(self) -> None:
        """Raises ValueError that names the faulty rows. On CUDA it waits for the device."""
        status = self.status_R.tolist()
        if any(status):
            found = []
            for number, text in FAULTS.items():
                rows = [row for row, fault in enumerate(status) if fault == number]
                if rows:
                    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
                    found.append(f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:8]))}{more}: {text}")
            raise ValueError(f"sample drew nothing for some rows: {'; '.join(found)}")


@compiled_op(writes=tuple(f"drawn.{column}" for column in COLUMNS))
def sample(
    logits_RV: Tensor,
    drawn: Drawn,
    *,
    temperature_R: Tensor,
    top_k_R: Tensor,
    top_p_R: Tensor,
    min_p_R: Tensor,
    key_R2: Tensor,
    sample_index_R: Tensor,
    position_R: Tensor,
    banned_RB: Tensor | None = None,
) -> None:
    """Fill `drawn` for `logits_RV` (bf16, fp16 or fp32, any row stride, V up to 2**20), which stays as it is.

    Cuts, in this order: the tokens of `banned_RB` (int32, padded by -1), all but the `top_k_R` (int32, 0: off) largest,
    all but the largest that have `top_p_R` (fp32, in (0, 1]) of the mass that is left, those of less than `min_p_R`
    (fp32, in [0, 1]) of the largest one's probability. What ties with the last that is kept is kept. `temperature_R`
    (fp32) 0 takes the largest logit that is not banned, the first of several, whatever the cuts; its numbers are those
    at temperature 1. `key_R2` int32 has the bits of Philox's key words, `position_R` and `sample_index_R` int32 are its
    counter. Of two tokens a weight ratio below 2^-44 counts as 0.

    A row whose logits are faulty says so in `drawn.status_R` and disturbs no other. A setting that is out of range
    raises ValueError on the CPU; on CUDA the row's status is 4, and `drawn.check()` tells.
    """
    device, rows = logits_RV.device, drawn.token_R.shape[0]
    num_banned = 0 if banned_RB is None else banned_RB.shape[-1]
    _check_logits(logits_RV, rows)
    columns = {
        "drawn.token_R": (drawn.token_R, torch.int32),
        "drawn.logp_R": (drawn.logp_R, torch.float32),
        "drawn.log_kept_mass_R": (drawn.log_kept_mass_R, torch.float32),
        "drawn.entropy_R": (drawn.entropy_R, torch.float32),
        "drawn.status_R": (drawn.status_R, torch.int32),
        "temperature_R": (temperature_R, torch.float32),
        "top_k_R": (top_k_R, torch.int32),
        "top_p_R": (top_p_R, torch.float32),
        "min_p_R": (min_p_R, torch.float32),
        "sample_index_R": (sample_index_R, torch.int32),
        "position_R": (position_R, torch.int32),
    }
    for name, (tensor, dtype) in columns.items():
        check_tensor(name, tensor, dtype, (rows,), device)
    check_tensor("key_R2", key_R2, torch.int32, (rows, 2), device)
    if banned_RB is not None:
        check_tensor("banned_RB", banned_RB, torch.int32, (rows, num_banned), device)
    params = extension().SampleParams(
        logits=logits_RV.data_ptr(),
        temperature=temperature_R.data_ptr(),
        top_k=top_k_R.data_ptr(),
        top_p=top_p_R.data_ptr(),
        min_p=min_p_R.data_ptr(),
        key=key_R2.data_ptr(),
        sample_index=sample_index_R.data_ptr(),
        position=position_R.data_ptr(),
        banned=pointer(banned_RB),
        token=drawn.token_R.data_ptr(),
        logp=drawn.logp_R.data_ptr(),
        log_kept_mass=drawn.log_kept_mass_R.data_ptr(),
        entropy=drawn.entropy_R.data_ptr(),
        status=drawn.status_R.data_ptr(),
        row_stride=logits_RV.stride(0),
        num_rows=rows,
        vocab=logits_RV.shape[1],
        num_banned=num_banned,
        dtype=DTYPES[logits_RV.dtype],
    )
    run("sample", params, logits_RV)


def _check_logits(logits_RV: Tensor, rows: int) -> None:
    if logits_RV.ndim != 2 or logits_RV.dtype not in DTYPES or not 1 <= logits_RV.shape[1] <= MAX_VOCAB:
        raise ValueError(
            f"logits_RV must be [rows, 1 to {MAX_VOCAB}] of bfloat16, float16 or float32, it is {describe(logits_RV)}"
        )
    if logits_RV.shape[0] != rows:
        raise ValueError(f"logits_RV is {describe(logits_RV)}, drawn has {rows} rows: there must be as many")
    if logits_RV.shape[1] > 1 and logits_RV.stride(1) != 1:
        raise ValueError(f"rows of logits_RV must be contiguous, the strides are {logits_RV.stride()}")
    if logits_RV.is_cuda and not cuda_targets():
        raise RuntimeError(f"r1fast._C was built without its CUDA kernels: {INSTALL_CUDA}")
