"""How many tokens a budget holds, and that gradients do not depend on where they waited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_batch import Watch, batch, gradients

from r1fast.kernels import head_chunks
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.kernels.head_chunks import Plan, check_budget
from r1fast.kernels.linear_grpo import linear_grpo_loss, linear_grpo_loss_reference
from r1fast.kernels.linear_logprob import linear_logprob
from r1fast.ops.split_product import pays

MIB = 1 << 20


@given(
    num_tokens=st.integers(0, 40_000),
    vocabulary=st.sampled_from([32_000, 128_256, 151_936]),
    width=st.sampled_from([576, 1536, 4096, 8192]),
    budget=st.sampled_from([8 * MIB, 64 * MIB, 300 * MIB, 600 * MIB, 4096 * MIB]),
)
def test_what_waits_fits_the_budget_or_the_accumulators_place(
    num_tokens: int, vocabulary: int, width: int, budget: int
) -> None:
    plan = Plan.stashed(num_tokens, vocabulary, width, budget)
    held = 4 * vocabulary * plan.chunk_rows + 2 * vocabulary * plan.stash_rows
    assert 1 <= plan.chunk_rows <= max(1, num_tokens) and plan.stash_rows <= num_tokens
    if plan.whole:
        assert plan.stash_rows == num_tokens
        assert not num_tokens or held <= budget + 4 * vocabulary * width
    else:
        assert plan.stash_rows >= plan.chunk_rows and held <= budget


def test_one_product_for_the_weight_at_the_size_the_figures_are_for() -> None:
    assert Plan.stashed(8192, 151_936, 4096, 600 * MIB) == (1024, 8192, True)
    assert Plan.stashed(8192, 151_936, 4096, 300 * MIB) == (512, 8192, True)
    assert Plan.stashed(32_768, 151_936, 4096, 600 * MIB) == (512, 1024, False)


def test_a_budget_below_one_token_is_refused_before_anything_runs() -> None:
    """With room for the gradient where one can be asked for, so that backward never fails for want of it."""
    hidden, weight = torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(1000, 4, dtype=torch.bfloat16)
    for call in (
        lambda: check_budget(hidden, weight, None, 15_999),
        lambda: linear_logprob(hidden, weight, torch.zeros(3).long(), memory_budget_bytes=15_999),
    ):
        with pytest.raises(
            ValueError, match="memory_budget_bytes = 15999 holds no token of a vocabulary of 1000; give at least 16000"
        ):
            call()
    assert len(linear_logprob(hidden, weight, torch.zeros(3).long(), memory_budget_bytes=16_000).logp) == 3


@pytest.mark.parametrize(
    ("plan", "weight_products"),
    [(Plan(3, 13, True), 1), (Plan(4, 9, False), 2), (Plan(4, 4, False), 4), (Plan(5, 6, False), 3)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_that_wait_in_a_stash_are_the_same(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, weight_products: int, dtype: torch.dtype
) -> None:
    options = PolicyLoss(kl="k3", kl_coef=0.3, entropy_coef=0.1)
    arguments = batch(dtype) | {"mask_T": None}
    assert len(arguments["targets_T"]) == 13
    exact: dict[str, Any] = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in arguments.items()
    }
    plain = gradients(linear_grpo_loss, arguments, options)
    monkeypatch.setattr(head_chunks.Plan, "of", classmethod(lambda cls, *args, **kwargs: plan))
    with Watch() as watch:
        own = gradients(linear_grpo_loss, arguments, options)
    num_chunks = -(-13 // plan.chunk_rows)
    logits = num_chunks * (1 if dtype == torch.float32 else 0 if pays() else 2)  # in bf16 the extension's, or two
    assert watch.products == logits + num_chunks + weight_products
    for a, b, c in zip(own, plain, gradients(linear_grpo_loss_reference, exact, options), strict=True):
        error, error_of_plain = (float((x.double() - c).abs().max()) for x in (a, b))
        # a CPU rounds each chunk's product for the weight to bf16 before it is added in fp32
        unit = 2**-8 if dtype == torch.bfloat16 else 1e-5
        assert error <= 2 * error_of_plain + unit * float(c.abs().max())


@pytest.mark.skipif(not pays(), reason="needs the extension and a CPU that multiplies bf16")
@pytest.mark.parametrize("bias", [False, True])
def test_one_product_of_the_extension_is_two_of_torch(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 64, generator=generator).bfloat16() for rows in (70, 500))
    bias_V = torch.randn(500, generator=generator) if bias else None
    targets = torch.randint(500, (70,), generator=generator)
    exact = hidden.double() @ weight.double().T + (0 if bias_V is None else bias_V.double())
    wanted = exact.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    with Watch() as one:
        logp = linear_logprob(hidden, weight, targets, bias_V=bias_V).logp
    monkeypatch.setattr(head_chunks, "pays", lambda: False)
    with Watch() as two:
        other = linear_logprob(hidden, weight, targets, bias_V=bias_V).logp
    assert (one.products, two.products) == (0, 2)  # the extension's is none of PyTorch's ops
    assert (logp - wanted).abs().max() <= 2 * (other - wanted).abs().max() + 1e-6
