"""What the ops refuse, each with the value and what it must be."""

from __future__ import annotations

import pytest
import torch

from r1fast.ops.checks import CHUNK_TOKENS, PAGE_TOKENS, check_gqa, check_heads, check_pages, check_tensor
from r1fast.ops.extension import extension


def pages(*, head_dim: int = 64, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(3, 2, 64, head_dim, dtype=dtype)


def test_both_sides_have_the_same_sizes() -> None:
    info = extension().build_info()
    assert (info["page_tokens"], info["chunk_tokens"]) == (PAGE_TOKENS, CHUNK_TOKENS)


def test_pages_give_their_sizes() -> None:
    assert check_pages(pages(head_dim=96), pages(head_dim=96)) == (3, 2, 96)


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        (pages()[0], pages()[0], r"key_pages must be \[pages, kv_heads, 64, head_dim\]"),
        (pages(dtype=torch.float64), pages(), r"of bfloat16, float16 or \(on a CPU\) float32, it is float64"),
        (pages(), pages(dtype=torch.float16), r"value_pages must be like key_pages, bfloat16"),
        (pages(), torch.zeros(3, 64, 2, 64).bfloat16().transpose(1, 2), r"value_pages must lie like key_pages"),
        (pages(head_dim=128)[..., :64], pages(head_dim=128)[..., :64], r"tile of 64 x 64 must be contiguous"),
        (
            torch.zeros(3, 2 * 64 * 64 + 1).bfloat16()[:, :-1].view(3, 2, 64, 64),
            torch.zeros(3, 2 * 64 * 64 + 1).bfloat16()[:, :-1].view(3, 2, 64, 64),
            r"must be contiguous and begin on 16 bytes; the strides are \(8193, 4096, 64, 1\)",
        ),
        (pages(head_dim=40), pages(head_dim=40), r"head_dim = 40 must be a multiple of 16, at most 256"),
        (pages(head_dim=512), pages(head_dim=512), r"head_dim = 512 must be"),
    ],
)
def test_pages_that_do_not_fit(keys: torch.Tensor, values: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pages(keys, values)


def test_query_heads_for_each_kv_head() -> None:
    assert [check_gqa(heads, 2) for heads in (2, 14, 32)] == [1, 7, 16]
    for heads in (3, 0, 34):
        with pytest.raises(ValueError, match=rf"{heads} query heads for 2 KV heads.*1 to 16"):
            check_gqa(heads, 2)


def test_heads_that_do_not_begin_on_16_bytes() -> None:
    like = pages()
    check_heads("q", torch.zeros(5, 9, 64).bfloat16()[:, 2:6], (5, 4, 64), like)
    with pytest.raises(ValueError, match=r"q: every head must be contiguous and begin on 16 bytes.*call .contiguous"):
        check_heads("q", torch.zeros(5, 4, 68).bfloat16()[..., :64], (5, 4, 64), like)


def test_a_tensor_that_is_not_contiguous() -> None:
    device = torch.device("cpu")
    with pytest.raises(ValueError, match=r"x must be contiguous, its strides are \(1, 2\)"):
        check_tensor("x", torch.zeros(2, 3).int().T.contiguous().T, torch.int32, (2, 3), device)
    with pytest.raises(ValueError, match=r"x must be int32 \[2\] on cpu, it is int64 \[2\] on cpu"):
        check_tensor("x", torch.zeros(2).long(), torch.int32, (2,), device)
