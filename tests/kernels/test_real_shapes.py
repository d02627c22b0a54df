"""The ops at the sizes they are for, on a GPU (`pytest -m gpu tests/kernels`), and the same checks small on a CPU.

Triton's kernels have no other path on a GPU: what the interpreter cannot show is here. Memory that is really taken,
launches that really happen, offsets beyond 32 bits, streams, CUDA graphs, the same bits from a scheduler that is free.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from loss_batch import LEVELS, OBJECTIVES, combinations, doubled, gradients
from loss_batch import batch as loss_batch
from real_shapes import (
    batch,
    check_head,
    check_loss,
    check_loss_memory,
    check_loss_rows,
    check_rows,
    check_same_bits,
    check_score_memory,
    head,
    integers,
    loss_gradients,
    normal,
    peak_bytes,
)
from rounding import INTERPRETED, assert_rule_18
from torch import Tensor

from r1fast.kernels.group_advantage import group_advantage
from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss, grpo_loss_reference
from r1fast.kernels.linear_grpo import linear_grpo_loss
from r1fast.kernels.linear_logprob import linear_logprob
from r1fast.kernels.token_logprob import token_logprob

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MIB = 1 << 20
V = 151_936  # Qwen's
ON = PolicyLoss(kl="k3", kl_coef=0.1, entropy_coef=0.01)  # nothing is left out, so nothing waits for the GPU


def gpu(*values: Any) -> Any:
    return pytest.param("cuda", *values, marks=pytest.mark.gpu)


copies_whole_tensors = pytest.mark.skipif(INTERPRETED, reason="the interpreter copies whole tensors")


def moved(arguments: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("device", "num_tokens", "vocabulary"), [("cpu", 5, 37), gpu(512, V), gpu(2048, 128_256), gpu(70_000, 300)]
)
@pytest.mark.parametrize("options", [{}, {"softcap": 30.0, "temperature": 0.7}])
def test_rows(device: str, num_tokens: int, vocabulary: int, dtype: torch.dtype, options: dict[str, Any]) -> None:
    check_rows(device, dtype, num_tokens, vocabulary, **options)


@pytest.mark.gpu
def test_more_elements_than_32_bits_count() -> None:
    num_tokens = 2**31 // V + 300
    logits = normal(num_tokens, V, device="cuda", dtype=torch.bfloat16, scale=3)
    targets = integers(V, num_tokens, "cuda")
    found = []
    for rows in (slice(None), slice(num_tokens - 5, None)):
        own = logits[rows].clone().requires_grad_()
        result = token_logprob(own * 1, targets[rows], entropy=True, inplace_backward=True)
        (grad,) = torch.autograd.grad((result.logp + result.entropy).sum(), own)
        found.append((result.logp[-5:].clone(), result.entropy[-5:].clone(), grad[-5:].clone()))
        del own, result, grad
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("device", "num_tokens", "width", "vocabulary"),
    [("cpu", 7, 32, 61), gpu(1024, 1536, V), gpu(1000, 4096, 128_256), gpu(1, 2048, V)],
)
def test_scores(device: str, num_tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> None:
    check_head(device, dtype, num_tokens, width, vocabulary)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("device", "num_tokens", "width", "vocabulary"),
    [("cpu", 12, 16, 61), gpu(700, 1024, 32_000), gpu(2500, 256, 50_257)],
)
@pytest.mark.parametrize("options", [ON, PolicyLoss(level="sequence", kl="weighted_k3", kl_coef=0.1)])
def test_the_loss(
    device: str, num_tokens: int, width: int, vocabulary: int, dtype: torch.dtype, options: PolicyLoss
) -> None:
    check_loss(device, dtype, num_tokens, width, vocabulary, options)


@pytest.mark.parametrize(
    ("device", "num_tokens", "width", "vocabulary"), [("cpu", 60, 16, 61), gpu(8192, 4096, V), gpu(32_768, 2048, V)]
)
def test_the_loss_at_full_size(device: str, num_tokens: int, width: int, vocabulary: int) -> None:
    check_loss_rows(device, num_tokens, width, vocabulary)


@pytest.mark.parametrize(("objective", "level"), list(product(OBJECTIVES, LEVELS)))
@pytest.mark.gpu
def test_every_combination_on_the_gpu(objective: str, level: str) -> None:
    arguments = loss_batch(dtype=torch.float32)
    exact_arguments = doubled(arguments)
    for options in combinations(objective, level):
        own = gradients(grpo_loss, moved(arguments, "cuda"), options)
        same = gradients(grpo_loss_reference, arguments, options)
        for a, b, c in zip(own, same, gradients(grpo_loss_reference, exact_arguments, options), strict=True):
            assert_rule_18(a.cpu(), b, c, least_size=1.0, what=options)


@copies_whole_tensors
@pytest.mark.parametrize(
    ("device", "num_tokens", "width", "vocabulary", "budget"),
    [
        ("cpu", 300, 8, 500, 1 << 18),
        gpu(8192, 4096, V, 600 * MIB),
        gpu(8192, 4096, V, 300 * MIB),
        gpu(16_384, 2048, 128_256, 300 * MIB),
    ],
)
def test_memory_of_the_loss(device: str, num_tokens: int, width: int, vocabulary: int, budget: int) -> None:
    check_loss_memory(device, num_tokens, width, vocabulary, budget)


@copies_whole_tensors
@pytest.mark.parametrize(
    ("device", "num_tokens", "width", "vocabulary", "limit"),
    [("cpu", 12_000, 8, 2000, 48 * MIB), gpu(8192, 4096, V, 300 * MIB), gpu(32_768, 1536, V, 300 * MIB)],
)
def test_memory_of_scoring(device: str, num_tokens: int, width: int, vocabulary: int, limit: int) -> None:
    check_score_memory(device, num_tokens, width, vocabulary, limit)


@copies_whole_tensors
@pytest.mark.parametrize(("device", "num_tokens", "vocabulary"), [("cpu", 300, 5000), gpu(4096, V)])
def test_logits_are_neither_copied_nor_cast_whatever_their_strides(
    device: str, num_tokens: int, vocabulary: int
) -> None:
    """Nothing of their size beside them: forward takes less than 1/4 of them, backward in place as little."""
    storage = normal(num_tokens, vocabulary + 64, device=device, dtype=torch.bfloat16)
    targets = integers(vocabulary, num_tokens, device)
    size = 2 * num_tokens * vocabulary
    for view in (storage[:, 32:-32], storage[:, :vocabulary].T.contiguous().T):
        with torch.no_grad():
            assert peak_bytes(device, lambda view=view: token_logprob(view, targets, entropy=True)) < size // 4
    leaf = storage[:, :vocabulary].contiguous().requires_grad_()

    def step() -> None:
        logits = leaf * 1
        result = token_logprob(logits, targets, inplace_backward=True)
        torch.autograd.grad(result.logp.sum(), logits)

    if device == "cuda":
        assert peak_bytes(device, step) < size + size // 4  # the logits themselves


@pytest.mark.parametrize(("device", "num_tokens", "vocabulary"), [("cpu", 40, 50), gpu(4096, V)])
def test_the_same_bits_from_run_to_run(device: str, num_tokens: int, vocabulary: int) -> None:
    many = 10 if INTERPRETED else 700
    arguments = batch(num_tokens, 64, vocabulary, device, torch.bfloat16) | {"memory_budget_bytes": 64 * MIB}
    check_same_bits(lambda: loss_gradients(linear_grpo_loss, arguments, ON))
    check_same_bits(lambda: loss_gradients(linear_grpo_loss, arguments, PolicyLoss(kl="none")))
    tokens = moved(loss_batch((2500, *[3] * many), dtype=torch.float32), device)
    check_same_bits(lambda: gradients(grpo_loss, tokens, PolicyLoss(level="sequence", entropy_coef=0.1)))
    rewards, group = normal(5 * many, device=device, dtype=torch.float32), integers(60, 5 * many, device)
    check_same_bits(lambda: (group_advantage(rewards, group),))


def launches(call: Callable[[], Any]) -> list[str]:
    """Names of what the GPU ran: kernels, copies and fills."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]


