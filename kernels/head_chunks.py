"""Logits of hidden @ weight.T + bias, a chunk of tokens at a time in buffers made once, and the products behind them.

dhidden = dlogits @ weight,  dweight = dlogits.T @ hidden,  dbias = sum_T dlogits
"""

# T packed tokens, C the tokens of one chunk, S those of a stash, B the rows of one block, D model, V vocabulary

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from r1fast.kernels.checks import accumulator, uses_triton
from r1fast.kernels.rows import RowGrads, Rows, Scaling, block_rows, blocks
from r1fast.ops.split_product import pays, split_product

_SLAB_BYTES = 32 << 20  # of one piece of a chunk's weight gradient: stays in an H100's second-level cache
_CPU_SLAB_BYTES = 16 << 20  # half as much in bf16: in a core's share of the third-level cache
_PIECE_BYTES = 1 << 19  # of one piece of a sum on the CPU: stays in a core's second-level cache
_TILE_ROWS = 128  # of a matrix product on a GPU: a chunk that is no multiple of it wastes part of a tile
_LEAST_ROWS = 256  # of a chunk: with fewer, a product is bound by reading the weight
_MOST_ROWS = 2048  # more gain nothing


class Plan(NamedTuple):
    """How many tokens are held at once. All of what is held, beyond `whole`'s, fits the memory budget."""

    chunk_rows: int
    """Tokens whose fp32 logits exist."""
    stash_rows: int
    """Tokens whose gradient of the logits waits for one product with the hidden states; 0: the chunk's own buffer."""
    whole: bool
    """The stash holds all tokens, in the place of the fp32 [V, D] accumulator, which is then not needed."""

    @classmethod
    def of(cls, hidden_TD: Tensor, weight_VD: Tensor, budget_bytes: int, *, dlogits: bool, dweight: bool) -> Plan:
        """For a budget that `check_budget` has let through."""
        num_tokens, (vocabulary, width) = len(hidden_TD), weight_VD.shape
        if _is_half(hidden_TD) and hidden_TD.dtype == torch.bfloat16 and dweight:
            return cls.stashed(num_tokens, vocabulary, width, budget_bytes)
        row_bytes, temporary_bytes = _token_bytes(hidden_TD, weight_VD, dlogits=dlogits, dweight=dweight)
        if _is_half(hidden_TD):
            chunk_rows = _tiles(budget_bytes // row_bytes, num_tokens)
            return cls(chunk_rows, chunk_rows if dlogits else 0, num_tokens <= chunk_rows)
        block = block_rows(vocabulary, weight_VD.device)
        chunk_rows = (budget_bytes - temporary_bytes * block) // row_bytes
        if chunk_rows < block:  # the whole chunk is one block
            chunk_rows = min(block, budget_bytes // (row_bytes + temporary_bytes))
        num_chunks = -(-num_tokens // max(1, chunk_rows))
        chunk_rows = -(-num_tokens // max(1, num_chunks))  # all alike: a short one reads the weight for little
        return cls(max(1, chunk_rows), 0, num_chunks <= 1)

    @classmethod
    def stashed(cls, num_tokens: int, vocabulary: int, width: int, budget_bytes: int) -> Plan:
        """On a GPU, in bf16: fp32 logits of a chunk, and their gradient in bf16 for as many tokens as there is room.

        Adding to an fp32 [V, D] accumulator moves 8 V D bytes a time, which takes as long as a product with 1,000
        tokens; so all tokens wait for one product where their gradients fit the accumulator's place: up to 2 D tokens.
        """
        spare_rows = budget_bytes // (4 * vocabulary) + width - -(-num_tokens // 2)
        if spare_rows >= min(num_tokens, _LEAST_ROWS):
            return cls(_tiles(min(spare_rows, _MOST_ROWS), num_tokens), num_tokens, True)
        chunk_rows = _tiles(budget_bytes // (8 * vocabulary), num_tokens)
        return cls(chunk_rows, min(2 * chunk_rows, num_tokens), False)


def check_budget(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, budget_bytes: int) -> None:
    """Raises ValueError for a budget below one token, with its gradient where one can be asked for."""
    inputs = [x for x in (hidden_TD, weight_VD, bias_V) if x is not None]
    dlogits = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    least = sum(_token_bytes(hidden_TD, weight_VD, dlogits=dlogits, dweight=dlogits and weight_VD.requires_grad))
    if budget_bytes < least:
        raise ValueError(
            f"memory_budget_bytes = {budget_bytes} holds no token of a vocabulary of {len(weight_VD)}; "
            f"give at least {least}"
        )


def _is_half(hidden_TD: Tensor) -> bool:
    """bf16 or fp16 on a GPU, where products have fp32 output."""
    return hidden_TD.is_cuda and hidden_TD.dtype in (torch.bfloat16, torch.float16)


def _token_bytes(hidden_TD: Tensor, weight_VD: Tensor, *, dlogits: bool, dweight: bool) -> tuple[int, int]:
    """Of one token in the chunk's buffers, and of one in the block that is worked on."""
    vocabulary = weight_VD.shape[0]
    if _is_half(hidden_TD):
        # fp32 logits; with a gradient in 16 bits beside them; of bf16 twice, one of them waits
        waiting = hidden_TD.dtype == torch.bfloat16 and dweight
        return (8 if waiting else 6 if dlogits else 4) * vocabulary, 0
    low_precision = hidden_TD.dtype != accumulator(hidden_TD.dtype)
    wide = max(4, weight_VD.element_size())
    return (2 * weight_VD.element_size() if low_precision else wide) * vocabulary, 3 * wide * vocabulary


def _tiles(rows: int, num_tokens: int) -> int:
    """All tokens, or whole tiles of them where there is one; at least 1."""
    if rows >= num_tokens:
        return max(1, num_tokens)
    return rows if rows < _TILE_ROWS else rows // _TILE_ROWS * _TILE_ROWS


class HeadChunks:
    """Logits of one chunk at a time, fp32 in effect.

    fp32 and fp64: one product. bf16 and fp16 on CUDA: one product with fp32 output. On the CPU, for which PyTorch has
    none, logits = high + low, high = round(h W'), low = round(h W' - high) from the fp32 accumulator (error 2^-16
    relative instead of 2^-8): one product of the extension where it and the CPU's bf16 instructions are there, two of
    PyTorch's otherwise.
    """

    def __init__(self, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, plan: Plan) -> None:
        self.weight_DV, self.bias_V = weight_VD.T, bias_V
        self.dtype = accumulator(hidden_TD.dtype)
        self.num_tokens, self.vocabulary = len(hidden_TD), len(weight_VD)
        self.plan = plan
        self.low_precision = hidden_TD.dtype != self.dtype
        self.triton = uses_triton(hidden_TD)
        self.compensated = self.low_precision and hidden_TD.device.type == "cpu"
        shape = (plan.chunk_rows, self.vocabulary)
        high_dtype = hidden_TD.dtype if self.compensated else self.dtype
        self.high_CV = torch.empty(shape, dtype=high_dtype, device=hidden_TD.device)
        self.low_CV = torch.empty_like(self.high_CV) if self.compensated else None
        rows_fit = hidden_TD.stride(1) == weight_VD.stride(1) == 1 and hidden_TD.shape[1] % 2 == 0
        self.one_product = self.compensated and hidden_TD.dtype == torch.bfloat16 and rows_fit and pays()
        # A block's fp32 logits and memory to work in, made once: fresh pages for each block cost more than its maths.
        block = min(block_rows(self.vocabulary, hidden_TD.device), plan.chunk_rows)
        by_blocks = self.dtype == torch.float32 and not hidden_TD.is_cuda and not self.triton
        self.scratch = torch.empty(2, block, self.vocabulary, dtype=self.dtype) if by_blocks else None
        self.rows = 0

    def chunks(self) -> Iterator[slice]:
        for start in range(0, self.num_tokens, self.plan.chunk_rows):
            yield slice(start, min(start + self.plan.chunk_rows, self.num_tokens))

    def compute(self, hidden_CD: Tensor) -> None:
        """Fill the buffers with the chunk's logits; the bias is added now or when a block is read."""
        self.rows = len(hidden_CD)
        high_CV = self.high_CV[: self.rows]
        if self.low_CV is not None and self.one_product:
            split_product(hidden_CD, self.weight_DV.T, high_CV, self.low_CV[: self.rows])
        elif self.low_CV is not None:
            torch.mm(hidden_CD, self.weight_DV, out=high_CV)
            torch.addmm(high_CV, hidden_CD, self.weight_DV, beta=-1, out=self.low_CV[: self.rows])
        elif self.low_precision:
            torch.mm(hidden_CD, self.weight_DV, out_dtype=self.dtype, out=high_CV)
        else:
            torch.mm(hidden_CD, self.weight_DV, out=high_CV)
        if self.bias_V is not None and self.low_CV is None:
            high_CV.add_(self.bias_V)

    def put_rows(self, rows: Rows, targets_C: Tensor, scaling: Scaling, *, keep: bool = False) -> None:
        """Fill the chunk's rows of results. `keep`: the logits turn into exp(z - max z), for `HeadGradients.fold`."""
        if self.triton:
            from r1fast.kernels.token_logprob_kernels import put_rows

            put_rows(rows, self._whole(), targets_C, scaling)
            return
        for block in blocks(self.rows, self.vocabulary, self.high_CV.device):
            logits_BV = self._block(block)
            if self.low_CV is None and not keep:
                logits_BV = logits_BV.clone() if self.scratch is None else self._scratch(0, block).copy_(logits_BV)
            spare_BV = None if self.scratch is None else self._scratch(1, block)
            rows.select(block).put(logits_BV, targets_C[block], scaling.select(block), spare_BV)
            if keep and self.low_CV is not None:
                self.high_CV[block] = logits_BV

    def put_gradients(
        self, out_CV: Tensor, rows: Rows, row_grads: RowGrads, targets_C: Tensor, scaling: Scaling
    ) -> None:
        """The gradient of the chunk's logits into `out_CV`, which may be `self.place()`."""
        if self.triton:
            from r1fast.kernels.token_logprob_kernels import put_gradients

            put_gradients(out_CV, self._whole(), targets_C, rows, row_grads, scaling)
            return
        for block in blocks(self.rows, self.vocabulary, self.high_CV.device):
            logits_BV = self._block(block)
            row_grads.select(block).apply_(logits_BV, targets_C[block], rows.select(block), scaling.select(block))
            if logits_BV.data_ptr() != out_CV[block].data_ptr():
                out_CV[block] = logits_BV

    def folds(self, softcap: float | None) -> bool:
        """Whether `HeadGradients.fold` can take the place of `add`: on the CPU. A soft cap's derivative needs the
        logits again; fp16 has no room for exp(z - max z) below 6e-8."""
        return not (self.triton or self.high_CV.is_cuda or softcap is not None or self.high_CV.dtype == torch.float16)

    def place(self) -> Tensor:
        """Where the gradient of the chunk's logits may stand: nobody needs a block's logits after it."""
        return self.high_CV[: self.rows]

    def _block(self, rows: slice) -> Tensor:
        """Those rows of the chunk's logits [B, V] in the accumulator's dtype: the buffer itself, or made from two."""
        logits_BV = self.high_CV[rows]
        if self.low_CV is not None:
            if self.scratch is None:
                logits_BV = logits_BV.to(self.dtype).add_(self.low_CV[rows])
            else:
                low_BV = self._scratch(1, rows).copy_(self.low_CV[rows])
                logits_BV = self._scratch(0, rows).copy_(logits_BV).add_(low_BV)
            if self.bias_V is not None:
                logits_BV.add_(self.bias_V)
        return logits_BV

    def _scratch(self, index: int, rows: slice) -> Tensor:
        assert self.scratch is not None
        return self.scratch[index, : rows.stop - rows.start]

    def _whole(self) -> Tensor:
        return self._block(slice(0, self.rows))


class HeadGradients:
    """Sums the gradients of hidden, weight and bias over chunks; the weight's in fp32. None where not needed."""

    def __init__(
        self,
        chunks: HeadChunks,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        needs: tuple[bool, bool, bool],
    ) -> None:
        self.chunks, self.hidden_TD, self.weight_VD = chunks, hidden_TD, weight_VD
        self.needs = needs
        # fp16 holds the hidden state's gradient only after the loss scaler's factor, which may come later.
        dtype = torch.float32 if hidden_TD.dtype == torch.float16 else hidden_TD.dtype
        self.dhidden_TD = torch.empty(hidden_TD.shape, dtype=dtype, device=hidden_TD.device) if needs[0] else None
        self.dweight_VD: Tensor | None = None
        self.dbias_V = None if bias_V is None or not needs[2] else bias_V.new_zeros(bias_V.shape, dtype=chunks.dtype)
        shape = (chunks.plan.stash_rows, chunks.vocabulary)
        self.stash_SV = torch.empty(shape, dtype=hidden_TD.dtype, device=hidden_TD.device) if shape[0] else None
        self.start = 0  # of the tokens in the stash

    def add(self, chunk: slice, rows: Rows, row_grads: RowGrads, targets_C: Tensor, scaling: Scaling) -> None:
        """The chunk whose logits are computed, given its rows' results and gradients."""
        row_grads, unit = _normalised(row_grads, self.hidden_TD.dtype)
        dlogits_CV = self._place(chunk)
        self.chunks.put_gradients(dlogits_CV, rows, row_grads, targets_C, scaling)
        if self.dhidden_TD is not None:
            if unit is None:
                torch.mm(dlogits_CV, self.weight_VD, out=self.dhidden_TD[chunk])
            else:
                self.dhidden_TD[chunk] = torch.mm(dlogits_CV, self.weight_VD).float() * unit
        if self.dbias_V is not None:
            total_V = dlogits_CV.sum(0, dtype=self.chunks.dtype)
            self.dbias_V += total_V if unit is None else total_V * unit
        following = min(self.chunks.plan.chunk_rows, self.chunks.num_tokens - chunk.stop)
        room = 0 if self.stash_SV is None else len(self.stash_SV) - (chunk.stop - self.start)
        if not following or following > room:
            if self.needs[1]:
                self._multiply(slice(self.start, chunk.stop), dlogits_CV, unit)
            self.start = chunk.stop

    def fold(self, chunk: slice, rows: Rows, dlogp_C: Tensor, targets_C: Tensor, scaling: Scaling) -> None:
        """`add` for a chunk whose logits `put_rows` turned into e = exp(z - max z), which is dlogits but for factors:

        dlogits_ij = c_i e_ij for j != target_i,  c = -dlogp exp(-log_sum) / temperature,  and
        dlogits_it = dlogp_i (1 - p_it) / temperature.  So c goes to the small side of each product, and the target's
        part, taken out of e (where p_it is nearly 1 the difference would drown in e's rounding), is added in fp32.
        """
        e_CV, hidden_CD = self.chunks.place(), self.hidden_TD[chunk]
        index_C = targets_C.long()
        everyone_C = torch.arange(len(index_C))  # scatter_ would copy all of e
        e_CV[everyone_C, index_C] = 0.0
        heated_C = dlogp_C * scaling.inverse_temperature
        c_C, target_C = -heated_C * torch.exp(-rows.log_sum), -heated_C * torch.expm1(rows.logp)
        if self.dhidden_TD is not None:
            others_CD = torch.mm(e_CV, self.weight_VD).to(c_C.dtype).mul_(c_C[:, None])
            own_CD = self.weight_VD.index_select(0, index_C).to(c_C.dtype)
            self.dhidden_TD[chunk] = others_CD.addcmul_(own_CD, target_C[:, None])
        if self.dbias_V is not None:
            self.dbias_V += torch.mv(e_CV.T, c_C.to(e_CV.dtype))
            self.dbias_V.index_add_(0, index_C, target_C)
        if self.needs[1]:
            wide_CD = hidden_CD.to(c_C.dtype)
            self._accumulate(e_CV, (wide_CD * c_C[:, None]).to(e_CV.dtype), None).index_add_(
                0, index_C, wide_CD * target_C[:, None]
            )

    def _place(self, chunk: slice) -> Tensor:
        """Where the chunk's gradient goes: behind what the stash holds already."""
        if self.stash_SV is None:
            return self.chunks.place()
        return self.stash_SV[chunk.start - self.start : chunk.stop - self.start]

    def _multiply(self, tokens: slice, dlogits_CV: Tensor, unit: Tensor | None) -> None:
        """The weight's gradient from the tokens in the stash, or from the chunk alone."""
        dlogits_SV = dlogits_CV if self.stash_SV is None else self.stash_SV[: tokens.stop - tokens.start]
        hidden_SD = self.hidden_TD[tokens]
        if self.chunks.plan.whole and unit is None:
            self.dweight_VD = torch.mm(dlogits_SV.T, hidden_SD)
        else:
            self._accumulate(dlogits_SV, hidden_SD, unit)

    def _accumulate(self, dlogits_SV: Tensor, hidden_SD: Tensor, unit: Tensor | None) -> Tensor:
        """The fp32 sum of the weight's gradient, with these tokens' part; the first ones write where others add."""
        first = self.dweight_VD is None
        if self.dweight_VD is None:
            self.dweight_VD = torch.empty(self.weight_VD.shape, dtype=self.chunks.dtype, device=hidden_SD.device)
        _outer_(self.dweight_VD, dlogits_SV, hidden_SD, unit, add=not first)
        return self.dweight_VD

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dhidden (fp32 for fp16), dweight (fp32 or the weight's dtype), dbias (fp32)."""
        if self.needs[1] and self.dweight_VD is None:  # no token
            self.dweight_VD = self.weight_VD.new_zeros(self.weight_VD.shape)
        return self.dhidden_TD, self.dweight_VD, self.dbias_V


def _outer_(total_VD: Tensor, dlogits_SV: Tensor, hidden_SD: Tensor, unit: Tensor | None, *, add: bool) -> None:
    """total = or += dlogits.T @ hidden, in fp32; by slabs of the vocabulary, so that no second [V, D] exists."""
    if total_VD.dtype == hidden_SD.dtype:
        total_VD.addmm_(dlogits_SV.T, hidden_SD) if add else torch.mm(dlogits_SV.T, hidden_SD, out=total_VD)
        return
    slab = max(1, (_SLAB_BYTES if hidden_SD.is_cuda else _CPU_SLAB_BYTES) // (4 * hidden_SD.shape[1]))
    # On the CPU a sum of two dtypes makes a copy in fp32: of little it stays in the cache, of much it is fresh pages.
    piece = slab if hidden_SD.is_cuda else max(1, _PIECE_BYTES // (4 * hidden_SD.shape[1]))
    for start in range(0, len(total_VD), slab):
        part_VS = dlogits_SV[:, start : start + slab].T
        if hidden_SD.is_cuda:
            product_VD = torch.mm(part_VS, hidden_SD, out_dtype=total_VD.dtype)
        else:
            product_VD = torch.mm(part_VS, hidden_SD)
        own_VD = total_VD[start : start + slab]
        for row in range(0, len(own_VD), piece):
            total, product = own_VD[row : row + piece], product_VD[row : row + piece]
            scaled = product if unit is None else product.to(total_VD.dtype) * unit
            total.add_(scaled) if add else total.copy_(scaled)


def _normalised(row_grads: RowGrads, dtype: torch.dtype) -> tuple[RowGrads, Tensor | None]:
    """For fp16 only: gradients over their largest value, and that value; 1 / (global tokens) may underflow in fp16."""
    parts = [grad for grad in row_grads if grad is not None]
    if dtype != torch.float16 or not parts or not len(parts[0]):
        return row_grads, None
    largest = torch.stack([torch.where(grad.isfinite(), grad, 0.0).abs().amax() for grad in parts]).amax()
    unit = largest.clamp(min=torch.finfo(torch.float32).tiny)
    return RowGrads(*(None if grad is None else grad / unit for grad in row_grads)), unit
