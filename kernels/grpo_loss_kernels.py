"""Triton kernel of `grpo_loss`: loss, gradients and metrics in one launch, the same bits every time.

One program a sequence; the last one to finish adds up what the others left, in their order. The options are run-time
arguments: one binary serves them all, and a schedule that moves one never compiles again. Formulas: `grpo_loss`.
"""

# T packed tokens, N sequences, M metrics

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1fast.kernels.checks import on_device
from r1fast.kernels.counter import resting_counter
from r1fast.kernels.policy_loss import VALUES, PolicyLoss

NUM_VALUES = tl.constexpr(len(VALUES))
NUM_SLOTS = tl.constexpr(triton.next_power_of_2(len(VALUES)))
LARGEST = tl.constexpr(VALUES.index("logp_gap_abs_max"))  # before it values add up, from it on the largest counts
RATIO_MIN = tl.constexpr(VALUES.index("ratio_min"))  # kept as its negative until the end

OBJECTIVES = {"clip": 0, "cispo": 1, "reinforce": 2, "nll": 3}
LEVELS = {"token": 0, "sequence": 1, "sequence_sum": 2}
KLS = {"none": 0, "k2": 1, "k3": 2, "weighted_k3": 3}
CORRECTIONS = {"none": 0, "truncate": 1, "mask": 2}
CLIP, CISPO, REINFORCE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
K2, K3, TRUNCATE = tl.constexpr(1), tl.constexpr(2), tl.constexpr(1)

K3_LINEAR_FROM = tl.constexpr(20.0)
K3_SLOPE = tl.constexpr(math.expm1(20.0))
EXP_MAX = tl.constexpr(80.0)

# 4 tokens a thread: 12 running sums of them stay in registers. A longer sequence takes more turns.
BLOCK_T = 1024
NUM_WARPS = 8
BLOCK_N = 256  # sequences that the last program adds up at a time


@triton.jit
def _read(ptr, index, keep, stop):
    """fp32 values of the tokens that count, 0 for others and where the input is absent (stop at the start)."""
    return tl.load(ptr + index, mask=keep & (index < stop), other=0.0).to(tl.float32)


@triton.jit
def _times(factor, value):
    """The product, 0 where the factor is 0: also of an infinite ratio."""
    return tl.where(factor == 0, 0.0, factor * value)


@triton.jit
def _k3(d):
    """expm1(d) - d: in fp32, exp(d) - 1 - d would be 0 at d = 1e-4, where it is 5e-9."""
    series = 1 / 5040 + d * (1 / 40320 + d * (1 / 362880 + d * (1 / 3628800)))
    near = d * d * (0.5 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * (1 / 720 + d * series)))))
    return tl.where(tl.abs(d) < 0.5, near, tl.exp(d) - 1.0 - d)


@triton.jit
def _correction(log_weight, correction, cap):
    """Weight for sampling from another distribution than the old policy's, and whether it was capped or masked."""
    raw = tl.exp(log_weight)
    above = raw > cap
    if correction == TRUNCATE:
        clipped = above
        weight = tl.where(above, cap, raw)
    else:
        clipped = above | (raw < 1.0 / cap)
        weight = tl.where(clipped, 0.0, raw)
    return weight, clipped


