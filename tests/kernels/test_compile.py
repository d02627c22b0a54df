"""torch.compile of a caller: one graph, and no new one for another length."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from rounding import INTERPRETED
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses.fake_utils import CrossRefFakeMode

from r1fast.kernels.group_advantage import group_advantage
from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss
from r1fast.kernels.linear_grpo import linear_grpo_loss
from r1fast.kernels.linear_logprob import linear_logprob
from r1fast.kernels.token_logprob import token_logprob
from r1fast.ops.compiled import REGISTERED

if INTERPRETED:
    pytest.skip("the interpreter patches triton.language, which Dynamo reads", allow_module_level=True)

VOCABULARY, WIDTH = 11, 6


def inputs(num_tokens: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return {
        "hidden": torch.randn(num_tokens, WIDTH, generator=generator, requires_grad=True),
        "weight": torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True),
        "targets": torch.randint(VOCABULARY, (num_tokens,), generator=generator),
        "rewards": torch.randn(3, generator=generator),
        "offsets": torch.tensor([0, 1, 1, num_tokens]),
        "old": -torch.rand(num_tokens, generator=generator),
    }


def from_logits(hidden: Tensor, weight: Tensor, targets: Tensor, **_: Tensor) -> Tensor:
    rows = token_logprob(hidden @ weight.T * 2, targets, temperature=0.7, entropy=True)
    assert rows.entropy is not None
    return (rows.logp.exp() + 0.1 * rows.entropy).sum()


def composed(hidden: Tensor, weight: Tensor, targets: Tensor, rewards: Tensor, offsets: Tensor, old: Tensor) -> Tensor:
    advantage = group_advantage(rewards, torch.zeros(3, dtype=torch.int64, device=rewards.device))
    rows = linear_logprob(hidden * 2, weight, targets, entropy=True)
    loss, metrics = grpo_loss(
        rows.logp,
        advantage,
        offsets,
        old_logp_T=old,
        entropy_T=rows.entropy,
        denominator=3.0,
        options=PolicyLoss(kl="none", entropy_coef=0.1),
    )
    return loss * 2 + metrics["entropy_sum"] * 0


def fused(hidden: Tensor, weight: Tensor, targets: Tensor, rewards: Tensor, offsets: Tensor, old: Tensor) -> Tensor:
    loss, _ = linear_grpo_loss(
        hidden * 2,
        weight,
        targets,
        rewards,
        offsets,
        old_logp_T=old,
        ref_logp_T=old,
        denominator=3.0,
        options=PolicyLoss(kl="k3", dual_clip=3.0),
    )
    return loss * 2


@pytest.mark.parametrize("caller", [from_logits, composed, fused])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_for_all_lengths(caller: Callable[..., Tensor], backend: str) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled: Any = torch.compile(caller, backend=counter, fullgraph=True)
    graphs = []
    for num_tokens in (4, 7, 9, 12):
        parts = inputs(num_tokens)
        leaves = parts["hidden"], parts["weight"]
        own = torch.autograd.grad(compiled(**parts), leaves)
        torch.testing.assert_close(own, torch.autograd.grad(caller(**parts), leaves))
        graphs.append(counter.frame_count)
    # the second length makes the dimension dynamic; after it, nothing compiles again
    assert graphs[0] == 1 and graphs[1] == graphs[-1] <= 2


def scored_in_part(hidden: Tensor, weight: Tensor, targets: Tensor, **_: Tensor) -> Tensor:
    return (linear_logprob(hidden * 2, weight, targets).logp * (targets > 5)).sum()


def fused_in_part(
    hidden: Tensor, weight: Tensor, targets: Tensor, rewards: Tensor, offsets: Tensor, old: Tensor
) -> Tensor:
    loss, _ = linear_grpo_loss(
        hidden * 2,
        weight,
        targets,
        rewards,
        offsets,
        mask_T=targets > 5,
        denominator=3.0,
        options=PolicyLoss(kl="none"),
    )
    return loss


@pytest.mark.parametrize("name", ["hidden", "weight"])
@pytest.mark.parametrize("caller", [composed, fused, scored_in_part, fused_in_part])
def test_strides_are_those_of_the_fake(caller: Callable[..., Tensor], name: str) -> None:
    """Whatever those of the inputs, and also where some tokens have no gradient; Inductor stops where they are not."""
    torch._dynamo.reset()
    parts = inputs(7)
    parts[name] = parts[name].detach().T.contiguous().T.requires_grad_()
    compared: list[str] = []

    def compare(module: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        """Each op's results with its fake's."""

        def run(*args: Any) -> Any:
            with CrossRefFakeMode(ignore_op_fn=lambda op: op.namespace != "r1fast"):
                return module.forward(*args)

        compared.extend(str(node.target) for node in module.graph.nodes if "r1fast" in str(node.target))
        return make_boxed_func(run)

    both = aot_autograd(fw_compiler=compare, bw_compiler=compare)
    torch.compile(caller, backend=both, fullgraph=True)(**parts).backward()
    assert any("linear" in op for op in compared)


@pytest.mark.parametrize("caller", [from_logits, composed, fused])
def test_no_double_precision_in_the_graph(caller: Callable[..., Tensor]) -> None:
    """A Python number that becomes an fp64 tensor is slow on a GPU, and wide to what it is combined with."""
    torch._dynamo.reset()
    seen: list[torch.dtype] = []

    def look(module: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        values = [node.meta.get("val", node.meta.get("example_value")) for node in module.graph.nodes]
        flat = [x for value in values for x in (value if isinstance(value, (tuple, list)) else (value,))]
        seen.extend(x.dtype for x in flat if isinstance(x, Tensor))
        return make_boxed_func(module.forward)

    both = aot_autograd(fw_compiler=look, bw_compiler=look)
    torch.compile(caller, backend=both, fullgraph=True)(**inputs(5)).backward()
    assert torch.float32 in seen and torch.float64 not in seen


def test_every_op_is_left_out_of_captured_graphs() -> None:
    """But those of r1fast.ops, which are made for them."""
    names = [name for name in dir(torch.ops.r1fast) if not name.startswith("_") and name != "name"]
    own = set(names) - REGISTERED
    assert len(own) >= 7
    for name in names:
        tagged = torch.Tag.cudagraph_unsafe in getattr(torch.ops.r1fast, name).default.tags
        assert tagged == (name in own), name


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("caller", [from_logits, composed, fused])
def test_compiled_on_the_gpu(caller: Callable[..., Tensor], mode: str) -> None:
    compiled = torch.compile(caller, mode=mode)
    for num_tokens in (4, 7, 9, 7):
        parts = {name: x.detach().cuda().requires_grad_(x.requires_grad) for name, x in inputs(num_tokens).items()}
        leaves = parts["hidden"], parts["weight"]
        own = [x.clone() for x in torch.autograd.grad(compiled(**parts), leaves)]
        torch.testing.assert_close(own, list(torch.autograd.grad(caller(**parts), leaves)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_default_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor, which needs a C++ compiler."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    parts = inputs(7)
    leaves = parts["hidden"], parts["weight"]
    for caller in (composed, fused):
        own = torch.autograd.grad(torch.compile(caller, fullgraph=True)(**parts), leaves)
        torch.testing.assert_close(own, torch.autograd.grad(caller(**parts), leaves))
