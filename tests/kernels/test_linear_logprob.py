"""Values and gradients of `linear_logprob` against fp64, its memory, and fp32 logits from bf16 inputs."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_batch import Watch
from rounding import assert_rule_18
from torch import Tensor

from r1fast.kernels.linear_logprob import linear_logprob, linear_logprob_reference
from r1fast.kernels.token_logprob import TokenLogprob


def inputs(
    num_tokens: int, vocabulary: int, width: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden, weight, bias, targets."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_tokens, width), (vocabulary, width), (vocabulary,)]
    hidden, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return hidden, weight, bias, torch.randint(vocabulary, (num_tokens,), generator=generator)


def loss(result: TokenLogprob) -> Tensor:
    """A random combination of all the outputs, of the size a mean over tokens has."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for output in result:
        if output is not None:
            total = total + (output.double() * torch.randn(len(output), generator=generator, dtype=torch.float64)).sum()
    return total


def gradients(function: Any, parts: tuple[Tensor, ...], targets: Tensor, **options: Any) -> tuple[Tensor, ...]:
    hidden, weight, bias = (part.detach().clone().requires_grad_() for part in parts)
    result = function(hidden, weight, targets, bias_V=bias, **options)
    return torch.autograd.grad(loss(result), (hidden, weight, bias))


@given(
    num_tokens=st.integers(0, 6),
    vocabulary=st.sampled_from([1, 5, 33]),
    softcap=st.sampled_from([None, 5.0]),
    temperature=st.sampled_from([1.0, 0.6, "per token"]),
    entropy=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_values_and_gradients_against_fp64(
    num_tokens: int, vocabulary: int, softcap: float | None, temperature: float | str, entropy: bool, dtype: torch.dtype
) -> None:
    *parts, targets = inputs(num_tokens, vocabulary, dtype=dtype)
    heat = torch.linspace(0.5, 2.0, num_tokens) if isinstance(temperature, str) else temperature
    options = {"temperature": heat, "softcap": softcap, "entropy": entropy}
    exact = [part.double() for part in parts]
    result = linear_logprob(*parts[:2], targets, bias_V=parts[2], **options)
    truth = linear_logprob_reference(*exact[:2], targets, bias_V=exact[2], **options)
    same = linear_logprob_reference(*parts[:2], targets, bias_V=parts[2], **options)
    # the logits' size; in bf16 and fp16 a CPU has them to 2^-16 and to 2^-22, not to 2^-24
    size = {torch.bfloat16: 2.0**8, torch.float16: 2.0**6}.get(dtype, 2.0) * 8
    for a, b, c in zip(result, same, truth, strict=True):
        assert (a is None) == (c is None)
        if a is not None and b is not None and c is not None:
            assert_rule_18(a, b, c, least_size=size)
    own = gradients(linear_logprob, tuple(parts), targets, **options)
    plain = gradients(linear_logprob_reference, tuple(parts), targets, **options)
    true = gradients(linear_logprob_reference, tuple(exact), targets, **options)
    for part, a, b, c in zip(parts, own, plain, true, strict=True):
        assert a.dtype == part.dtype
        # the gradient of the logits is rounded to the dtype before the products, whatever remains of it after them
        assert_rule_18(a, b, c, least_size=24.0)


@pytest.mark.parametrize(("entropy", "softcap"), list(product([False, True], [None, 4.0])))
def test_gradcheck(entropy: bool, softcap: float | None) -> None:
    *parts, targets = inputs(3, 5, width=4)

    def outputs(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        heat = torch.tensor([0.5, 1.0, 1.7], dtype=torch.float64)
        result = linear_logprob(
            hidden, weight, targets, bias_V=bias, temperature=heat, softcap=softcap, entropy=entropy
        )
        return tuple(output for output in result if output is not None)

    assert torch.autograd.gradcheck(outputs, [part.requires_grad_() for part in parts])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 576), (1, 7, 576), (3, 4097, 64), (64, 500, 576), (2, 5, 4096)])
