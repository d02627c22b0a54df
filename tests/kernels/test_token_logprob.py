"""Values and gradients of `token_logprob` against fp64, and the traps that other implementations fell into."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import slack
from torch import Tensor

from r1fast.kernels import rows as module
from r1fast.kernels.token_logprob import TokenLogprob, token_logprob, token_logprob_reference


def inputs(num_tokens: int, vocabulary: int, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, vocabulary, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(vocabulary, (num_tokens,), generator=generator)


def gradient(result: TokenLogprob, logits: Tensor, seed: int = 1) -> Tensor:
    """Of a random combination of all the outputs."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for output in result:
        if output is not None:
            total = total + (output.double() * torch.randn(len(output), generator=generator, dtype=torch.float64)).sum()
    return torch.autograd.grad(total, logits)[0]


def error(result: TokenLogprob, exact: TokenLogprob) -> float:
    pairs = [(a, b) for a, b in zip(result, exact, strict=True) if a is not None and b is not None]
    return max(float((a.double() - b.double()).detach().abs().max()) if len(a) else 0.0 for a, b in pairs)


@given(
    num_tokens=st.integers(0, 5),
    vocabulary=st.sampled_from([1, 2, 7, 231]),
    softcap=st.sampled_from([None, 5.0]),
    temperature=st.sampled_from([1.0, 0.6, "per token"]),
    entropy=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_values_and_gradients_against_fp64(
    num_tokens: int, vocabulary: int, softcap: float | None, temperature: float | str, entropy: bool, dtype: torch.dtype
) -> None:
    logits, targets = inputs(num_tokens, vocabulary)
    logits = logits.to(dtype)
    heat = torch.linspace(0.5, 2.0, num_tokens) if isinstance(temperature, str) else temperature
    options = {"temperature": heat, "softcap": softcap, "entropy": entropy}
    own, plain, exact = (logits.clone().to(t).requires_grad_() for t in (dtype, dtype, torch.float64))
    result = token_logprob(own, targets, **options)
    same = token_logprob_reference(plain, targets, **options)
    truth = token_logprob_reference(exact, targets, **options)
    assert result.logp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (result.entropy is not None) == entropy
    assert error(result, truth) <= 2 * error(same, truth) + 2e-6
    if num_tokens:
        truth_gradient = gradient(truth, exact)
        allowed = 2 * (gradient(same, plain).double() - truth_gradient).abs().max() + 2e-6
        allowed += slack(dtype) * truth_gradient.abs().max()
        assert (gradient(result, own).double() - truth_gradient).abs().max() <= allowed


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_gradcheck(softcap: float | None, entropy: bool) -> None:
    logits, targets = inputs(3, 5)
    heat = torch.tensor([0.5, 1.0, 1.7], dtype=torch.float64)

    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        result = token_logprob(x, targets, temperature=heat, softcap=softcap, entropy=entropy)
        return tuple(output for output in result if output is not None)

    assert torch.autograd.gradcheck(outputs, (logits.requires_grad_(),))


@pytest.mark.parametrize("vocabulary", [50257, 151936])
def test_large_vocabularies_and_targets_at_the_edges(vocabulary: int) -> None:
    logits, _ = inputs(3, vocabulary)
    targets = torch.tensor([0, vocabulary - 1, vocabulary // 2])
    exact = token_logprob_reference(logits, targets, entropy=True)
    assert error(token_logprob(logits.float(), targets, entropy=True), exact) < 5e-6


@pytest.mark.parametrize("level", [1e4, -1e4, -120.0])
def test_logits_far_from_zero(level: float) -> None:
    """A running maximum that starts at 0 loses rows at -120; exp(z - lse) loses digits at 1e4."""
    logits, targets = inputs(4, 33, scale=2.0)
    logits = (logits + level).float()
    own, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    result = token_logprob(own, targets, entropy=True)
    truth = token_logprob_reference(exact, targets, entropy=True)
    torch.testing.assert_close(result.logp.double(), truth.logp, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(result.entropy.double(), truth.entropy, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(result.lse.double(), truth.lse, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient(result, own).double(), gradient(truth, exact), rtol=1e-4, atol=2e-6)


def test_infinite_logits() -> None:
    logits, targets = inputs(4, 9)
    logits = logits.float()
    logits[0, :5] = -math.inf  # a first block of nothing
    targets[0] = 7
    logits[1, targets[1]] = -math.inf
    logits[2] = -math.inf
    logits[2, targets[2]] = 1.0
    own = logits.clone().requires_grad_()
    result = token_logprob(own, targets, entropy=True)
    truth = token_logprob_reference(logits.double(), targets, entropy=True)
    torch.testing.assert_close(result.logp.double(), truth.logp, rtol=1e-5, atol=1e-6)
    assert result.logp[1] == -math.inf and result.logp[2] == 0 and result.entropy[2] == 0
    torch.testing.assert_close(result.entropy.double(), truth.entropy, rtol=1e-5, atol=1e-6)
    assert gradient(result, own).isfinite().all()


def test_a_nan_row_stays_alone_and_goes_no_further_without_a_gradient() -> None:
    logits, targets = inputs(3, 9)
    clean = logits.float().requires_grad_()
    dirty = logits.float()
    dirty[1] = math.nan
    dirty.requires_grad_()
    a, b = (token_logprob(x, targets, entropy=True) for x in (clean, dirty))
    assert b.logp[1].isnan() and torch.equal(a.logp[[0, 2]], b.logp[[0, 2]])
    keep = torch.tensor([True, False, True])
    gradients = [
        torch.autograd.grad(torch.where(keep, r.logp + r.entropy, 0.0).sum(), x)[0] for r, x in ((a, clean), (b, dirty))
    ]
    assert torch.equal(*gradients) and not gradients[1][1].any()


@pytest.mark.parametrize("kind", ["transposed", "sliced", "expanded"])
def test_any_strides_and_target_types(kind: str) -> None:
    logits, targets = inputs(4, 6)
    storage = logits.float()
    if kind == "transposed":
        view = storage.T.contiguous().requires_grad_()
        strided = view.T
    elif kind == "sliced":
        view = torch.randn(9, 13).index_put((torch.arange(1, 9, 2)[:, None], torch.arange(2, 8)), storage)
        view.requires_grad_()
        strided = view[1::2, 2:8]
    else:
        view = storage[:1].clone().requires_grad_()
        strided = view.expand(4, 6)
    plain = strided.detach().clone().requires_grad_()
    # also from an odd address, and as int32
    odd = torch.cat([torch.zeros(1, dtype=torch.int32), targets.int()])[1:]
    result, same = token_logprob(strided, odd, entropy=True), token_logprob(plain, targets, entropy=True)
    for a, b in zip(result, same, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(gradient(result, strided), gradient(same, plain))


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = inputs(11, 17)
    logits = logits.float().requires_grad_()
    whole = token_logprob(logits, targets, entropy=True)
    whole_gradient = gradient(whole, logits)
    monkeypatch.setattr(module, "block_rows", lambda num_columns, device: 2)
    pieces = token_logprob(logits, targets, entropy=True)
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient(pieces, logits), whole_gradient, rtol=1e-6, atol=1e-6)


def test_inputs_stay_as_they_were_and_backward_runs_twice() -> None:
    logits, targets = inputs(3, 7)
    logits.requires_grad_()
    before = logits.detach().clone()
    result = token_logprob(logits, targets, entropy=True)
    loss = (2.5 * result.logp - result.entropy).sum()
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, logits)[0])
    assert torch.equal(before, logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # fp64 never takes a Triton kernel
def test_inplace_backward_overwrites_and_a_later_reader_raises(dtype: torch.dtype) -> None:
    leaf, targets = inputs(3, 7)
    leaf = leaf.to(dtype).requires_grad_()
    expected = gradient(token_logprob(leaf * 2, targets), leaf)
    logits = leaf * 2
    result = token_logprob(logits, targets, inplace_backward=True)
    address = logits.data_ptr()
    seen: list[int] = []
    logits.register_hook(lambda grad: seen.append(grad.data_ptr()))
    assert torch.equal(gradient(result, leaf), expected)
    assert seen == [address]

    logits = leaf * 2
    result = token_logprob(logits, targets, inplace_backward=True)
    reader = logits.square().sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (result.logp.sum() * 1.0).backward(retain_graph=True)
        reader.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.logp.sum().backward()
    with pytest.raises(ValueError, match="not a leaf"):
        token_logprob(leaf, targets, inplace_backward=True)


def test_unused_outputs_and_second_derivatives() -> None:
    logits, targets = inputs(3, 7)
    logits.requires_grad_()
    result = token_logprob(logits, targets, entropy=True)
    only = torch.autograd.grad(result.entropy.sum(), logits, retain_graph=True)[0]
    exact = token_logprob_reference(logits, targets, entropy=True)
    torch.testing.assert_close(only, torch.autograd.grad(exact.entropy.sum(), logits)[0])
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(result.logp.square().sum(), logits, create_graph=True)[0].sum().backward()
