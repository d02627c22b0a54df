"""Random batches, options, dtypes, masks and budgets, against the definitions in fp64: values and gradients."""

from __future__ import annotations

from typing import Any

import loss_batch
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_batch import AGGREGATES, CORRECTIONS, KLS, LEVELS, OBJECTIVES, doubled
from rounding import assert_rule_18
from torch import Tensor

from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss, grpo_loss_reference
from r1fast.kernels.linear_grpo import linear_grpo_loss, linear_grpo_loss_reference
from r1fast.kernels.linear_logprob import linear_logprob_reference

INPUTS = ("mask_T", "old_logp_T", "log_kept_mass_T")


@st.composite
def options(draw: st.DrawFn) -> PolicyLoss:
    objective = draw(st.sampled_from(OBJECTIVES))
    correction, level = draw(st.sampled_from(CORRECTIONS))
    low, high = draw(st.sampled_from([(0.0, 0.0), (0.2, 0.28), (1.0, 3.0)]))
    bound = draw(st.sampled_from([None, high + 1.1])) if objective == "clip" else None
    return PolicyLoss(
        objective=objective,
        level=draw(st.sampled_from(LEVELS)),
        clip_low=low,
        clip_high=high,
        delta=bound,
        kl=draw(st.sampled_from(KLS)),
        kl_coef=draw(st.sampled_from([0.0, 0.3])),
        correction=correction,
        correction_level=level,
        correction_cap=draw(st.sampled_from([1.5, 20.0])),
        entropy_coef=draw(st.sampled_from([0.0, 0.2])),
        aggregate=draw(st.sampled_from(AGGREGATES)),
    )


lengths = st.lists(st.integers(0, 6), min_size=1, max_size=5).map(tuple)
absent = st.lists(st.sampled_from(INPUTS), unique=True).map(dict.fromkeys)


@given(lengths=lengths, seed=st.integers(0, 99), chosen=options(), absent=absent)
def test_the_loss_of_log_probs(
    lengths: tuple[int, ...], seed: int, chosen: PolicyLoss, absent: dict[str, None]
) -> None:
    arguments = loss_batch.batch(lengths, seed, dtype=torch.float32) | absent
    own = loss_batch.gradients(grpo_loss, arguments, chosen)
    same = loss_batch.gradients(grpo_loss_reference, arguments, chosen)
    exact = loss_batch.gradients(grpo_loss_reference, doubled(arguments), chosen)
    for a, b, c in zip(own, same, exact, strict=True):
        assert_rule_18(a, b, c, least_size=1.0, what=chosen)


def head_gradients(function: Any, arguments: dict[str, Any], chosen: PolicyLoss) -> tuple[Tensor, ...]:
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in ("hidden_TD", "weight_VD")}
    result = function(**arguments | leaves, options=chosen)
    loss = result[0] if isinstance(result, tuple) else result
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), *found


@given(
    lengths=lengths,
    seed=st.integers(0, 99),
    chosen=options(),
    absent=absent,
    vocabulary=st.sampled_from([1, 7, 40]),
    tokens_in_a_chunk=st.sampled_from([1, 3, 1000]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    settings=st.sampled_from([{}, {"temperature": 0.7, "softcap": 3.0}]),
)
def test_the_loss_of_hidden_states(
    lengths: tuple[int, ...],
    seed: int,
    chosen: PolicyLoss,
    absent: dict[str, None],
    vocabulary: int,
    tokens_in_a_chunk: int,
    dtype: torch.dtype,
    settings: dict[str, float],
) -> None:
    arguments = loss_batch.batch(lengths, seed, dtype=torch.float32) | settings
    noise = arguments.pop("logp_T") - arguments.pop("entropy_T")
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, 5, generator=generator).to(dtype) for n in (sum(lengths), vocabulary))
    targets = torch.randint(vocabulary, (sum(lengths),), generator=generator)
    logp = linear_logprob_reference(hidden, weight, targets, **settings).logp  # type: ignore[arg-type]
    for name in ("old_logp_T", "ref_logp_T", "rollout_logp_T"):
        arguments[name] = logp + 0.1 * (arguments[name] - noise)
    arguments |= absent | {"hidden_TD": hidden, "weight_VD": weight, "targets_T": targets}
    budget = {"memory_budget_bytes": tokens_in_a_chunk * 16 * vocabulary}
    own = head_gradients(linear_grpo_loss, arguments | budget, chosen)
    same = head_gradients(linear_grpo_loss_reference, arguments, chosen)
    exact = head_gradients(linear_grpo_loss_reference, doubled(arguments), chosen)
    # in bf16 a CPU has logits to 2^-16, not to 2^-24, and the logits' gradient is rounded before the products
    size = 4.0 if dtype == torch.float32 else 2.0**8
    for name, a, b, c in zip(("loss", "dhidden", "dweight"), own, same, exact, strict=True):
        least = size if a.dtype == torch.float32 else 4.0
        assert_rule_18(a, b, c, least_size=least, what=f"{name} {chosen}")
