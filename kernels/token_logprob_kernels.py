"""Triton kernels of `token_logprob`: rows of logits to statistics, statistics to the gradient of the logits.

The maths is in `token_logprob`'s legend. Both read each logit once; neither has atomics or a barrier in its loop.
"""

# T packed tokens, V vocabulary

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1fast.kernels.checks import on_device
from r1fast.kernels.rows import RowGrads, Rows, Scaling

LOG2_E = tl.constexpr(1.4426950408889634)
FLOOR = tl.constexpr(-1e30)  # exp2 of it is 0, and 0 x FLOOR is 0 where 0 x -inf would be NaN

# One size for all vocabularies: 16 elements a thread keep 2 (bf16) or 4 (fp32) loads of 16 bytes in flight, and 32
# registers leave room for 2,048 threads on an SM. A smaller vocabulary masks the rest, which costs nothing that counts.
BLOCK_V = 4096
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def _tanh(x):
    """tanh to 2 units in the last place; PTX's tanh.approx has 11 bits, and libdevice does not run interpreted."""
    size = tl.abs(x)
    u = x * x
    series = -0.05390175316193116 + u * (0.02126335343640654 + u * -0.006525572154096361)
    near = size + size * u * (-0.3333333169525976 + u * (0.13333073813475438 + u * series))
    e = tl.exp2(size * (-2.0 * LOG2_E))
    y = tl.where(size < 0.5625, near, (1.0 - e) / (1.0 + e))
    return tl.where(x < 0, -y, y)