@triton.jit(
    do_not_specialize=[
        "num_sequences",
        "has_length",
        "has_old",
        "has_ref",
        "has_rollout",
        "has_kept",
        "has_entropy",
        "has_mask",
        "has_denominator",
        "two_passes",
        "objective",
        "level",
        "kl",
        "correction",
        "correction_by_sequence",
        "by_sequence_mean",
    ]
)
def _grpo_loss_kernel(
    logp_ptr,
    advantage_ptr,
    offsets_ptr,
    length_ptr,  # [N] unmasked tokens of the whole sequence, where only part of it is here
    old_ptr,
    ref_ptr,
    rollout_ptr,
    kept_ptr,
    entropy_ptr,
    mask_ptr,
    denominator_ptr,
    dlogp_ptr,
    dentropy_ptr,
    partial_ptr,  # [M, programs]
    counter_ptr,  # a zero, which is a zero again afterwards
    loss_ptr,
    values_ptr,  # [M]
    num_sequences,
    denominator,
    low,
    high,
    ratio_bound,
    kl_coef,
    cap,
    entropy_coef,
    has_length,
    has_old,
    has_ref,
    has_rollout,
    has_kept,
    has_entropy,
    has_mask,
    has_denominator,
    two_passes,
    objective,
    level,
    kl,
    correction,
    correction_by_sequence,
    by_sequence_mean,
    BLOCK: tl.constexpr,
    BLOCK_PROGRAMS: tl.constexpr,
):
    program = tl.program_id(0)
    here = program < num_sequences
    start = tl.load(offsets_ptr + program, mask=here, other=0).to(tl.int64)
    stop = tl.load(offsets_ptr + program + 1, mask=here, other=0).to(tl.int64)
    advantage = tl.load(advantage_ptr + program, mask=here, other=0.0).to(tl.float32)
    denominator = tl.where(
        has_denominator != 0,
        tl.load(denominator_ptr, mask=has_denominator != 0, other=1.0).to(tl.float32),
        denominator,
    )
    stop_mask, stop_old = tl.where(has_mask != 0, stop, start), tl.where(has_old != 0, stop, start)
    stop_ref, stop_rollout = tl.where(has_ref != 0, stop, start), tl.where(has_rollout != 0, stop, start)
    stop_kept, stop_entropy = tl.where(has_kept != 0, stop, start), tl.where(has_entropy != 0, stop, start)
    lane = tl.arange(0, BLOCK)

    count = (stop - start).to(tl.float32)
    sequence_x = count * 0.0
    sequence_log_weight = count * 0.0
    sequence_correction = count
    if two_passes != 0:
        tokens = tl.zeros([BLOCK], tl.float32)
        x_sum = tl.zeros([BLOCK], tl.float32)
        log_weight_sum = tl.zeros([BLOCK], tl.float32)
        weight_sum = tl.zeros([BLOCK], tl.float32)
        for first in range(start, stop, BLOCK):
            index = first + lane
            inside = index < stop
            keep = inside & (tl.load(mask_ptr + index, mask=index < stop_mask, other=1.0) != 0)
            logp = _read(logp_ptr, index, keep, stop)
            old = tl.where(index < stop_old, _read(old_ptr, index, keep, stop_old), logp)
            log_weight = old - _read(rollout_ptr, index, keep, stop_rollout) + _read(kept_ptr, index, keep, stop_kept)
            weight, _ = _correction(log_weight, correction, cap)
            tokens += tl.where(keep, 1.0, 0.0)
            x_sum += tl.where(keep, logp - old, 0.0)
            log_weight_sum += tl.where(keep, log_weight, 0.0)
            weight_sum += tl.where(keep, weight, 0.0)
        count = tl.sum(tokens, axis=0)
        sequence_x = tl.sum(x_sum, axis=0)
        sequence_log_weight = tl.sum(log_weight_sum, axis=0)
        sequence_correction = tl.where(correction != 0, tl.sum(weight_sum, axis=0), count)
        if correction_by_sequence != 0:
            weight, _ = _correction(sequence_log_weight, correction, cap)
            sequence_correction = weight * count
    length = tl.maximum(tl.load(length_ptr + program, mask=here & (has_length != 0), other=0.0).to(tl.float32), 0.0)
    length = tl.maximum(tl.where(has_length != 0, length, count), 1.0)
    weight_of_token = tl.where(by_sequence_mean != 0, 1.0 / length, 1.0)
    sequence_s = tl.where(level == 1, sequence_x / tl.maximum(count, 1.0), sequence_x)
    slope_of_s = tl.where(level == 1, sequence_correction / tl.maximum(count, 1.0), sequence_correction)

    loss_sum = tl.zeros([BLOCK], tl.float32)
    tokens = tl.zeros([BLOCK], tl.float32)
    entropy_sum = tl.zeros([BLOCK], tl.float32)
    kl_sum = tl.zeros([BLOCK], tl.float32)
    gap_sum = tl.zeros([BLOCK], tl.float32)
    gap_max = tl.full([BLOCK], float("-inf"), tl.float32)
    correction_sum = tl.zeros([BLOCK], tl.float32)
    correction_clipped_sum = tl.zeros([BLOCK], tl.float32)
    ratio_sum = tl.zeros([BLOCK], tl.float32)
    ratio_max = tl.full([BLOCK], float("-inf"), tl.float32)
    negative_ratio_max = tl.full([BLOCK], float("-inf"), tl.float32)
    low_sum = tl.zeros([BLOCK], tl.float32)
    high_sum = tl.zeros([BLOCK], tl.float32)
    dual_sum = tl.zeros([BLOCK], tl.float32)
    a = tl.zeros([BLOCK], tl.float32) + advantage
    for first in range(start, stop, BLOCK):
        index = first + lane
        inside = index < stop
        keep = inside & (tl.load(mask_ptr + index, mask=index < stop_mask, other=1.0) != 0)
        logp = _read(logp_ptr, index, keep, stop)
        old = tl.where(index < stop_old, _read(old_ptr, index, keep, stop_old), logp)
        ref = _read(ref_ptr, index, keep, stop_ref)
        rollout = _read(rollout_ptr, index, keep, stop_rollout)
        entropy = _read(entropy_ptr, index, keep, stop_entropy)
        x = logp - old

        factor = tl.full([BLOCK], 1.0, tl.float32)
        if correction != 0:
            log_weight = old - rollout + _read(kept_ptr, index, keep, stop_kept)
            if correction_by_sequence != 0:
                log_weight = tl.zeros([BLOCK], tl.float32) + sequence_log_weight
            factor, clipped = _correction(log_weight, correction, cap)
            correction_sum += tl.where(keep, factor, 0.0)
            correction_clipped_sum += tl.where(keep & clipped, 1.0, 0.0)

        s = x
        if level != 0:
            s = tl.zeros([BLOCK], tl.float32) + sequence_s
        ratio = tl.exp(s)  # pi_theta/pi_old, DeepSeekMath eq. 3
        ratio_sum += tl.where(keep, ratio, 0.0)
        ratio_max = tl.where(keep, tl.maximum(ratio_max, ratio), ratio_max)
        negative_ratio_max = tl.where(keep, tl.maximum(negative_ratio_max, -ratio), negative_ratio_max)
        slope_factor = factor
        if objective == CLIP:
            # Strict: on the edge itself the gradient passes, as torch.clamp's does.
            too_low = (a < 0) & (ratio < low)
            too_high = (a > 0) & (ratio > high)
            too_far = (a < 0) & (ratio > ratio_bound)
            effective = tl.where(too_low, low, tl.where(too_high, high, tl.where(too_far, ratio_bound, ratio)))
            term = _times(a, -effective)
            slope = tl.where(too_low | too_high | too_far, 0.0, term)
            low_sum += tl.where(keep & too_low, 1.0, 0.0)
            high_sum += tl.where(keep & too_high, 1.0, 0.0)
            dual_sum += tl.where(keep & too_far, 1.0, 0.0)
            if level != 0:  # every token of a sequence moves the one ratio that all its tokens' terms share
                slope_factor = tl.zeros([BLOCK], tl.float32) + slope_of_s
        elif objective == CISPO:
            slope = _times(a, -tl.minimum(ratio, high, propagate_nan=tl.PropagateNan.ALL))
            term = _times(slope, logp)
            high_sum += tl.where(keep & (ratio > high), 1.0, 0.0)
        elif objective == REINFORCE:
            slope = -a
            term = _times(a, -logp)
        else:
            slope = tl.full([BLOCK], -1.0, tl.float32)
            term = -logp
        term = _times(factor, term)
        gradient = _times(slope_factor, slope)

        if kl != 0:
            d = ref - logp
            near = tl.minimum(d, K3_LINEAR_FROM, propagate_nan=tl.PropagateNan.ALL)
            k3 = _k3(near)
            if kl == K2:
                kl_value = d * d * 0.5
                kl_slope = -d
            elif kl == K3:
                kl_value = k3 + (d - near) * K3_SLOPE
                kl_slope = -(k3 + near)
            else:
                token_ratio = tl.exp(x)
                exponent = tl.minimum(ref - old, EXP_MAX, propagate_nan=tl.PropagateNan.ALL)
                far = tl.exp(exponent) - token_ratio * (1.0 + d)
                kl_value = tl.where(d > K3_LINEAR_FROM, far, token_ratio * k3)
                kl_slope = -token_ratio * d
            kl_sum += tl.where(keep, kl_value, 0.0)
            term += kl_coef * kl_value
            gradient += kl_coef * kl_slope

        entropy_sum += entropy
        term -= _times(tl.zeros([BLOCK], tl.float32) + entropy_coef, entropy)
        loss_sum += tl.where(keep, term * weight_of_token, 0.0)
        tokens += tl.where(keep, 1.0, 0.0)
        if has_rollout != 0:
            gap = tl.abs(old - rollout)
            gap_sum += tl.where(keep, gap, 0.0)
            gap_max = tl.where(keep, tl.maximum(gap_max, gap), gap_max)
        tl.store(dlogp_ptr + index, tl.where(keep, gradient * weight_of_token / denominator, 0.0), mask=inside)
        dentropy = tl.where(keep, -entropy_coef * weight_of_token / denominator, 0.0)
        tl.store(dentropy_ptr + index, dentropy, mask=index < tl.where(entropy_coef != 0, stop, start))

    programs = tl.num_programs(0)
    own = partial_ptr + program
    tokens_count = tl.sum(tokens, axis=0)
    tl.store(own, tl.sum(loss_sum, axis=0))
    tl.store(own + programs, tokens_count * weight_of_token)
    tl.store(own + 2 * programs, tokens_count)
    tl.store(own + 3 * programs, tl.sum(entropy_sum, axis=0))
    tl.store(own + 4 * programs, tl.sum(kl_sum, axis=0))
    tl.store(own + 5 * programs, tl.sum(gap_sum, axis=0))
    tl.store(own + 6 * programs, tl.sum(correction_sum, axis=0))
    tl.store(own + 7 * programs, tl.sum(correction_clipped_sum, axis=0))
    tl.store(own + 8 * programs, tl.sum(ratio_sum, axis=0))
    tl.store(own + 9 * programs, tl.sum(low_sum, axis=0))
    tl.store(own + 10 * programs, tl.sum(high_sum, axis=0))
    tl.store(own + 11 * programs, tl.sum(dual_sum, axis=0))
    tl.store(own + 12 * programs, tl.max(gap_max, axis=0))
    tl.store(own + 13 * programs, tl.max(ratio_max, axis=0))
    tl.store(own + 14 * programs, tl.max(negative_ratio_max, axis=0))
    tl.debug_barrier()  # all threads have stored before the one that counts says so to other programs
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == programs - 1:
        tl.store(counter_ptr, 0)
        slot = tl.arange(0, NUM_SLOTS)[:, None]
        column = tl.arange(0, BLOCK_PROGRAMS)[None, :]
        sums = tl.zeros([NUM_SLOTS, BLOCK_PROGRAMS], tl.float32)
        largest = tl.full([NUM_SLOTS, BLOCK_PROGRAMS], float("-inf"), tl.float32)
        for turn in range(0, programs, BLOCK_PROGRAMS):
            inside_2d = (turn + column < programs) & (slot < NUM_VALUES)
            place = partial_ptr + slot * programs + turn + column
            # .cg: from the second-level cache, where the other programs' stores are
            sums += tl.load(place, mask=inside_2d, other=0.0, cache_modifier=".cg")
            largest = tl.maximum(largest, tl.load(place, mask=inside_2d, other=float("-inf"), cache_modifier=".cg"))
        slots = tl.arange(0, NUM_SLOTS)
        totals = tl.where(slots < LARGEST, tl.sum(sums, axis=1), tl.max(largest, axis=1))
        totals = tl.where(slots == RATIO_MIN, -totals, totals)
        tl.store(values_ptr + slots, totals, mask=slots < NUM_VALUES)
        tl.store(loss_ptr, tl.sum(tl.where(slots == 0, totals, 0.0), axis=0) / denominator)


