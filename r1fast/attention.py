"""The one attention function that every model runs: it dispatches on an explicit `attention_context`.

transformers hands a custom attention function no mask, so whoever calls the model says what the tokens may see by
passing `attention_context=` (it travels through the model's keyword arguments, also under gradient checkpointing).
A missing context, or a layer that wants something no context supports, raises: nothing is ignored.
"""

# T packed tokens, H query heads, K key/value heads, E head dimension, N sequences, R rows of a bucket, L its length

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

ATTENTION_NAME = "r1fast"
MAX_BUCKET_WASTE = 0.2  # of a bucket's padded tokens: below this one more SDPA call costs more than the padding

# keyword arguments that models pass along and that do not change what attention computes
_HARMLESS = frozenset(
    {
        *("position_ids", "cache_position", "use_cache", "logits_to_keep", "training"),
        *("output_hidden_states", "output_router_logits", "return_dict"),
    }
)


class AttentionContext(Protocol):
    """What a caller puts into `attention_context=`: which tokens attend to which, and where keys and values live."""

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Causal attention of one layer.

        `query` [B, H, S, E], `key` and `value` [B, K, S, E] after rotation, H a multiple of K (B = 1, S = T when
        packed); `module` is the layer's attention module (`module.layer_idx` names the layer); the scores are
        multiplied by `scaling`. Returns [B, S, H, E] (the layout transformers expects) in the dtype of `query`.
        """
        ...


def register_attention() -> None:
    """Register the function as `attn_implementation="r1fast"` with transformers; calling it again changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, attention_forward)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    attention_context: AttentionContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention call, [B, H, S, E] -> ([B, S, H, E], None).

    Raises RuntimeError without a context, and ValueError, by name, for whatever a context would ignore.
    """
    if attention_context is None:
        raise RuntimeError(
            f"attention {ATTENTION_NAME!r} needs attention_context=, which says what each token may see; pass it to "
            "the model's forward (Policy.hidden and RolloutEngine do), or load the model with the default attention"
        )
    _refuse_unsupported(module, attention_mask, dropout, kwargs)
    scale = float(query.shape[-1]) ** -0.5 if scaling is None else scaling
    return attention_context.attend(module, query, key, value, scale), None


def _refuse_unsupported(
    module: torch.nn.Module, attention_mask: Tensor | None, dropout: float, kwargs: dict[str, Any]
) -> None:
    wanted: dict[str, object] = {}
    if attention_mask is not None:
        wanted["attention_mask"] = tuple(attention_mask.shape)
    if dropout > 0:
        wanted["dropout"] = dropout
    if not getattr(module, "is_causal", True):
        wanted["is_causal"] = False
    for name, value in kwargs.items():
        if value is None or name in _HARMLESS:
            continue
        if (name == "is_causal" and value is True) or (name == "output_attentions" and value is False):
            continue
        wanted[name] = value if isinstance(value, (int, float, str)) else type(value).__name__
    if wanted:
        listed = ", ".join(f"{name}={value}" for name, value in wanted.items())
        raise ValueError(
            f"{type(module).__name__} asks for {listed}, which attention {ATTENTION_NAME!r} does not support: it is "
            "full causal attention, no sliding window (sliding_window), no sinks (s_aux), no softcap, no dropout, no "
            "mask; switch the feature off in the model's config if the model allows it, or use another model"
        )


class PackedContext:
    """Training attention: causal within each of the packed sequences, nothing across them.

    `cu_seqlens`: int32 [N+1], first 0, non-decreasing, last T (a CUDA tensor is copied to the host once).
    `device`: where the model runs, default that of `cu_seqlens`. CUDA in bf16 or fp16 runs torch's `varlen_attn`;
    everything else runs one causal SDPA call per length bucket. The indices are computed once, on first use, for
    all layers. Raises ValueError for malformed lengths, and in `attend` when T differs.
    """

    def __init__(self, cu_seqlens: Tensor, device: torch.device | None = None) -> None:
        bounds: list[int] = cu_seqlens.tolist()
        if cu_seqlens.dim() != 1 or len(bounds) < 2 or bounds[0] != 0 or bounds != sorted(bounds):
            raise ValueError(f"cu_seqlens must be 1-D, start at 0 and never decrease, got {bounds[:8]}...")
        self.device = cu_seqlens.device if device is None else device
        self.num_tokens = bounds[-1]
        self.lengths = [end - start for start, end in pairwise(bounds)]
        self.max_length = max(self.lengths)
        self.cu_seqlens = cu_seqlens.to(self.device, torch.int32)
        self._plan: _BucketPlan | None = None

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionContext.attend; B must be 1 and S the number of packed tokens."""
        if query.shape[0] != 1 or query.shape[2] != self.num_tokens or key.shape[2] != self.num_tokens:
            raise ValueError(
                f"packed attention wants [1, heads, {self.num_tokens}, E], got query {tuple(query.shape)} and key "
                f"{tuple(key.shape)}; pass use_cache=False and token ids of shape [1, T]"
            )
        query_THE, key_TKE, value_TKE = (x[0].transpose(0, 1) for x in (query, key, value))
        if query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16):
            return self._attend_varlen(query_THE, key_TKE, value_TKE, scaling).unsqueeze(0)
        if self._plan is None:
            self._plan = _BucketPlan.of(self.lengths, query.device)
        return self._plan.attend(query_THE, key_TKE, value_TKE, scaling).unsqueeze(0)

    def _attend_varlen(self, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, scaling: float) -> Tensor:
        varlen_attn, has_gqa = _varlen_attention()
        options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}  # no look-ahead: causal
        num_groups = query_THE.shape[1] // key_TKE.shape[1]
        if num_groups > 1 and has_gqa:
            options["enable_gqa"] = True
        elif num_groups > 1:
            key_TKE, value_TKE = (x.repeat_interleave(num_groups, dim=1) for x in (key_TKE, value_TKE))
        seqlens, longest = self.cu_seqlens, self.max_length
        out: Tensor = varlen_attn(
            query_THE.contiguous(), key_TKE.contiguous(), value_TKE.contiguous(),
            seqlens, seqlens, longest, longest, **options,
        )  # fmt: skip
        return out


