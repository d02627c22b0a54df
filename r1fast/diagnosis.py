"""Why learning stalls: the run's own figures read the way an experienced person would read them.

Pure: no state, no files. Quantities are those of a stage's lines in `metrics.jsonl`, without the `STAGE/` prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIN_ROLLOUTS = 8  # fewer say nothing about a trend
WINDOW = 20  # rollouts that are looked at
SOLVED = 0.95  # reward accuracy from which no rise is expected


def why_stalled(history: Sequence[Mapping[str, Any]], *, max_grad_norm: float = 1.0) -> list[str]:
    """Why the reward of a stage no longer rises: the finding first, then one likely cause a line, figures and fix.

    history: lines of one RL stage in order of steps, as `read_metrics` gives them. Empty when the reward rises, when
    accuracy is at its ceiling already, or when there are fewer than 8 rollouts; but a loss, KL or gradient that is no
    number is always reported. Ask now and then, not after every step: the same finding stands for a while.
    max_grad_norm: the run's gradient clipping, 0 for none.
    """
    window = _Window(_last_rollouts([_quantities(line) for line in history]), max_grad_norm)
    broken = _not_finite(window)
    if broken:
        return [broken]
    rewards = window.values("reward")
    if len(rewards) < MIN_ROLLOUTS:
        return []
    earlier, later, noise = _halves(rewards)
    if later - earlier > noise or window.mean(*ACCURACY, default=0.0) >= SOLVED:
        return []
    found = [text for cause in _CAUSES if (text := cause(window))]
    return [
        f"the reward does not rise: {earlier:.3f} -> {later:.3f} over the last {len(rewards)} rollouts",
        *(found or ["none of the usual causes shows; try a higher lr, more prompts per step or more steps"]),
    ]


ACCURACY = ("accuracy", "gym")


@dataclass(frozen=True)
class _Window:
    lines: Sequence[Mapping[str, float]]
    max_grad_norm: float

    def values(self, *names: str) -> list[float]:
        """The first of the named quantities that the lines have, over steps."""
        for name in names:
            values = [line[name] for line in self.lines if name in line]
            if values:
                return values
        return []

    def mean(self, *names: str, default: float = math.nan) -> float:
        """Mean over the window; `default` (NaN: no comparison holds) where no line has the quantity."""
        values = self.values(*names)
        return sum(values) / len(values) if values else default


def _quantities(line: Mapping[str, Any]) -> dict[str, float]:
    prefix = f"{line.get('stage', '')}/"
    return {key.removeprefix(prefix): value for key, value in line.items() if key not in ("stage", "step")}


def _last_rollouts(lines: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """The lines since the WINDOW-th last rollout; a rollout of several updates has its reward in one line of them."""
    rollouts = [number for number, line in enumerate(lines) if "reward" in line]
    return lines[rollouts[-WINDOW] :] if len(rollouts) > WINDOW else lines


def _halves(values: Sequence[float]) -> tuple[float, float, float]:
    """Means of the earlier and the later half, and the standard error of their difference."""
    middle = len(values) // 2
    parts = values[:middle], values[middle:]
    earlier, later = (sum(part) / len(part) for part in parts)
    variance = 0.0
    for part, mean in zip(parts, (earlier, later), strict=True):
        variance += sum((value - mean) ** 2 for value in part) / max(1, len(part) - 1) / len(part)
    return earlier, later, math.sqrt(variance)


def _not_finite(window: _Window) -> str | None:
    for name in ("loss", "kl", "grad_norm", "ratio_max"):
        values = window.values(name)
        if values and not math.isfinite(values[-1]):
            return (
                f"{name} is {values[-1]}: the weights are or will be lost; go back to the last checkpoint with a lower "
                "lr or a smaller max_grad_norm"
            )
    return None


def _zero_variance(window: _Window) -> str | None:
    share = window.mean("zero_variance")
    if not share >= 0.5:
        return None
    accuracy = window.mean(*ACCURACY, "reward")
    if accuracy >= 0.5:
        which, fix = "mostly all right", "use harder prompts, or stop here"
    else:
        which, fix = "mostly all wrong", "use easier prompts, a larger group_size or a longer max_tokens"
    return (
        f"{share:.0%} of the groups have equal rewards and teach nothing ({which}, accuracy {accuracy:.2f}): {fix}; "
        'zero_variance = "refill" replaces such groups'
    )


def _truncation(window: _Window) -> str | None:
    share, length = window.mean("truncated"), window.mean("length")
    if share >= 0.9:
        return (
            f"{share:.0%} of the completions never end (mean length {length:.0f}): the model does not write its end "
            "token; check the template and the tokenizer's eos token"
        )
    if share >= 0.2:
        return (
            f"{share:.0%} of the completions are cut off at max_tokens (mean length {length:.0f}) and can hardly earn "
            "a reward: raise max_tokens, or start from a model that ends earlier"
        )
    return None


def _format(window: _Window) -> str | None:
    share, lenient = window.mean("format"), window.mean("accuracy_any")
    if not share < 0.5:
        return None
    instead = f" although {lenient:.0%} have the right number somewhere" if lenient >= share else ""
    return (
        f"only {share:.0%} of the completions have the format{instead}: raise the format reward's weight, or use a "
        "template that the model follows"
    )


def _unparsed(window: _Window) -> str | None:
    counts: dict[str, float] = {}
    for line in window.lines:
        for key, value in line.items():
            if key.startswith(("outcome/accuracy/", "outcome/gym/")):
                outcome = key.rpartition("/")[2].removesuffix("_count")
                counts[outcome] = counts.get(outcome, 0.0) + value
    total = sum(counts.values())
    failures = counts.get("timeout", 0.0) + counts.get("crash", 0.0)
    if total and failures >= 0.02 * total:
        return (
            f"the verifier failed on {failures / total:.0%} of the answers ({failures:.0f} timeouts, crashes), which "
            "score 0: look at them in samples.jsonl, or raise the verifier's timeout"
        )
    if total and counts.get("unparsed", 0.0) >= 0.3 * total:
        return (
            f"{counts['unparsed'] / total:.0%} of the answers cannot be parsed and score 0: look at samples.jsonl; the "
            "answer's form may not be what the template asks for"
        )
    return None


def _kl(window: _Window) -> str | None:
    values = window.values("kl")
    if not values or max(values[-3:]) < 0.5 or values[-1] < 3 * max(values[0], 1e-3):
        return None
    return (
        f"KL to the reference grew from {values[0]:.3f} to {values[-1]:.3f} nats a token: the policy runs away; lower "
        "lr, raise kl_coef, or refresh the reference more often"
    )


def _entropy(window: _Window) -> str | None:
    values = window.values("entropy")
    if not values or values[-1] >= 0.02:
        return None
    return (
        f"entropy is {values[-1]:.3f} nats a token: samples of a group are nearly the same; raise the temperature or "
        "clip_high, or set entropy_coef"
    )


def _logp_gap(window: _Window) -> str | None:
    gap = window.mean("logp_gap")
    if not gap >= 0.05:
        return None
    return (
        f"rollout and trainer differ by {gap:.3f} nats a token (in one precision below 0.001, in bfloat16 about 0.01): "
        'samples are not from this policy; check the dtypes, or set correction = "truncate"'
    )


def _clipped_gradients(window: _Window) -> str | None:
    values, limit = window.values("grad_norm"), window.max_grad_norm
    clipped = sum(value > limit for value in values) if limit else 0
    if not values or clipped < 0.8 * len(values):
        return None
    typical = sorted(values)[len(values) // 2]
    if typical < 3 * limit:
        return None
    return (
        f"the gradient was clipped in {clipped} of {len(values)} steps (median norm {typical:.2g}, limit {limit:g}): "
        "steps are smaller than lr says; raise max_grad_norm, or use larger batches"
    )


def _clipped_ratios(window: _Window) -> str | None:
    share = window.mean("clip_low", default=0.0) + window.mean("clip_high", default=0.0)
    if share < 0.3:
        return None
    return (
        f"{share:.0%} of the tokens are clipped and have no gradient: the policy moves too far within one rollout; "
        "lower lr or updates_per_rollout"
    )


_CAUSES: tuple[Callable[[_Window], str | None], ...] = (
    _zero_variance,
    _truncation,
    _format,
    _unparsed,
    _kl,
    _entropy,
    _logp_gap,
    _clipped_ratios,
    _clipped_gradients,
)
