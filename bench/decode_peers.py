"""Other libraries' decode attention on the same batch, from pages of 64 tokens; those of a shared prefix are the same.

Read with flashinfer-python 0.7.2 and torch 2.13. Slots that nobody wrote are zeros here: ours may find NaN there.
"""

# S sequences, H query heads, K KV heads, D head_dim, P pages, M pages of a table's row

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import util
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from bench.harness import Outputs, Variant, plain
from bench.peers import peer

FLASHINFER, VARLEN = "FlashInfer paged decode", "torch varlen_attn, block_table"
WORKSPACE_BYTES = 128 << 20  # what FlashInfer recommends
PLANNED_BEFORE = "planned before, on the host"


@dataclass(frozen=True)
class WholePages:
    """Sequences as lists of whole pages of `keys` and `values` [P, K, 64, D], the last of which may be partly used."""

    query_SHD: Tensor
    keys: Tensor
    values: Tensor
    pages: Sequence[Tensor]
    lengths: Sequence[int]

    def table_SM(self) -> Tensor:
        """int32, 0 behind each sequence's pages."""
        return torch.nn.utils.rnn.pad_sequence(list(self.pages), batch_first=True).int()

    def written(self, x: Tensor) -> Tensor:
        """A copy of keys or values with zeros in the slots that nobody wrote."""
        return x.nan_to_num(nan=0.0)


def decode_peers(batch: WholePages | None) -> list[Variant]:
    """FlashInfer's paged decode on tensor cores and torch's varlen_attn. None: a prefix ends within a page."""
    if batch is None:
        return [Variant(name, "peer", None, "", "needs a prefix of whole pages") for name in (FLASHINFER, VARLEN)]
    flashinfer = peer(
        "flashinfer-python", FLASHINFER, lambda: plain(_flashinfer(batch)), PLANNED_BEFORE, needs_cuda=True
    )
    absent = _no_varlen()
    varlen = Variant(VARLEN, "peer", None if absent else lambda: _varlen(batch), "FlashAttention 3", absent)
    return [flashinfer, varlen]


def _flashinfer(batch: WholePages) -> Callable[[], Outputs]:
    device, (_, num_heads, head_dim) = batch.query_SHD.device, batch.query_SHD.shape
    num_kv_heads, page_tokens = batch.keys.shape[1:3]
    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = importlib.import_module("flashinfer").BatchDecodeWithPagedKVCacheWrapper(
        workspace, "HND", use_tensor_cores=True
    )
    ends = [0, *accumulate(len(pages) for pages in batch.pages)]
    last = [(length - 1) % page_tokens + 1 for length in batch.lengths]
    wrapper.plan(
        torch.tensor(ends, dtype=torch.int32, device=device),
        torch.cat(list(batch.pages)).int(),
        torch.tensor(last, dtype=torch.int32, device=device),
        num_heads,
        num_kv_heads,
        head_dim,
        page_tokens,
        q_data_type=batch.query_SHD.dtype,
        kv_data_type=batch.keys.dtype,
    )
    cache = (batch.written(batch.keys), batch.written(batch.values))
    return lambda: {"output": wrapper.run(batch.query_SHD, cache)}


def _no_varlen() -> str:
    """Why torch's varlen_attn cannot take pages here; empty where it can."""
    if "block_table" not in inspect.signature(varlen_attn).parameters:
        return f"torch {torch.__version__} takes no block_table"
    if util.find_spec("flash_attn_interface") is None:
        return "not installed: FlashAttention 3 (flash_attn_interface), which block_table needs"
    if not torch.cuda.is_available():
        return "needs a CUDA GPU"
    return "" if torch.cuda.get_device_capability()[0] == 9 else "FlashAttention 3 needs compute capability 9.0"


def _varlen(batch: WholePages) -> Callable[[], Outputs]:
    module = importlib.import_module("torch.nn.attention")
    if module.current_flash_attention_impl() != "FA3":
        module.activate_flash_attention_impl("FA3")  # SDPA with a mask, beside it here, takes another way
    device = batch.query_SHD.device
    key, value = (batch.written(x).transpose(1, 2).contiguous() for x in (batch.keys, batch.values))  # [P, 64, K, D]
    ends = torch.arange(len(batch.lengths) + 1, dtype=torch.int32, device=device)
    used = torch.tensor(batch.lengths, dtype=torch.int32, device=device)
    table, longest = batch.table_SM(), max(batch.lengths)

    def run() -> Outputs:
        found = varlen_attn(
            batch.query_SHD, key, value, ends, None, 1, longest, enable_gqa=True, seqused_k=used, block_table=table
        )
        assert isinstance(found, Tensor)
        return {"output": found}

    return run