@pytest.mark.gpu
def test_one_launch_each() -> None:
    tokens = moved(loss_batch((1000,) * 64, dtype=torch.float32), "cuda")
    tokens["logp_T"].requires_grad_()
    rewards, group = normal(1024, device="cuda", dtype=torch.float32), integers(64, 1024, "cuda")
    for call in (
        lambda: grpo_loss(**tokens, options=PolicyLoss()),
        lambda: group_advantage(rewards, group),
    ):
        names = launches(call)
        assert len(names) == 1, names


@pytest.mark.gpu
def test_another_stream_and_another_current_device() -> None:
    tokens = moved(loss_batch(dtype=torch.float32), "cuda")
    plain = gradients(grpo_loss, tokens, ON)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = [gradients(grpo_loss, tokens, ON) for _ in range(3)]
    stream.synchronize()
    for found in other:
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    if torch.cuda.device_count() < 2:
        pytest.skip("a second GPU would show that kernels run where their tensors are")
    far = gradients(grpo_loss, moved(tokens, "cuda:1"), ON)
    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(plain, far, strict=True))


def ops_of_a_step(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every op once, forward and backward."""
    hidden, weight = (tensors[name].detach().requires_grad_() for name in ("hidden", "weight"))
    targets, offsets = tensors["targets"], tensors["offsets"]
    advantage = group_advantage(tensors["rewards"], tensors["group"])
    rows = linear_logprob(hidden, weight, targets, entropy=True)
    loss, _ = grpo_loss(rows.logp, advantage, offsets, entropy_T=rows.entropy, ref_logp_T=rows.logp.detach() * 1.1,
                        denominator=3.0, options=ON)  # fmt: skip
    logits = (hidden @ weight.T).detach().requires_grad_()
    (dlogits,) = torch.autograd.grad(token_logprob(logits, targets).logp.sum(), logits)
    (dlogp,) = torch.autograd.grad(loss, rows.entropy, retain_graph=True)
    fused, _ = linear_grpo_loss(hidden, weight, targets, advantage, offsets, ref_logp_T=rows.logp.detach() * 1.1,
                                denominator=3.0, options=ON)  # fmt: skip
    dhidden, dweight = torch.autograd.grad(fused, (hidden, weight))
    return {"loss": loss, "fused": fused, "dlogits": dlogits, "dlogp": dlogp, "dhidden": dhidden, "dweight": dweight}


def inputs_of_a_step(device: str, seed: int, num_tokens: int = 300, vocabulary: int = 5000) -> dict[str, Tensor]:
    hidden, weight = head(num_tokens, 64, vocabulary, device, torch.bfloat16)
    return {
        "hidden": hidden + normal(num_tokens, 64, device=device, dtype=torch.bfloat16, seed=seed),
        "weight": weight,
        "targets": integers(vocabulary, num_tokens, device),
        "rewards": normal(6, device=device, dtype=torch.float32, seed=seed),
        "group": torch.arange(6, device=device) // 3,
        "offsets": torch.linspace(0, num_tokens, 7, device=device).long(),
    }


def test_a_step_gives_finite_numbers() -> None:
    """What the next test captures, on a CPU."""
    found = ops_of_a_step(inputs_of_a_step("cpu", 1, 20, 40))
    assert all(value.isfinite().all() and value.any() for value in found.values())
    torch.testing.assert_close(found["loss"], found["fused"], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_captured_graph_replays_with_new_inputs() -> None:
    given, other = inputs_of_a_step("cuda", 1), inputs_of_a_step("cuda", 2)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up where nothing is captured
        ops_of_a_step(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # what indexes by a mask waits for the GPU, and cannot be captured: linear_logprob's backward is not in here
    with torch.cuda.graph(graph):
        captured = ops_of_a_step(given)
    for inputs in (other, given, other):
        expected = {name: value.clone() for name, value in ops_of_a_step(inputs).items()}
        live = {name: value.clone() for name, value in inputs.items()}
        for name, value in live.items():
            given[name].copy_(value)
        graph.replay()
        for name, value in captured.items():
            torch.testing.assert_close(value, expected[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.gpu
def test_a_target_out_of_range_is_nan_and_raises_where_asked() -> None:
    logits, targets = normal(3, 9, device="cuda", dtype=torch.float32), torch.tensor([9, -1, 4], device="cuda")
    assert token_logprob(logits, targets).logp.isnan().tolist() == [True, True, False]
    with pytest.raises(ValueError, match="targets range from -1 to 9"):
        token_logprob(logits, targets, check=True)
    with pytest.raises(ValueError, match="1 of 2 rewards are not finite"):
        group_advantage(torch.tensor([0.0, torch.nan], device="cuda"), targets[:2], check=True)
    with pytest.raises(ValueError, match="targets are on cpu"):
        token_logprob(logits, targets.cpu())


@pytest.mark.parametrize("device", ["cpu", gpu()])
def test_autocast_changes_nothing(device: str) -> None:
    if INTERPRETED:
        pytest.skip("test_traps has it")
    arguments = batch(40, 32, 300, device, torch.float32)
    plain = loss_gradients(linear_grpo_loss, arguments, ON)
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = loss_gradients(linear_grpo_loss, arguments, ON)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))