def test_low_precision_logits_are_fp32_in_effect(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """bf16 logits, as others hold them, are off by up to 0.1 here: ratios of the same policy far from 1."""
    hidden, weight, _, targets = inputs(*shape, dtype=dtype)
    weight = (weight.double() * 4 / shape[2] ** 0.5).to(dtype)
    own = linear_logprob(hidden, weight, targets, entropy=True)
    exact = linear_logprob_reference(hidden.double(), weight.double(), targets, entropy=True)
    for a, b in zip(own, exact, strict=True):
        assert float((a.double() - b).abs().max()) < 5e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_neither_values_nor_gradients(dtype: torch.dtype) -> None:
    *parts, targets = inputs(50, 40, dtype=dtype)
    one = gradients(linear_logprob, tuple(parts), targets, entropy=True)
    exact = gradients(linear_logprob_reference, tuple(p.double() for p in parts), targets, entropy=True)
    results = {}
    for tokens_per_chunk in (1, 7, 50):
        budget = tokens_per_chunk * 40 * 16
        result = linear_logprob(*parts[:2], targets, bias_V=parts[2], entropy=True, memory_budget_bytes=budget)
        results[tokens_per_chunk] = result
        # an accumulator in bf16 would lose digits with every chunk
        own = gradients(linear_logprob, tuple(parts), targets, entropy=True, memory_budget_bytes=budget)
        for a, b, c in zip(own, one, exact, strict=True):
            error, error_of_one = (float((x.double() - c).abs().max()) for x in (a, b))
            assert error <= 2 * error_of_one + 1e-6 * float(c.abs().max())
    for a, b in zip(results[1], results[50], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5 if dtype == torch.float32 else 5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    *parts, targets = inputs(30, 60, dtype=dtype)
    first, second = (gradients(linear_logprob, tuple(parts), targets, entropy=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_passes_the_budget(dtype: torch.dtype) -> None:
    hidden, weight, _, targets = inputs(400, 3000, dtype=dtype)
    budget = 1 << 20
    assert 400 * 3000 * dtype.itemsize > 2 * budget
    hidden.requires_grad_()
    weight.requires_grad_()
    with Watch() as largest:
        loss(linear_logprob(hidden, weight, targets, entropy=True, memory_budget_bytes=budget)).backward()
    assert largest.bytes <= budget
    with pytest.raises(ValueError, match=r"memory_budget_bytes = 1000 holds no token .* give at least \d+"):
        linear_logprob(hidden, weight, targets, memory_budget_bytes=1000)


@pytest.mark.parametrize("needs", list(product([False, True], repeat=3)))
def test_only_what_is_needed_is_computed(needs: tuple[bool, bool, bool]) -> None:
    *parts, targets = inputs(6, 9)
    full = gradients(linear_logprob, tuple(parts), targets, entropy=True)
    hidden, weight, bias = (part.clone().requires_grad_(need) for part, need in zip(parts, needs, strict=True))
    result = linear_logprob(hidden, weight, targets, bias_V=bias, entropy=True)
    assert result.logp.requires_grad == any(needs)
    if any(needs):
        total = loss(result)
        with Watch() as largest:
            total.backward()
        assert largest.products == 1 + needs[0] + needs[1]  # logits, dhidden, dweight
    for part, need, expected in zip((hidden, weight, bias), needs, full, strict=True):
        assert (part.grad is not None) == need
        if need:
            torch.testing.assert_close(part.grad, expected)


def test_rows_without_a_gradient_are_skipped_and_their_nans_with_them() -> None:
    hidden, weight, _, targets = inputs(5, 9)
    keep = torch.tensor([True, False, True, True, False])
    dirty = hidden.clone()
    dirty[~keep] = math.nan
    found = []
    for states in (hidden, dirty):
        parts = states.clone().requires_grad_(), weight.clone().requires_grad_()
        result = linear_logprob(*parts, targets, entropy=True)
        total = torch.where(keep, result.logp + result.entropy, 0.0).sum()
        found.append(torch.autograd.grad(total, parts))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()
    assert not found[1][0][~keep].any()
    # a NaN that is not masked stays in its row of the results
    result = linear_logprob(dirty, weight, targets)
    assert torch.equal(result.logp.isnan(), ~keep)


def test_fp16_gradients_below_its_smallest_number_still_reach_the_weight() -> None:
    """1 / (global tokens) x p underflows in fp16; the hidden state's own fp16 gradient is the loss scaler's matter."""
    hidden, weight, bias, targets = inputs(6, 40, dtype=torch.float16)
    parts = weight.requires_grad_(), bias.requires_grad_()
    tiny = 2.0**-14
    result = linear_logprob(hidden, parts[0], targets, bias_V=parts[1])
    own = torch.autograd.grad(result.logp.sum() * tiny, parts)
    exact_parts = [part.detach().double().requires_grad_() for part in parts]
    exact = linear_logprob_reference(hidden.double(), exact_parts[0], targets, bias_V=exact_parts[1])
    for a, b in zip(own, torch.autograd.grad(exact.logp.sum() * tiny, exact_parts), strict=True):
        assert (a.double() - b).abs().max() <= 2**-9 * b.abs().max() + 2**-24


def test_tied_weights_retain_graph_and_the_scale_of_the_loss() -> None:
    _, weight, _, targets = inputs(5, 9)
    found = []
    for function in (linear_logprob, linear_logprob_reference):
        embedding = weight.clone().requires_grad_()
        hidden = torch.nn.functional.embedding(targets, embedding).tanh()
        total = -2.5 * loss(function(hidden, embedding, targets.roll(1), entropy=True))
        first = torch.autograd.grad(total, embedding, retain_graph=True)[0]
        assert torch.equal(first, torch.autograd.grad(total, embedding)[0])
        found.append(first)
    torch.testing.assert_close(*found)


def test_autocast_does_not_reach_inside() -> None:
    *parts, targets = inputs(5, 9, dtype=torch.float32)
    plain = gradients(linear_logprob, tuple(parts), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients(linear_logprob, tuple(parts), targets)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_strided_inputs() -> None:
    hidden, weight, bias, targets = inputs(5, 9)
    plain = gradients(linear_logprob, (hidden, weight, bias), targets)
    wide = torch.zeros(10, 8, dtype=torch.float64)
    wide[::2] = hidden
    parts = wide.requires_grad_(), weight.T.contiguous().requires_grad_()
    result = linear_logprob(parts[0][::2], parts[1].T, targets.int(), bias_V=bias)
    dwide, dweight = torch.autograd.grad(loss(result), parts)
    torch.testing.assert_close(dwide[::2], plain[0])
    torch.testing.assert_close(dweight.T, plain[1])