@cache
def _varlen_attention() -> tuple[Any, bool]:
    """torch's variable-length attention, and whether this version takes (and then demands) `enable_gqa`."""
    from torch.nn.attention.varlen import varlen_attn  # CUDA only, and absent from CPU-only builds before 2.10

    parameters = inspect.signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= parameters.keys():
        raise RuntimeError(f"torch {torch.__version__} has a varlen_attn without window_size; install torch >= 2.11")
    return varlen_attn, "enable_gqa" in parameters


def length_buckets(lengths: Sequence[int], max_waste: float = MAX_BUCKET_WASTE) -> list[list[int]]:
    """Group sequence numbers into buckets, longest first, none of them padded by more than `max_waste` of its area.

    Empty sequences are in no bucket.
    """
    buckets: list[list[int]] = []
    longest = filled = 0
    for number in sorted((n for n, length in enumerate(lengths) if length), key=lambda n: (-lengths[n], n)):
        length = lengths[number]
        if buckets and filled + length >= (1.0 - max_waste) * longest * (len(buckets[-1]) + 1):
            buckets[-1].append(number)
            filled += length
        else:
            buckets.append([number])
            longest = filled = length
    return buckets


def heads_for(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Keys and values for scaled_dot_product_attention, and its `enable_gqa`; dimension 1 is the heads'.

    On CUDA with the query's heads: in fp32, and under a mask in any dtype, the kernel that holds no scores [L, L] takes
    equal heads alone.
    """
    if query.shape[1] == key.shape[1] or query.device.type != "cuda":
        return key, value, query.shape[1] != key.shape[1]
    groups = query.shape[1] // key.shape[1]
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1), False


@dataclass(frozen=True)
class _BucketPlan:
    """Where each packed token sits in the right-padded buckets, and back.

    `gather`: int64 [P], the packed token of every padded slot (a pad repeats its sequence's last token); `is_pad`:
    bool [P, 1, 1] or None without pads; `scatter`: int64 [T], the padded slot of every packed token; `shapes`: R and
    L of each bucket, P = the sum of R L.
    """

    gather: Tensor
    is_pad: Tensor | None
    scatter: Tensor
    shapes: list[tuple[int, int]]

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> _BucketPlan:
        length_N = torch.tensor(lengths, dtype=torch.int64)
        start_N = length_N.cumsum(0) - length_N
        gathers, pads, shapes = [], [], []
        for bucket in length_buckets(lengths):
            rows = torch.tensor(bucket)
            longest = int(length_N[bucket[0]])
            offset_L = torch.arange(longest)
            last_R1 = length_N[rows, None] - 1
            gathers.append((start_N[rows, None] + torch.minimum(offset_L, last_R1)).flatten())
            pads.append((offset_L > last_R1).flatten())
            shapes.append((len(bucket), longest))
        gather = torch.cat(gathers) if gathers else torch.zeros(0, dtype=torch.int64)
        pad = torch.cat(pads) if pads else torch.zeros(0, dtype=torch.bool)
        slots = (~pad).nonzero().squeeze(1)
        scatter = torch.empty(int(length_N.sum()), dtype=torch.int64)
        scatter[gather[slots]] = slots
        is_pad = pad[:, None, None].to(device) if bool(pad.any()) else None
        return _BucketPlan(gather.to(device), is_pad, scatter.to(device), shapes)

    def attend(self, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor, scaling: float) -> Tensor:
        dtype = query_THE.dtype
        if query_THE.device.type == "cpu":  # torch's CPU bf16 backward is up to 3 times slower than fp32, never faster
            query_THE, key_TKE, value_TKE = query_THE.float(), key_TKE.float(), value_TKE.float()
        key_TKE, value_TKE, gqa = heads_for(query_THE, key_TKE, value_TKE)
        sizes = [rows * length for rows, length in self.shapes]
        padded = [torch.split(self._pad(x), sizes) for x in (query_THE, key_TKE, value_TKE)]
        outs = []
        for (rows, length), *qkv in zip(self.shapes, *padded, strict=True):
            query, key, value = (x.unflatten(0, (rows, length)).transpose(1, 2) for x in qkv)
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=gqa)
            outs.append(out.transpose(1, 2).flatten(0, 1))
        return self._unpad(torch.cat(outs)).to(dtype) if outs else query_THE.to(dtype)

    def _pad(self, x: Tensor) -> Tensor:
        padded: Tensor = _Pad.apply(x, self)  # type: ignore[no-untyped-call]
        return padded

    def _unpad(self, x: Tensor) -> Tensor:
        packed: Tensor = _Unpad.apply(x, self)  # type: ignore[no-untyped-call]
        return packed


class _Pad(torch.autograd.Function):
    """Packed to padded. A pad's gradient is exactly 0 (no real token sees it), so backward is a gather, not a sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _BucketPlan) -> Tensor:
        ctx.plan = plan
        return x.index_select(0, plan.gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.plan.scatter), None


class _Unpad(torch.autograd.Function):
    """Padded to packed: pads are dropped and get gradient 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _BucketPlan) -> Tensor:
        ctx.plan = plan
        return x.index_select(0, plan.scatter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].index_select(0, ctx.plan.gather)
        return (grad if ctx.plan.is_pad is None else grad.masked_fill_(ctx.plan.is_pad, 0.0)), None
