"""A sampler in torch and NumPy, by the same random numbers: what `r1fast.ops.sample` is measured and tested against.

Philox-4x32-10 with the key of `r1fast.sampling.philox_key` and the counter (position, sample index, 0, 0); 53 bits of
its first two words make a uniform number.
"""

# R rows, V vocab, C chunks of the vocabulary, B positions in a block

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from r1fast.sampling import Sampling

CHUNK = 64  # tokens summed before the cumulative sum, which then runs over V / CHUNK values in fp64
TOP_P_CANDIDATES = 1024  # a nucleus is nearly always within these; rows where it is not are sorted in full
MIN_LOG_RATIO = -200.0  # exp is 0 in fp32 well before; keeps 0 * -inf out of the entropy

Uint64Array = npt.NDArray[np.uint64]

_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


class Draw(NamedTuple):
    """One token per row: `token` int64 [R]; `logp`, `log_kept_mass`, `entropy` fp32 [R], natural logarithms."""

    token: Tensor
    logp: Tensor
    log_kept_mass: Tensor
    entropy: Tensor


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Uint64Array, ...]:
    """Philox-4x32-10: four counter words and two key words (below 2**32, broadcast together) to four such words."""
    x0, x1, x2, x3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, dtype=np.uint64) for word in key)
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * x0
        product1 = np.uint64(0xCD9E8D57) * x2
        x0, x1, x2, x3 = (
            (product1 >> _SHIFT_32) ^ x1 ^ k0,
            product1 & _LOW_32,
            (product0 >> _SHIFT_32) ^ x3 ^ k1,
            product0 & _LOW_32,
        )
        k0 = (k0 + np.uint64(0x9E3779B9)) & _LOW_32  # golden ratio
        k1 = (k1 + np.uint64(0xBB67AE85)) & _LOW_32  # sqrt(3) - 1
    return x0, x1, x2, x3