def launch(
    logp_T: Tensor,
    advantage_N: Tensor,
    cu_seqlens: Tensor,
    tokens: dict[str, Tensor | None],
    mask_T: Tensor | None,
    length_N: Tensor | None,
    denominator: float | Tensor,
    options: PolicyLoss,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Loss (0-dim), VALUES [M], d loss / d logp [T] and d loss / d entropy [T] (None without a bonus), all fp32."""
    logp_T = logp_T.contiguous()
    given = {name: None if x_T is None else x_T.contiguous() for name, x_T in tokens.items()}
    if not options.reads_reference:
        given["ref_logp"] = None
    unread = logp_T
    number = 1.0 if isinstance(denominator, Tensor) else denominator
    denominator_tensor = denominator if isinstance(denominator, Tensor) else None
    programs = max(1, len(advantage_N))
    partial, values_M, loss = (logp_T.new_empty(shape) for shape in (len(VALUES) * programs, len(VALUES), ()))
    dlogp_T = torch.empty_like(logp_T)
    dentropy_T = torch.empty_like(logp_T) if options.entropy_coef else None
    by_sequence = options.level != "token" or (options.correction != "none" and options.correction_level == "sequence")
    counts_mask = mask_T is not None and length_N is None and options.aggregate == "sequence_mean"

    def pointer(x: Tensor | None) -> Tensor:
        return unread if x is None else x

    def flag(x: object) -> int:
        return int(x is not None and x is not False)

    with on_device(logp_T):
        _grpo_loss_kernel[(programs,)](
            logp_T,
            pointer(advantage_N.contiguous() if len(advantage_N) else None),
            cu_seqlens.contiguous(),
            pointer(length_N),
            *(pointer(given[name]) for name in ("old_logp", "ref_logp", "rollout_logp", "log_kept_mass", "entropy")),
            pointer(None if mask_T is None else mask_T.contiguous()),
            pointer(denominator_tensor),
            dlogp_T,
            pointer(dentropy_T),
            partial,
            resting_counter(logp_T.device),
            loss,
            values_M,
            len(advantage_N),
            number,
            1 - options.clip_low,
            1 + options.clip_high,
            math.inf if options.ratio_bound is None else options.ratio_bound,
            options.kl_coef,
            options.correction_cap,
            options.entropy_coef,
            flag(length_N),
            *(flag(given[name]) for name in ("old_logp", "ref_logp", "rollout_logp", "log_kept_mass", "entropy")),
            flag(mask_T),
            flag(denominator_tensor),
            flag(by_sequence or counts_mask),
            OBJECTIVES[options.objective],
            LEVELS[options.level],
            KLS[options.kl] if options.reads_reference else 0,
            CORRECTIONS[options.correction],
            flag(options.correction_level == "sequence"),
            flag(options.aggregate == "sequence_mean"),
            BLOCK=BLOCK_T,
            BLOCK_PROGRAMS=BLOCK_N,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
    return loss, values_M, dlogp_T, dentropy_T
