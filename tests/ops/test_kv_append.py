"""kv_append: every instruction set and the emulated kernel against fp64, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch
from backends import BACKENDS, EMULATED, using
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1fast.ops.kv_append import NOTHING, HeadTreatment, kv_append

UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
H, K, PAGES, POSITIONS = 6, 2, 4, 50


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Tokens:
    """New tokens of a fused projection [T, H + 2 K, D], their slots, and everything that may be done to them."""

    def __init__(self, num_tokens: int, head_dim: int, dtype: torch.dtype, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.fused = random(num_tokens, H + 2 * K, head_dim)
        self.query, self.key, self.value = self.fused.split([H, K, K], dim=1)
        self.slots = torch.randperm(PAGES * 64, generator=generator)[:num_tokens].int()
        self.positions = torch.randint(POSITIONS, (num_tokens,), generator=generator, dtype=torch.int32)
        angles = torch.rand(POSITIONS, head_dim // 2, generator=generator) * 100
        self.everything = HeadTreatment(
            query_bias_HD=random(H, head_dim),
            key_bias_KD=random(K, head_dim),
            value_bias_KD=random(K, head_dim),
            query_norm_D=random(head_dim),
            key_norm_D=random(head_dim),
            cosine_ND=angles.cos(),
            sine_ND=angles.sin(),
        )
        self.key_pages = torch.full((PAGES, K, 64, head_dim), torch.nan, dtype=dtype)
        self.value_pages = self.key_pages.clone()

    def append(self, treatment: HeadTreatment, *, with_query: bool) -> Tensor:
        """The treated queries, NaN where there are none."""
        out = torch.full(self.query.shape, torch.nan, dtype=self.query.dtype)
        kv_append(
            self.key,
            self.value,
            self.key_pages,
            self.value_pages,
            self.slots,
            query_THD=self.query if with_query else None,
            query_out_THD=out if with_query else None,
            position_T=self.positions,
            treatment=treatment,
        )
        return out

    def written(self, pages: Tensor) -> Tensor:
        """[T, K, D] from the pages; every other place must still be NaN."""
        flat = pages.transpose(1, 2).reshape(PAGES * 64, K, -1)
        kept = self.slots[self.slots >= 0].long()
        others = torch.ones(PAGES * 64, dtype=torch.bool)
        others[kept] = False
        assert flat[others].isnan().all()
        return flat[kept]


def treated(x: Tensor, bias: Tensor | None, norm: Tensor | None, tokens: Tokens, how: HeadTreatment) -> Tensor:
    """Bias, RMS norm and rotation in fp64."""
    x = x.double() + (0 if bias is None else bias.double())
    if norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + how.norm_eps) * norm.double()
    if how.cosine_ND is not None and how.sine_ND is not None:
        cosine, sine = (table[tokens.positions].double()[:, None] for table in (how.cosine_ND, how.sine_ND))
        low, high = x.chunk(2, dim=-1)
        x = torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)
    return x


def close(found: Tensor, exact: Tensor) -> None:
    """Rounded once, from fp32."""
    error = (found.double() - exact).abs()
    assert (error <= 1.01 * UNIT[found.dtype] * exact.abs() + 3e-6 * exact.abs().max() + 1e-7).all(), error.max()


@settings(max_examples=20)
@given(
    st.integers(1, 70),
    st.sampled_from([64, 96, 128, 256]),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.fixed_dictionaries({name: st.booleans() for name in ("bias", "norm", "rotation", "query")}),
)
def test_heads_are_treated_and_written(
    backend: str, num_tokens: int, head_dim: int, dtype: torch.dtype, parts: dict[str, bool]
) -> None:
    tokens = Tokens(num_tokens, head_dim, dtype)
    full = tokens.everything
    rotation = {"cosine_ND": full.cosine_ND, "sine_ND": full.sine_ND} if parts["rotation"] else {}
    bias = {"key_bias_KD": full.key_bias_KD, "value_bias_KD": full.value_bias_KD} if parts["bias"] else {}
    norm = {"key_norm_D": full.key_norm_D} if parts["norm"] else {}
    if parts["query"]:
        bias |= {"query_bias_HD": full.query_bias_HD} if parts["bias"] else {}
        norm |= {"query_norm_D": full.query_norm_D} if parts["norm"] else {}
    how = HeadTreatment(**(rotation | bias | norm))
    with using(backend):
        out = tokens.append(how, with_query=parts["query"])
    if parts["query"]:
        close(out, treated(tokens.query, how.query_bias_HD, how.query_norm_D, tokens, how))
    close(tokens.written(tokens.key_pages), treated(tokens.key, how.key_bias_KD, how.key_norm_D, tokens, how))
    plain = HeadTreatment()
    close(tokens.written(tokens.value_pages), treated(tokens.value, how.value_bias_KD, None, tokens, plain))


def test_a_plain_copy_is_bitwise_and_skipped_tokens_are_written_nowhere(backend: str) -> None:
    tokens = Tokens(9, 64, torch.bfloat16)
    tokens.slots[[2, 8]] = -1
    with using(backend):
        tokens.append(NOTHING, with_query=False)
    kept = tokens.slots >= 0
    assert torch.equal(tokens.written(tokens.key_pages), tokens.key[kept])
    assert torch.equal(tokens.written(tokens.value_pages), tokens.value[kept])


def test_queries_may_be_treated_in_place(backend: str) -> None:
    expected, tokens = Tokens(7, 96, torch.bfloat16), Tokens(7, 96, torch.bfloat16)
    with using(backend):
        out = expected.append(expected.everything, with_query=True)
        kv_append(
            tokens.key,
            tokens.value,
            tokens.key_pages,
            tokens.value_pages,
            tokens.slots,
            query_THD=tokens.query,
            query_out_THD=tokens.query,
            position_T=tokens.positions,
            treatment=tokens.everything,
        )
    assert torch.equal(tokens.query, out)


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80])
def test_the_cpu_takes_fp32_and_small_heads(backend: str, head_dim: int) -> None:
    if backend == EMULATED:
        pytest.skip("the CUDA kernels are for bf16 and fp16, head_dim 64, 96, 128 and 256")
    tokens = Tokens(9, head_dim, torch.float32)
    full = tokens.everything
    with using(backend):
        out = tokens.append(full, with_query=True)
    close(out, treated(tokens.query, full.query_bias_HD, full.query_norm_D, tokens, full))
    close(tokens.written(tokens.key_pages), treated(tokens.key, full.key_bias_KD, full.key_norm_D, tokens, full))


def test_no_tokens_are_nothing() -> None:
    tokens = Tokens(0, 64, torch.bfloat16)
    tokens.append(tokens.everything, with_query=True)
    assert tokens.key_pages.isnan().all()


def test_what_does_not_fit_is_refused() -> None:
    tokens = Tokens(5, 64, torch.bfloat16)
    good = dict(tokens.__dict__)

    def refused(message: str, how: HeadTreatment = NOTHING, *, with_query: bool = True, **changes: Tensor) -> None:
        tokens.__dict__.update(changes)
        with pytest.raises(ValueError, match=message):
            tokens.append(how, with_query=with_query)
        tokens.__dict__.update(good)

    refused(r"slot\[4\] = 256 is beyond the 4 pages of 64 tokens", slots=torch.tensor([0, 1, 2, 3, 256]).int())
    refused(r"slot_T must be int32 \[5\] on cpu", slots=tokens.slots.long())
    refused(
        r"position\[1\] = 50 is not one of the 50",
        tokens.everything,
        positions=torch.tensor([0, 50, 1, 1, 1], dtype=torch.int32),
    )
    refused(r"key_TKD must be bfloat16 \[5, 2, 64\]", key=tokens.key.float())
    refused(r"value_TKD must be bfloat16 \[5, 2, 64\]", value=tokens.value[:4])
    refused(r"begin on 16 bytes", key=torch.randn(5, 2, 65).bfloat16()[..., 1:])
    refused(r"query_bias_HD is given, query_THD is not", tokens.everything, with_query=False)
    refused(r"cosine_ND and sine_ND come together", HeadTreatment(cosine_ND=tokens.everything.cosine_ND))
    refused(r"key_norm_D must be bfloat16 \[64\]", HeadTreatment(key_norm_D=torch.ones(32).bfloat16()))