def uniforms(
    key_R2: Uint64Array, sample_index_R: Uint64Array, start_R: Uint64Array, num_positions: int
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), 53 bits each: float64 [R, B] for the positions start, start + 1, ... of each row."""
    position_RB = start_R.astype(np.uint64)[:, None] + np.arange(num_positions, dtype=np.uint64)
    key = (key_R2[:, 0, None], key_R2[:, 1, None])
    high, low, _, _ = philox4x32((position_RB, sample_index_R.astype(np.uint64)[:, None], 0, 0), key)
    bits = ((high << _SHIFT_32) | low) >> np.uint64(11)
    return np.asarray(bits.astype(np.float64) * 2.0**-53)


def draw(logits_RV: Tensor, uniform_R: Tensor, sampling: Sampling) -> Draw:
    """Draw one token per row by the inverse of the cumulative distribution, in vocabulary order.

    `logits_RV` fp32, overwritten; `uniform_R` fp64 in [0, 1). The log-prob and the entropy are those of
    softmax(logits / temperature) over the whole vocabulary; top-p only restricts which tokens may be drawn, and
    `log_kept_mass` is what it kept (every token tied with the last one kept is kept as well, so the cut depends on
    no order). A token of probability 0 is never drawn. A row with NaN logits gets a NaN log-prob.
    """
    if logits_RV.dtype != torch.float32 or uniform_R.dtype != torch.float64:
        raise ValueError(f"draw wants fp32 logits and fp64 uniforms, got {logits_RV.dtype} and {uniform_R.dtype}")
    num_rows, vocab = logits_RV.shape
    log_ratio_RV = logits_RV.sub_(logits_RV.amax(-1, keepdim=True))
    if sampling.temperature not in (0.0, 1.0):
        log_ratio_RV.div_(sampling.temperature)
    log_ratio_RV.clamp_(min=MIN_LOG_RATIO)
    padded_RV = logits_RV.new_empty(num_rows, -(-vocab // CHUNK) * CHUNK)
    padded_RV[:, vocab:] = 0.0
    weight_RV = padded_RV[:, :vocab]
    torch.exp(log_ratio_RV, out=weight_RV)
    cumulative_RC = _chunk_cumulative(padded_RV)
    total_R = cumulative_RC[:, -1]
    log_total_R = total_R.log()
    weighted_R = torch.bmm(weight_RV[:, None], log_ratio_RV[:, :, None]).flatten()  # dot products, no [R, V] product
    entropy_R = (log_total_R - weighted_R / total_R).float()
    log_kept_mass_R = torch.zeros_like(entropy_R)
    if sampling.temperature == 0:
        token_R = log_ratio_RV.argmax(-1)
    else:
        if sampling.top_p < 1:
            weight_RV.masked_fill_(weight_RV < _nucleus_floor(weight_RV, sampling.top_p * total_R)[:, None], 0.0)
            cumulative_RC = _chunk_cumulative(padded_RV)
            log_kept_mass_R = (cumulative_RC[:, -1] / total_R).log().float()
        token_R = _invert(padded_RV, cumulative_RC, uniform_R).clamp_(max=vocab - 1)  # only NaN rows exceed
    logp_R = (log_ratio_RV.gather(1, token_R[:, None])[:, 0] - log_total_R).float()
    return Draw(token_R, logp_R, log_kept_mass_R, entropy_R)


def _chunk_cumulative(padded_RV: Tensor) -> Tensor:
    """fp64 [R, C]: the sum of everything up to and including each chunk."""
    return padded_RV.view(len(padded_RV), -1, CHUNK).sum(-1).double().cumsum(-1)


def _invert(padded_RV: Tensor, cumulative_RC: Tensor, uniform_R: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds uniform * total: strictly, so its own weight is positive."""
    num_chunks = cumulative_RC.shape[1]
    target_R = uniform_R * cumulative_RC[:, -1]
    if num_chunks > 1:
        chunk_R = torch.searchsorted(cumulative_RC, target_R[:, None], right=True)[:, 0].clamp_(max=num_chunks - 1)
        before_R = cumulative_RC.gather(1, (chunk_R - 1).clamp(min=0)[:, None])[:, 0]
        target_R = target_R - before_R.masked_fill(chunk_R == 0, 0.0)
        rows = torch.arange(len(chunk_R), device=chunk_R.device)
        inside = padded_RV.view(-1, num_chunks, CHUNK)[rows, chunk_R].double().cumsum(-1)
    else:
        chunk_R = torch.zeros_like(target_R, dtype=torch.int64)
        inside = padded_RV.double().cumsum(-1)
    # the chunk's fp32 sum and its fp64 running sum differ in the last bits: stay below the latter
    target_R = torch.minimum(target_R, inside[:, -1] * (1 - 2.0**-50))
    return chunk_R * CHUNK + torch.searchsorted(inside, target_R[:, None], right=True)[:, 0]


def _nucleus_floor(weight_RV: Tensor, needed_R: Tensor) -> Tensor:
    """The smallest weight of the shortest list of largest weights that sums to `needed_R`: [R]."""
    vocab = weight_RV.shape[1]
    num_candidates = min(TOP_P_CANDIDATES, vocab)
    floor_R, reached_R = _floor_among(_largest(weight_RV, num_candidates), needed_R)
    if num_candidates < vocab and not bool(reached_R.all()):
        rows = (~reached_R).nonzero()[:, 0]
        floor_R[rows] = _floor_among(_largest(weight_RV[rows], vocab), needed_R[rows])[0]
    return floor_R


def _largest(weight_RV: Tensor, count: int) -> Tensor:
    """The `count` largest weights of each row, descending. NumPy sorts 30 times faster than torch on a CPU."""
    if weight_RV.device.type != "cpu":
        return weight_RV.topk(count, dim=-1).values
    split = weight_RV.shape[1] - count
    largest = np.partition(weight_RV.numpy(), split, axis=-1)[:, split:] if split else weight_RV.numpy()
    return torch.from_numpy(-np.sort(-largest, axis=-1))


def _floor_among(descending_RK: Tensor, needed_R: Tensor) -> tuple[Tensor, Tensor]:
    cumulative_RK = descending_RK.double().cumsum(-1)
    num_kept_R = (cumulative_RK < needed_R[:, None]).sum(-1) + 1
    floor_R = descending_RK.gather(1, (num_kept_R - 1).clamp(max=descending_RK.shape[1] - 1)[:, None])[:, 0]
    return floor_R, num_kept_R <= descending_RK.shape[1]
