"""Packed attention equals attention of each sequence alone; what it does not support is refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from r1fast.attention import MAX_BUCKET_WASTE, PackedContext, attention_forward, length_buckets, register_attention
from r1fast.rollout.paged_attention import attend_chunk

SCALING = 0.3


def _qkv(num_tokens: int, num_kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(1, num_tokens, heads, 16) for heads in (4, num_kv_heads, num_kv_heads)]
    return [torch.randn(shape, dtype=dtype).transpose(1, 2).detach().requires_grad_() for shape in shapes]


def _one_by_one(qkv: list[Tensor], lengths: list[int]) -> Tensor:
    """Plain masked attention of each sequence, written out: [1, T, H, E]."""
    query, key, value = qkv
    num_groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(num_groups, dim=1) for x in (key, value))
    outs, start = [], 0
    for length in lengths:
        part = slice(start, start + length)
        scores = query[:, :, part] @ key[:, :, part].transpose(-1, -2) * SCALING
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        outs.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value[:, :, part])
        start += length
    return torch.cat(outs, dim=2).transpose(1, 2)


@pytest.mark.parametrize("lengths", [[5, 17, 1, 0, 9, 17, 3], [8, 8], [1], [0, 4], [40, 2, 2, 2]])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_packed_equals_each_alone_with_gradients(lengths: list[int], num_kv_heads: int) -> None:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    qkv = _qkv(sum(lengths), num_kv_heads, torch.float64)
    expected = _one_by_one(qkv, lengths)
    weights = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weights).sum(), qkv)
    qkv32 = [x.detach().float().requires_grad_() for x in qkv]
    out, none = attention_forward(
        torch.nn.Identity(), *qkv32, None, scaling=SCALING, attention_context=PackedContext(cu_seqlens)
    )
    assert none is None
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad((out * weights.float()).sum(), qkv32)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-5, atol=1e-5)


def test_bfloat16_rounds_only_inputs_and_output() -> None:
    lengths = [5, 30, 2]
    qkv = _qkv(37, 2, torch.bfloat16)
    out = PackedContext(torch.tensor([0, 5, 35, 37])).attend(torch.nn.Identity(), *qkv, SCALING)
    assert out.dtype == torch.bfloat16
    expected = _one_by_one([x.double() for x in qkv], lengths)
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-5)
    out.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.bfloat16 for x in qkv)


def test_a_pad_cannot_reach_a_real_token() -> None:
    """Non-finite gradients of nothing: the padded slots are dropped, not multiplied by zero."""
    lengths = [20, 19, 17]
    qkv = _qkv(56, 4, torch.float32)
    out = PackedContext(torch.tensor([0, 20, 39, 56])).attend(torch.nn.Identity(), *qkv, SCALING)
    out[:, :20].sum().backward()
    for x in qkv:
        assert x.grad is not None and not x.grad[:, :, 20:].any() and x.grad[:, :, :20].isfinite().all()
    assert [len(bucket) for bucket in length_buckets(lengths)] == [3]


def test_buckets_cover_all_and_bound_the_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 200, (300,), generator=generator).tolist()
    buckets = length_buckets(lengths)
    assert sorted(n for bucket in buckets for n in bucket) == [n for n, length in enumerate(lengths) if length]
    for bucket in buckets:
        sizes = [lengths[n] for n in bucket]
        assert sum(sizes) >= (1 - MAX_BUCKET_WASTE) * len(sizes) * max(sizes)
    assert len(buckets) < 15


def test_indices_are_made_once_for_all_layers() -> None:
    context = PackedContext(torch.tensor([0, 3, 8]))
    qkv = _qkv(8, 2, torch.float32)
    context.attend(torch.nn.Identity(), *qkv, SCALING)
    plan = context._plan
    context.attend(torch.nn.Identity(), *qkv, SCALING)
    assert plan is not None and context._plan is plan


def test_default_scale_is_the_usual_one() -> None:
    qkv = _qkv(6, 4, torch.float32)
    out, _ = attention_forward(torch.nn.Identity(), *qkv, None, attention_context=PackedContext(torch.tensor([0, 6])))
    torch.testing.assert_close(out, F.scaled_dot_product_attention(*qkv, is_causal=True).transpose(1, 2))


def test_missing_context_raises() -> None:
    with pytest.raises(RuntimeError, match="attention_context"):
        attention_forward(torch.nn.Identity(), *_qkv(4, 4, torch.float32), None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sliding_window", 4),
        ("s_aux", torch.zeros(4)),
        ("softcap", 50.0),
        ("dropout", 0.1),
        ("is_causal", False),
        ("output_attentions", True),
        ("position_bias", torch.zeros(1)),
    ],
)
def test_unsupported_wishes_are_refused_by_name(name: str, value: object) -> None:
    context = PackedContext(torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=name):
        attention_forward(
            torch.nn.Identity(), *_qkv(4, 4, torch.float32), None, attention_context=context, **{name: value}
        )


def test_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_mask"):
        attention_forward(
            torch.nn.Identity(),
            *_qkv(4, 4, torch.float32),
            torch.ones(1, 4),
            attention_context=PackedContext(torch.tensor([0, 4])),
        )


def test_harmless_keywords_pass() -> None:
    context = PackedContext(torch.tensor([0, 4]))
    attention_forward(
        torch.nn.Identity(), *_qkv(4, 4, torch.float32), None,
        attention_context=context, sliding_window=None, position_ids=torch.arange(4), use_cache=False, is_causal=True,
    )  # fmt: skip


@pytest.mark.parametrize("bounds", [[1, 3], [0, 3, 2], [0], [[0, 1]]])
def test_malformed_lengths_are_refused(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        PackedContext(torch.tensor(bounds))


def test_wrong_number_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="packed attention wants"):
        PackedContext(torch.tensor([0, 5])).attend(torch.nn.Identity(), *_qkv(4, 4, torch.float32), 1.0)


def test_registering_twice_changes_nothing() -> None:
    from transformers import AttentionInterface

    register_attention()
    register_attention()
    assert AttentionInterface()["r1fast"] is attention_forward


@pytest.mark.gpu
def test_float32_holds_no_scores_on_a_gpu() -> None:
    """Keys and values of fewer heads would take torch's path that does: [8, L, L], thrice, is 1.5 GiB here."""
    length = 4096
    qkv = [torch.randn(1, heads, length, 64, device="cuda", requires_grad=True) for heads in (8, 2, 2)]
    context = PackedContext(torch.tensor([0, length]), torch.device("cuda"))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    context.attend(torch.nn.Identity(), *qkv, SCALING).square().sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 200 << 20


