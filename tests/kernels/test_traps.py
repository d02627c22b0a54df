"""Traps that other implementations fell into; `test_contract` lists them all, with the test of each."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from linear_batch import batch, gradients
from loss_batch import batch as loss_batch
from loss_batch import gradients as loss_gradients
from rounding import INTERPRETED
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss, grpo_loss_reference
from r1fast.kernels.linear_grpo import linear_grpo_loss, linear_grpo_loss_reference
from r1fast.kernels.linear_logprob import linear_logprob
from r1fast.kernels.token_logprob import token_logprob, token_logprob_reference

BLOCK = 4096  # columns that the Triton kernels read at a time
EVERYTHING = PolicyLoss(kl="weighted_k3", kl_coef=0.3, correction="truncate", entropy_coef=0.1)


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def logits_gradient(function: Any, logits: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """logp, entropy and the gradient of a mix of them."""
    leaf = logits.detach().clone().requires_grad_()
    result = function(leaf, targets, entropy=True, **options)
    (grad,) = torch.autograd.grad((result.logp - 0.3 * result.entropy).sum(), leaf)
    return result.logp.detach(), result.entropy.detach(), grad


def assert_exact(logits: Tensor, targets: Tensor, **options: Any) -> None:
    own = logits_gradient(token_logprob, logits, targets, **options)
    exact = logits_gradient(token_logprob_reference, logits.double(), targets, **options)
    for a, b in zip(own, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("vocabulary", [1, 37, BLOCK - 1, BLOCK, BLOCK + 1, 50257, 129920, 151669, 151936])
def test_columns_beyond_the_vocabulary_add_nothing(vocabulary: int) -> None:
    targets = torch.tensor([0, vocabulary - 1, vocabulary // BLOCK * BLOCK % vocabulary])
    assert_exact(random_logits(3, vocabulary), targets)


def test_columns_beyond_the_vocabulary_add_nothing_where_all_logits_are_far_below_zero() -> None:
    assert_exact(random_logits(2, BLOCK + 3) - 500, torch.tensor([BLOCK + 2, 0]))


def test_a_first_block_of_nothing_but_minus_infinity() -> None:
    logits = random_logits(2, 2 * BLOCK + 5)
    logits[0, : BLOCK + 7] = -math.inf
    logits[1, BLOCK:] = -math.inf
    assert_exact(logits, torch.tensor([BLOCK + 9, 3]))


def test_a_softcap_from_its_line_to_its_edge() -> None:
    """Logits from 1e-4 to 1e4 times the cap: tanh's polynomial, its exponential, and 1."""
    size = torch.logspace(-4, 4, 400) * 5
    assert_exact(torch.stack([torch.cat([size, -size])] * 2), torch.tensor([0, 700]), softcap=5.0, temperature=0.7)


