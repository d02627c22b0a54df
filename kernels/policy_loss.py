"""The options of the policy loss, checked once: what `grpo_loss` and `linear_grpo_loss` compute."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

VALUES = (
    "loss_sum",
    "loss_count",
    "tokens_count",
    "entropy_sum",
    "kl_sum",
    "logp_gap_abs_sum",
    "correction_weight_sum",
    "correction_clipped_sum",
    "ratio_sum",
    "clip_low_sum",
    "clip_high_sum",
    "clip_dual_sum",
    "logp_gap_abs_max",
    "ratio_max",
    "ratio_min",
)
"""What the metrics are computed as: places in one tensor."""


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """What the loss is. Raises ValueError for a value out of range and for an option that another one disables."""

    objective: Literal["clip", "cispo", "reinforce", "nll"] = "clip"
    """clip: PPO's, as in GRPO; cispo: -sg(min(ratio, 1 + clip_high)) A logp; reinforce: -A logp; nll: -logp."""
    level: Literal["token", "sequence", "sequence_sum"] = "token"
    """Ratio of a token, exp of the sequence's mean (GSPO), or of its sum, as R1 prints it: overflows fp32 at 88."""
    clip_low: float = 0.2
    """ratio >= 1 - clip_low where A < 0."""
    clip_high: float = 0.2
    """ratio <= 1 + clip_high where A > 0."""
    dual_clip: float | None = None
    """Bound of the ratio where A < 0, > 1 (dual-clip PPO)."""
    delta: float | None = None
    """The same bound as two-sided GRPO names it, > 1 + clip_high; set one of the two."""
    kl: Literal["none", "k2", "k3", "weighted_k3"] = "k3"
    """Estimator against the reference, per token; weighted_k3 is times the token ratio, which is differentiated."""
    kl_coef: float = 0.001
    """0 is as kl = "none": the reference is not read."""
    correction: Literal["none", "truncate", "mask"] = "none"
    """Weight exp(old - rollout + log kept mass) of the objective: at most the cap (TIS), or 0 outside [1/cap, cap]."""
    correction_level: Literal["token", "sequence"] = "token"
    """Of one token, or the product over the sequence."""
    correction_cap: float = 2.0
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, in nats."""
    aggregate: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """The caller's denominator is then the global number of sequences, of tokens, or any constant (Dr. GRPO)."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if choices:
                if value not in choices:
                    raise ValueError(f"{name} = {value!r} must be one of {', '.join(choices)}")
            elif value is not None and math.isnan(value):
                raise ValueError(f"{name} = {value} must be a number")
        for name in ("clip_low", "clip_high", "kl_coef", "entropy_coef"):
            value = getattr(self, name)
            if value < 0 or (math.isinf(value) and name.endswith("coef")):
                raise ValueError(f"{name} = {value} must be at least 0 and finite; 0 turns it off")
        if self.dual_clip is not None and self.delta is not None:
            raise ValueError(
                f"dual_clip = {self.dual_clip} and delta = {self.delta} both bound the ratio where the advantage is "
                "negative; set one"
            )
        if self.ratio_bound is not None and self.objective != "clip":
            raise ValueError(f"dual_clip and delta belong to objective = 'clip', it is {self.objective!r}; unset them")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"dual_clip = {self.dual_clip} must be above 1; None turns it off")
        if self.delta is not None and not self.delta > 1 + self.clip_high:
            raise ValueError(f"delta = {self.delta} must be above 1 + clip_high = {1 + self.clip_high}; None is off")
        least = 1.0 if self.correction == "mask" else 0.0
        if not self.correction_cap > least:
            raise ValueError(f"correction_cap = {self.correction_cap} must be above {least:g} with {self.correction!r}")

    @property
    def ratio_bound(self) -> float | None:
        """`dual_clip` or `delta`, which are one thing: the ratio's upper bound where A < 0."""
        return self.delta if self.dual_clip is None else self.dual_clip

    @property
    def reads_reference(self) -> bool:
        """Whether the loss needs the reference's log-probs."""
        return self.kl != "none" and self.kl_coef > 0

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether a token with advantage 0 adds nothing to the loss."""
        return self.objective != "nll" and not self.reads_reference and not self.entropy_coef

    def reported(self, *, entropy: bool, rollout: bool) -> tuple[str, ...]:
        """The metrics that mean something, given the options and whether there are those log-probs."""
        absent: set[str] = set()
        if not entropy:
            absent |= {"entropy_sum"}
        if not self.reads_reference:
            absent |= {"kl_sum"}
        if not rollout:
            absent |= {"logp_gap_abs_sum", "logp_gap_abs_max"}
        if self.correction == "none":
            absent |= {"correction_weight_sum", "correction_clipped_sum"}
        if self.objective == "nll":
            absent |= {"ratio_sum", "ratio_min", "ratio_max"}
        if self.objective not in ("clip", "cispo"):
            absent |= {"clip_high_sum"}
        if self.objective != "clip":
            absent |= {"clip_low_sum"}
        if self.ratio_bound is None:
            absent |= {"clip_dual_sum"}
        return tuple(name for name in VALUES if name not in absent)

    def encode(self) -> str:
        """All options as one string, which an op of torch.compile's can take where it cannot take an object."""
        return " ".join([str(getattr(self, field)) for field in _FIELDS])


_FIELDS = tuple(field.name for field in fields(PolicyLoss))
_CHOICES = {
    name: tuple(choice for choice in get_args(hint) if isinstance(choice, str))
    for name, hint in get_type_hints(PolicyLoss).items()
}
"""The words that a field may hold, none for a number."""


@functools.lru_cache(maxsize=64)
def decode(text: str) -> PolicyLoss:
    """What `encode` encoded."""
    found: dict[str, Any] = {}
    for field, word in zip(fields(PolicyLoss), text.split(), strict=True):
        is_text = isinstance(field.default, str)
        found[field.name] = word if is_text else None if word == "None" else float(word)
    return PolicyLoss(**found)