def test_a_later_chunk_holds_no_scores_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a mask torch repeats no heads in the kernels that hold none: with enable_gqa it takes the one that does."""
    seen: list[tuple[int, int, bool]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, *, enable_gqa: bool, **_: object) -> Tensor:
        seen.append((key.shape[1], value.shape[1], enable_gqa))
        return torch.empty_like(query)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    for device in ("cuda", "cpu"):
        with FakeTensorMode():  # needs no GPU
            query, key, value = (torch.empty(1, n, s, 64, device=device) for n, s in ((8, 16), (2, 48), (2, 48)))
            assert attend_chunk(query, key, value, 32, SCALING).shape == (1, 16, 8, 64)
    assert seen == [(8, 8, False), (2, 2, True)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_later_chunk_on_a_gpu(dtype: torch.dtype) -> None:
    """Each query's head sees its own group's keys; the scores alone would take 512 MiB, in fp32 1 GiB."""
    torch.manual_seed(0)
    length, chunk = 16384, 2048
    shapes = ((8, chunk), (2, length), (2, length))
    query, key, value = (torch.randn(1, heads, size, 64, device="cuda", dtype=dtype) for heads, size in shapes)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = attend_chunk(query, key, value, length - chunk, SCALING)
    assert torch.cuda.max_memory_allocated() - before < 400 << 20
    last = slice(chunk - 16, chunk)
    expected = attend_chunk(*(x.cpu().float() for x in (query[:, :, last], key, value)), length - 16, SCALING)
    torch.testing.assert_close(out[:, last].cpu().float(), expected, rtol=0.02, atol=0.01)