@triton.jit
def _tanh_slope(x):
    """1 - tanh^2, without the cancellation where tanh is near 1."""
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def _accumulate(x, top, total, weighted, heat, ENTROPY: tl.constexpr):
    """One more tile [R, VEC] into per-group running max, sum of e and sum of e (x - max): e = exp2((x - max) heat).

    A group is the VEC logits that a thread loads at once, so the loop has no exchange between threads, and rescaling
    costs one exp2 in VEC.
    """
    new_top = tl.maximum(top, tl.max(x, axis=1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing but -inf so far: -inf - -inf would be NaN
    d = x - base[:, None]
    if ENTROPY:
        d = tl.maximum(d, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp2(d * heat)
    step = top - base
    decay = tl.exp2(step * heat)
    if ENTROPY:
        weighted = decay * (weighted + tl.where(total > 0, step * total, 0.0)) + tl.sum(e * d, axis=1)
    total = decay * total + tl.sum(e, axis=1)
    return new_top, total, weighted


@triton.jit(do_not_specialize=["per_token"])
def _forward_kernel(
    logits_ptr,
    targets_ptr,
    temperature_ptr,  # [T] inverse temperatures, read if per_token
    logp_ptr,
    row_max_ptr,
    log_sum_ptr,
    entropy_ptr,
    vocabulary,
    stride_row,
    stride_column,
    inverse_temperature,
    per_token,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_row
    inverse_temperature = tl.where(
        per_token != 0, tl.load(temperature_ptr + row, mask=per_token != 0, other=1.0), inverse_temperature
    )
    heat = inverse_temperature * LOG2_E
    GROUPS: tl.constexpr = BLOCK // VEC
    column = tl.arange(0, GROUPS)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    top = tl.full([GROUPS], float("-inf"), tl.float32)
    total = tl.zeros([GROUPS], tl.float32)
    weighted = tl.zeros([GROUPS], tl.float32)
    num_full = vocabulary // BLOCK * BLOCK
    for start in range(0, num_full, BLOCK):  # no mask, so that every load is 16 bytes wide whatever V is
        x = tl.load(row_ptr + (start + column).to(tl.int64) * stride_column).to(tl.float32)
        if HAS_SOFTCAP:
            x = softcap * _tanh(x / softcap)
        top, total, weighted = _accumulate(x, top, total, weighted, heat, ENTROPY)
    if num_full < vocabulary:
        inside = num_full + column < vocabulary
        x = tl.load(row_ptr + (num_full + column).to(tl.int64) * stride_column, mask=inside, other=0.0).to(tl.float32)
        if HAS_SOFTCAP:
            x = softcap * _tanh(x / softcap)
        x = tl.where(inside, x, float("-inf"))
        top, total, weighted = _accumulate(x, top, total, weighted, heat, ENTROPY)

    row_max = tl.max(top, axis=0)
    step = top - tl.where(row_max == float("-inf"), 0.0, row_max)
    decay = tl.exp2(step * heat)
    row_total = tl.sum(decay * total, axis=0)
    log_sum = tl.log(row_total)
    target = tl.load(targets_ptr + row).to(tl.int64)
    known = (target >= 0) & (target < vocabulary)
    x_target = tl.load(row_ptr + target * stride_column, mask=known, other=float("nan")).to(tl.float32)
    if HAS_SOFTCAP:
        x_target = softcap * _tanh(x_target / softcap)
    tl.store(logp_ptr + row, (x_target - row_max) * inverse_temperature - log_sum)
    tl.store(row_max_ptr + row, row_max)
    tl.store(log_sum_ptr + row, log_sum)
    if ENTROPY:
        row_weighted = tl.sum(decay * (weighted + tl.where(total > 0, step * total, 0.0)), axis=0)
        tl.store(entropy_ptr + row, log_sum - row_weighted / row_total * inverse_temperature)


@triton.jit(do_not_specialize=["per_token", "has_logp", "has_lse"])
def _backward_kernel(
    out_ptr,
    logits_ptr,
    targets_ptr,
    temperature_ptr,
    row_max_ptr,
    log_sum_ptr,
    entropy_ptr,
    dlogp_ptr,
    dlse_ptr,
    dentropy_ptr,
    vocabulary,
    num_blocks,
    stride_row,
    stride_column,
    out_stride_row,
    out_stride_column,
    inverse_temperature,
    per_token,
    has_logp,
    has_lse,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    column = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocabulary
    column = column.to(tl.int64)
    inverse_temperature = tl.where(
        per_token != 0, tl.load(temperature_ptr + row, mask=per_token != 0, other=1.0), inverse_temperature
    )
    g = tl.load(dlogp_ptr + row, mask=has_logp != 0, other=0.0)
    shared = tl.load(dlse_ptr + row, mask=has_lse != 0, other=0.0) - g
    log_sum = tl.load(log_sum_ptr + row)
    active = (g != 0) | (shared != 0)
    h = 0.0
    if ENTROPY:
        h = tl.load(dentropy_ptr + row)
        active = active | (h != 0)
        shared += h * (log_sum - tl.load(entropy_ptr + row))
    # A row without a gradient is not read: it costs half, and may hold NaN, which must not become NaN x 0.
    inside_active = column < tl.where(active, vocabulary, 0)
    x = tl.load(logits_ptr + row * stride_row + column * stride_column, mask=inside_active, other=0.0).to(tl.float32)
    slope = inverse_temperature
    if HAS_SOFTCAP:
        slope = _tanh_slope(x / softcap) * inverse_temperature
        x = softcap * _tanh(x / softcap)
    d = (x - tl.load(row_max_ptr + row)) * inverse_temperature
    if ENTROPY:
        d = tl.maximum(d, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    p = tl.exp2(d * LOG2_E) * tl.exp(-log_sum)
    dz = p * (shared - h * d) if ENTROPY else p * shared
    dz = tl.where(column == tl.load(targets_ptr + row), dz + g, dz)
    dx = tl.where(inside_active, dz * slope, 0.0)
    out = out_ptr + row * out_stride_row + column * out_stride_column
    tl.store(out, dx.to(out_ptr.dtype.element_ty), mask=inside)


def put_rows(rows: Rows, logits_TV: Tensor, targets_T: Tensor, scaling: Scaling) -> None:
    """Fill `rows` (contiguous) from logits of any strides: one program a row."""
    num_rows, vocabulary = logits_TV.shape
    if not num_rows:
        return
    inverse, per_token = _temperature(scaling, rows.logp)
    with on_device(logits_TV):
        _forward_kernel[(num_rows,)](
            logits_TV,
            targets_T.contiguous(),
            per_token if per_token is not None else rows.logp,
            rows.logp,
            rows.row_max,
            rows.log_sum,
            rows.logp if rows.entropy is None else rows.entropy,
            vocabulary,
            *logits_TV.stride(),
            inverse,
            int(per_token is not None),
            1.0 if scaling.softcap is None else scaling.softcap,
            **forward_options(logits_TV.dtype, softcap=scaling.softcap is not None, entropy=rows.entropy is not None),
        )


def put_gradients(
    out_TV: Tensor, logits_TV: Tensor, targets_T: Tensor, rows: Rows, row_grads: RowGrads, scaling: Scaling
) -> None:
    """The gradient of the logits into `out_TV` (any dtype and strides; it may be the logits)."""
    num_rows, vocabulary = logits_TV.shape
    if not num_rows:
        return
    inverse, per_token = _temperature(scaling, rows.log_sum)
    dlogp, dlse, dentropy = (None if grad is None else grad.contiguous() for grad in row_grads)
    unread = rows.log_sum
    num_blocks = triton.cdiv(vocabulary, BLOCK_V)
    with on_device(logits_TV):
        _backward_kernel[(num_rows * num_blocks,)](
            out_TV,
            logits_TV,
            targets_T.contiguous(),
            unread if per_token is None else per_token,
            rows.row_max,
            rows.log_sum,
            unread if rows.entropy is None else rows.entropy,
            unread if dlogp is None else dlogp,
            unread if dlse is None else dlse,
            unread if dentropy is None else dentropy,
            vocabulary,
            num_blocks,
            *logits_TV.stride(),
            *out_TV.stride(),
            inverse,
            int(per_token is not None),
            int(dlogp is not None),
            int(dlse is not None),
            1.0 if scaling.softcap is None else scaling.softcap,
            **backward_options(softcap=scaling.softcap is not None, entropy=dentropy is not None),
        )


def forward_options(dtype: torch.dtype, *, softcap: bool, entropy: bool) -> dict[str, Any]:
    """Compile-time arguments of the forward kernel."""
    vec = 16 // dtype.itemsize
    return {"HAS_SOFTCAP": softcap, "ENTROPY": entropy, "BLOCK": BLOCK_V, "VEC": vec, **OPTIONS}


def backward_options(*, softcap: bool, entropy: bool) -> dict[str, Any]:
    """Compile-time arguments of the backward kernel."""
    return {"HAS_SOFTCAP": softcap, "ENTROPY": entropy, "BLOCK": BLOCK_V, **OPTIONS}


def _temperature(scaling: Scaling, like: Tensor) -> tuple[float, Tensor | None]:
    """The number, or the tensor [T] with any number."""
    inverse = scaling.inverse_temperature
    return (1.0, inverse.to(like.dtype).contiguous()) if isinstance(inverse, Tensor) else (inverse, None)
