"""What does not fit is named with its value and the constraint, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from r1fast.kernels.group_advantage import group_advantage
from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss
from r1fast.kernels.linear_grpo import linear_grpo_loss
from r1fast.kernels.linear_logprob import linear_logprob
from r1fast.kernels.token_logprob import token_logprob

NAN, INFINITY = float("nan"), float("inf")
LOGITS, HIDDEN, WEIGHT, BIAS = torch.zeros(3, 5), torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5)
TARGETS, FLOATS, OFFSETS = torch.zeros(3, dtype=torch.int64), torch.zeros(3), torch.tensor([0, 2, 3])
ADVANTAGE, MASK = torch.zeros(2), torch.ones(3, dtype=torch.bool)


class Nothing(TorchDispatchMode):
    """Whatever computes, allocates or reads is one call too many."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} ran before the arguments were checked")


def elsewhere(tensor: Tensor) -> Tensor:
    """The same on another device; meta is one that every machine has."""
    return torch.empty_like(tensor, device="meta")


TOKENS: dict[str, Any] = {"targets_T": TARGETS}
HEAD = TOKENS | {"hidden_TD": HIDDEN, "weight_VD": WEIGHT}
LOSS: dict[str, Any] = {
    "advantage_N": ADVANTAGE,
    "cu_seqlens": OFFSETS,
    "ref_logp_T": FLOATS,
    "denominator": 2.0,
    "options": PolicyLoss(),
}
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "token_logprob": (token_logprob, TOKENS | {"logits_TV": LOGITS}),
    "linear_logprob": (linear_logprob, HEAD),
    "grpo_loss": (grpo_loss, LOSS | {"logp_T": FLOATS}),
    "linear_grpo_loss": (linear_grpo_loss, HEAD | LOSS),
    "group_advantage": (group_advantage, {"rewards_N": FLOATS, "group_N": TARGETS}),
}
OF_TOKENS = ("token_logprob", "linear_logprob", "linear_grpo_loss")
OF_HEADS = ("linear_logprob", "linear_grpo_loss")
OF_LOSSES = ("grpo_loss", "linear_grpo_loss")
# ops, arguments, message
CASES: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    (OF_TOKENS, {"targets_T": TARGETS[:2]}, r"targets must be int32 or int64 \[3\], they are int64 \[2\] on cpu"),
    (OF_TOKENS, {"targets_T": FLOATS}, r"targets must be int32 or int64 \[3\], they are float32 \[3\] on cpu"),
    (OF_TOKENS, {"targets_T": elsewhere(TARGETS)}, "targets are on meta, the rest on cpu; move them"),
    (OF_TOKENS, {"temperature": 0.0}, r"temperature = 0\.0 must be positive and finite; 0 \(greedy\)"),
    (OF_TOKENS, {"temperature": -1.0}, r"temperature = -1\.0 must be positive"),
    (OF_TOKENS, {"temperature": NAN}, "temperature = nan must be positive and finite"),
    (OF_TOKENS, {"temperature": INFINITY}, "temperature = inf must be positive and finite"),
    (OF_TOKENS, {"temperature": FLOATS[:2]}, r"a number or floating \[3\] on cpu, it is float32 \[2\]"),
    (OF_TOKENS, {"temperature": TARGETS}, r"a number or floating \[3\] on cpu, it is int64 \[3\]"),
    (OF_TOKENS, {"temperature": elsewhere(FLOATS)}, r"a number or floating \[3\] on cpu, .* on meta"),
    (OF_TOKENS, {"temperature": FLOATS.clone().requires_grad_()}, "temperature gets no gradient here; pass"),
    (OF_TOKENS, {"softcap": 0.0}, r"softcap = 0\.0 must be positive and finite, or None"),
    (OF_TOKENS, {"softcap": INFINITY}, "softcap = inf must be positive and finite"),
    (("token_logprob",), {"logits_TV": LOGITS[0]}, r"logits must be floating \[T, V\] .* float32 \[5\]"),
    (("token_logprob",), {"logits_TV": LOGITS.long()}, r"logits must be floating .* they are int64 \[3, 5\]"),
    (("token_logprob",), {"logits_TV": LOGITS.to(torch.float8_e4m3fn)}, "of 16, 32 or 64 bits .* float8_e4m3fn"),
    (("token_logprob",), {"logits_TV": LOGITS[:, :0]}, r"V >= 1, they are float32 \[3, 0\]"),
    (
        ("token_logprob",),
        {"logits_TV": LOGITS.clone().requires_grad_(), "inplace_backward": True},
        "must be contiguous and not a leaf .*leaf: True.*; leave it off",
    ),
    (OF_HEADS, {"weight_VD": torch.zeros(0)}, r"weight \[V, D\], .* float32 \[0\] on cpu; an empty weight is a ZeRO-3"),
    (OF_HEADS, {"weight_VD": torch.zeros(0, 4)}, r"float32 \[0, 4\] on cpu; an empty weight is a ZeRO-3 shard: use"),
    (OF_HEADS, {"weight_VD": WEIGHT[:, :3]}, r"hidden must be \[T, D\] and weight \[V, D\], .* \[3, 4\] .* \[5, 3\]"),
    (OF_HEADS, {"hidden_TD": HIDDEN[None]}, r"hidden must be \[T, D\] .* float32 \[1, 3, 4\]"),
    (OF_HEADS, {"hidden_TD": HIDDEN.bfloat16()}, "one floating dtype .* bfloat16 .* float32 .*; cast or move one"),
    (OF_HEADS, {"hidden_TD": HIDDEN.long(), "weight_VD": WEIGHT.long()}, "one floating dtype .* int64"),
    (OF_HEADS, {"weight_VD": elsewhere(WEIGHT)}, "one device, they are .* on cpu and .* on meta"),
    (OF_HEADS, {"bias_V": BIAS[:4]}, r"bias must be floating \[5\] on cpu, it is float32 \[4\]"),
    (OF_HEADS, {"bias_V": BIAS.long()}, r"bias must be floating \[5\] on cpu, it is int64"),
    (OF_HEADS, {"bias_V": elsewhere(BIAS)}, "bias must be floating .* on meta"),
    (OF_HEADS, {"memory_budget_bytes": 79}, "memory_budget_bytes = 79 holds no token of a vocabulary of 5; .* 80"),
    (OF_HEADS, {"memory_budget_bytes": -1}, "memory_budget_bytes = -1 holds no token"),
    (OF_LOSSES, {"advantage_N": TARGETS[:2]}, r"advantage must be floating \[N\] on cpu, it is int64"),
    (OF_LOSSES, {"advantage_N": FLOATS}, r"cu_seqlens must be int32 or int64 \[4\] .* it is int64 \[3\]"),
    (OF_LOSSES, {"advantage_N": elsewhere(ADVANTAGE)}, "advantage must be floating .* on cpu, .* on meta"),
    (OF_LOSSES, {"cu_seqlens": FLOATS}, r"cu_seqlens must be int32 or int64 \[3\] on cpu .* it is float32"),
    (OF_LOSSES, {"cu_seqlens": elsewhere(OFFSETS)}, "cu_seqlens must be .* on cpu .* on meta"),
    (OF_LOSSES, {"mask_T": FLOATS}, r"mask must be bool \[3\] on cpu; it is float32 \[3\]"),
    (OF_LOSSES, {"mask_T": MASK[:2]}, r"mask must be bool \[3\] on cpu; it is bool \[2\]"),
    (OF_LOSSES, {"mask_T": elsewhere(MASK)}, r"mask must be bool \[3\] on cpu; .* on meta"),
    (OF_LOSSES, {"denominator": 0}, "denominator = 0 must be positive and finite"),
    (OF_LOSSES, {"denominator": NAN}, "denominator = nan must be positive"),
    (OF_LOSSES, {"denominator": FLOATS}, r"denominator must be a number or a tensor without dimensions: float32 \[3\]"),
    (OF_LOSSES, {"ref_logp_T": None}, "kl = 'k3' needs ref_logp, which is None; pass it or turn the option off"),
    (OF_LOSSES, {"options": PolicyLoss(correction="mask")}, "correction = 'mask' needs rollout_logp, which is None"),
    (("grpo_loss",), {"options": PolicyLoss(entropy_coef=0.1)}, "entropy_coef = 0.1 needs entropy, which is None"),
    (("grpo_loss",), {"entropy_T": FLOATS[:1]}, r"entropy must be floating \[3\] on cpu; it is float32 \[1\]"),
    (("grpo_loss",), {"logp_T": FLOATS.bfloat16()}, r"logp must be float32 \[T\], it is bfloat16 \[3\]"),
    (("grpo_loss",), {"logp_T": LOGITS}, r"logp must be float32 \[T\], it is float32 \[3, 5\]"),
    (("group_advantage",), {"group_N": TARGETS[:2]}, r"group ids must be integers \[3\] on cpu, .* \[2\]"),
    (("group_advantage",), {"group_N": FLOATS}, r"group ids must be integers \[3\] on cpu, .* float32"),
    (("group_advantage",), {"group_N": elsewhere(TARGETS)}, "group ids must be integers .* on meta"),
    (("group_advantage",), {"rewards_N": LOGITS}, r"rewards must be real \[N\], they are float32 \[3, 5\]"),
    (("group_advantage",), {"eps": -1.0}, r"eps = -1\.0 must be at least 0 and finite"),
    (("group_advantage",), {"eps": NAN}, "eps = nan must be at least 0"),
    (("group_advantage",), {"baseline": "median"}, "baseline = 'median' must be one of mean, leave_one_out, none"),
    (("group_advantage",), {"scale": "std"}, "scale = 'std' must be one of group_std, batch_std, none"),
]
for _name in ("old_logp", "ref_logp", "rollout_logp", "log_kept_mass"):
    for _bad, _said in (
        (FLOATS[:2], r"float32 \[2\] on cpu"),
        (TARGETS, r"int64 \[3\] on cpu"),
        (elsewhere(FLOATS), r"float32 \[3\] on meta"),
    ):
        CASES.append((OF_LOSSES, {f"{_name}_T": _bad}, rf"{_name} must be floating \[3\] on cpu; it is {_said}"))


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [pytest.param(op, change, message, id=f"{op}-{message[:40]}") for ops, change, message in CASES for op in ops],
)
def test_bad_arguments_raise_before_anything_runs(op: str, change: dict[str, Any], message: str) -> None:
    function, arguments = CALLS[op]
    with Nothing(), pytest.raises(ValueError, match=message):
        function(**arguments | change)


@pytest.mark.parametrize("op", CALLS)
def test_the_same_arguments_without_a_mistake_are_taken(op: str) -> None:
    function, arguments = CALLS[op]
    function(**arguments)
    with pytest.raises(AssertionError, match="ran before"), Nothing():
        function(**arguments)


def test_values_are_named_too_where_reading_them_waits_for_nothing() -> None:
    for op in OF_TOKENS:
        function, arguments = CALLS[op]
        for bad in (5, -100):
            with pytest.raises(ValueError, match=rf"targets range from .*{bad}.* the vocabulary from 0 to 4; leave"):
                function(**arguments | {"targets_T": torch.tensor([0, bad, 0])})
        with pytest.raises(ValueError, match=r"temperature must be positive and finite, its least value is 0\.0"):
            function(**arguments | {"temperature": FLOATS})
    for op in OF_LOSSES:
        function, arguments = CALLS[op]
        for bounds in ([0, 2, 2], [1, 2, 3], [0, 4, 3]):
            with pytest.raises(ValueError, match=r"cu_seqlens must rise from 0 to 3 \(the tokens\), it is"):
                function(**arguments | {"cu_seqlens": torch.tensor(bounds)})