def test_offsets_beyond_32_bits() -> None:
    """Rows 2^30 elements apart: the third starts at 2^31. Untouched memory costs nothing."""
    storage = torch.empty(2**31 + 64, dtype=torch.bfloat16)
    logits = storage.as_strided((3, 40), (2**30, 1))
    logits.copy_(random_logits(3, 40))
    targets = torch.tensor([0, 39, 7])
    leaf = logits.requires_grad_()
    own = token_logprob(leaf, targets, entropy=True)
    exact = token_logprob_reference(logits.detach().double().contiguous(), targets, entropy=True)
    torch.testing.assert_close(own.logp.double(), exact.logp, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(own.logp.sum(), leaf)
    assert grad.shape == (3, 40) and grad.double().sum(1).abs().max() < 0.05


def test_more_rows_than_grid_axes_1_and_2_hold() -> None:
    if INTERPRETED:
        pytest.skip("70,000 programs take the interpreter minutes; the next test looks at the grid instead")
    logits = random_logits(70_000, 3)
    own = token_logprob(logits, torch.ones(70_000, dtype=torch.int64))
    exact = token_logprob_reference(logits.double(), torch.ones(70_000, dtype=torch.int64))
    torch.testing.assert_close(own.logp.double(), exact.logp, rtol=1e-5, atol=1e-5)


def test_grids_have_one_axis() -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    if INTERPRETED:
        pytest.skip("the recorder stands in the place of compiled kernels")
    from bench.aot import recorder
    from r1fast.kernels import token_logprob_kernels as module
    from r1fast.kernels.rows import RowGrads, Rows, Scaling

    logits = torch.empty(70_000, BLOCK + 1, dtype=torch.bfloat16)
    rows, targets, grad = Rows.empty(70_000, logits, entropy=False), torch.zeros(70_000).long(), torch.zeros(70_000)
    with recorder(module) as launches:
        module.put_rows(rows, logits, targets, Scaling(1.0, None))
        module.put_gradients(logits, logits, targets, rows, RowGrads(grad, None, None), Scaling(1.0, None))
    assert [launch.grid for launch in launches] == [(70_000,), (140_000,)]


def test_the_loss_and_the_advantage_are_one_launch_each() -> None:
    """Beside the kernel nothing but memory is asked for: no fill, no copy, no sum of what the programs left."""
    pytest.importorskip("triton", reason="Triton is for Linux")
    if INTERPRETED:
        pytest.skip("the recorder stands in the place of compiled kernels")
    from bench.aot import recorder
    from r1fast.kernels import counter, group_advantage_kernels, grpo_loss_kernels

    class Ops(TorchDispatchMode):
        names: ClassVar[set[str]] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    given = loss_batch(dtype=torch.float32)
    resting = counter.resting_counter(torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch, recorder(grpo_loss_kernels) as losses:
        patch.setattr("r1fast.kernels.grpo_loss.uses_triton", lambda x: True)
        patch.setattr("r1fast.kernels.grpo_loss.check_offsets", lambda *_: None)  # on a GPU it reads nothing
        patch.setattr(grpo_loss_kernels, "resting_counter", lambda device: resting)
        with Ops() as ops:
            grpo_loss(**given | {"logp_T": given["logp_T"].requires_grad_()}, options=EVERYTHING)
    with recorder(group_advantage_kernels) as advantages, ops:
        group_advantage_kernels.launch(torch.rand(9), torch.arange(9), "mean", "group_std", True, 0.0)
    assert len(losses) == len(advantages) == 1
    views = {"detach", "select", "view_as", "alias"}
    assert ops.names - views == {"empty", "new_empty", "empty_like"} | {"rand", "arange"}


def test_the_last_program_leaves_the_counter_as_the_first_one_found_it() -> None:
    """On a GPU all launches of a stream share one."""
    if not INTERPRETED:
        pytest.skip("the Triton kernel's own behaviour")
    from r1fast.kernels import grpo_loss_kernels

    shared, arguments = torch.zeros(1, dtype=torch.int32), loss_batch(dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo_loss_kernels, "resting_counter", lambda device: shared)
        first, second = (loss_gradients(grpo_loss, arguments, EVERYTHING) for _ in range(2))
    assert not shared.any()
    assert first[0] != 0 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_targets_at_an_odd_address_and_with_gaps(dtype: torch.dtype) -> None:
    logits = random_logits(4, 9)
    targets = torch.tensor([8, 0, 3, 5])
    odd = torch.cat([torch.zeros(1), targets]).to(dtype)[1:]
    gaps = torch.stack([targets, targets * 0], 1).to(dtype)[:, 0]
    assert odd.data_ptr() % 16 and gaps.stride(0) == 2
    plain = token_logprob(logits, targets).logp
    assert all(torch.equal(token_logprob(logits, other).logp, plain) for other in (odd, gaps))


def test_gradients_that_are_one_number_for_all_rows() -> None:
    """sum() hands back an expanded gradient of stride 0."""
    logits, targets = random_logits(5, 9).requires_grad_(), torch.tensor([8, 0, 3, 5, 1])
    (expanded,) = torch.autograd.grad(token_logprob(logits, targets).logp.sum(), logits)
    plain = torch.ones(5)
    (given,) = torch.autograd.grad(token_logprob(logits, targets).logp, logits, plain)
    assert torch.equal(expanded, given)


def test_one_temperature_for_all_or_one_each_is_the_same() -> None:
    logits, targets = random_logits(4, 9), torch.tensor([8, 0, 3, 5])
    each = torch.full((8,), 0.7)[::2]
    for a, b in zip(
        logits_gradient(token_logprob, logits, targets, temperature=0.7),
        logits_gradient(token_logprob, logits, targets, temperature=each),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_every_op_gives_the_same_bits_every_time() -> None:
    logits, targets = random_logits(4, BLOCK + 40), torch.tensor([8, 0, 3, BLOCK])
    arguments = loss_batch(dtype=torch.float32)
    for once, again in (
        [logits_gradient(token_logprob, logits, targets) for _ in range(2)],
        [loss_gradients(grpo_loss, arguments, EVERYTHING) for _ in range(2)],
        [gradients(linear_grpo_loss, batch(torch.float32), EVERYTHING) for _ in range(2)],
    ):
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize(
    "options", [EVERYTHING, PolicyLoss(kl="none", dual_clip=2.0), PolicyLoss(objective="nll", kl="none")]
)
def test_the_fused_loss_reports_what_the_loss_reports(options: PolicyLoss) -> None:
    arguments = batch(torch.float32)
    _, fused = linear_grpo_loss(**arguments, options=options)
    head = {name: arguments.pop(name) for name in ("hidden_TD", "weight_VD", "targets_T")}
    head |= {name: arguments.pop(name) for name in ("bias_V", "temperature", "softcap")}
    rows = linear_logprob(**head, entropy=True)
    _, plain = grpo_loss(rows.logp, **arguments, entropy_T=rows.entropy, options=options)
    assert {"loss_sum", "entropy_sum", "tokens_count", "logp_gap_abs_sum", "logp_gap_abs_max"} <= set(plain)
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_denominator_in_double_precision_on_the_device() -> None:
    arguments = loss_batch(dtype=torch.float32)
    plain, _ = grpo_loss(**arguments, options=EVERYTHING)
    arguments["denominator"] = torch.tensor(arguments["denominator"], dtype=torch.float64)
    own, _ = grpo_loss(**arguments, options=EVERYTHING)
    assert own.dtype == torch.float32 and float(own) == pytest.approx(float(plain), rel=1e-6)


def test_long_sequences_and_many_of_them() -> None:
    """More tokens than a program reads at a time, and more programs than the last one adds up at a time."""
    lengths = (2500, *(1 for _ in range(300 if not INTERPRETED else 20)))
    arguments = loss_batch(lengths, dtype=torch.float32)
    arguments["mask_T"][-1] = True
    exact = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
    for options in (EVERYTHING, PolicyLoss(level="sequence", kl="k2", correction="mask", correction_level="sequence")):
        own, true = (
            loss_gradients(function, given, options)
            for function, given in ((grpo_loss, arguments), (grpo_loss_reference, exact))
        )
        for a, b in zip(own, true, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    _, metrics = grpo_loss(**arguments, options=EVERYTHING)
    assert metrics["tokens_count"] == arguments["mask_T"].sum()


@pytest.mark.parametrize("level", ["sequence", "sequence_sum"])
def test_a_sequence_of_30000_tokens_keeps_its_digits(level: Any) -> None:
    """Equal values added one after another in fp32 lose one digit in ten of them."""
    arguments = loss_batch((30_000,), dtype=torch.float32, noise=0.0) | {"mask_T": None, "denominator": 30_000.0}
    arguments["logp_T"] = arguments["old_logp_T"] + 1e-6
    exact = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
    options = PolicyLoss(level=level, kl="none", aggregate="token_mean", clip_low=1.0, clip_high=9.0)
    own, true = (
        loss_gradients(function, given, options)
        for function, given in ((grpo_loss, arguments), (grpo_loss_reference, exact))
    )
    for a, b in zip(own, true, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=3e-6, atol=0)


def test_tied_weights_get_both_gradients() -> None:
    arguments = batch(torch.float32) | {"bias_V": None, "mask_T": None}
    found = []
    for function, dtype in ((linear_grpo_loss, torch.float32), (linear_grpo_loss_reference, torch.float64)):
        given = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
        embedding = given["weight_VD"].clone().requires_grad_()
        given["hidden_TD"] = torch.nn.functional.embedding(given["targets_T"], embedding).tanh()
        given["weight_VD"] = embedding
        result = function(**given, options=EVERYTHING)
        loss = result[0] if isinstance(result, tuple) else result
        found.append(torch.autograd.grad(loss, embedding)[0].double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_autocast_does_not_reach_inside_the_fused_loss() -> None:
    plain = gradients(linear_grpo_loss, batch(torch.float32), EVERYTHING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients(linear_grpo_loss, batch(torch.float32), EVERYTHING)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_a_target_outside_the_vocabulary_is_no_read_outside_the_logits() -> None:
    """On a GPU nobody looks at the values: the kernel gives that row NaN instead of a neighbour's logit."""
    if not INTERPRETED:
        pytest.skip("the Triton kernel's own behaviour")
    from r1fast.kernels.rows import Rows, Scaling
    from r1fast.kernels.token_logprob_kernels import put_rows

    logits = random_logits(3, 9)
    rows = Rows.empty(3, logits, entropy=False)
    put_rows(rows, logits, torch.tensor([9, -1, 4]), Scaling(1.0, None))
    assert rows.logp.isnan().tolist() == [True, True, False] and rows.log_sum.isfinite().all()
