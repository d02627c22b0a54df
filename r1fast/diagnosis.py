"""Why learning stalls: the run's own figures read the way an experienced person would read them.

Pure: no state, no files. Quantities are those of a stage's lines in `metrics.jsonl`, without the `STAGE/` prefix.
`why_stalled` reads the last rollouts while a stage runs; `r1fast.doctor` reads whole stages with the same causes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIN_ROLLOUTS = 8  # fewer say nothing about a trend
WINDOW = 20  # rollouts that are looked at
NO_ENTROPY = 0.02  # nats a token
SOLVED = 0.95  # reward accuracy from which no rise is expected


def why_stalled(history: Sequence[Mapping[str, Any]], *, max_grad_norm: float = 1.0) -> list[str]:
    """Why the reward of a stage no longer rises: the finding first, then one likely cause a line, figures and fix.

    history: lines of one RL stage in order of steps, as `read_metrics` gives them. Empty when the reward rises, when
    accuracy is at its ceiling already, or when there are fewer than 8 rollouts; but a loss, KL or gradient that is no
    number is always reported. Ask now and then, not after every step: the same finding stands for a while.
    max_grad_norm: the run's gradient clipping, 0 for none.
    """
    window = Window(_last_rollouts(applied(history)), max_grad_norm)
    broken = not_finite(window)
    if broken:
        return [broken]
    rewards = window.values("reward")
    if len(rewards) < MIN_ROLLOUTS:
        return []
    middle = len(rewards) // 2
    earlier, later, noise = compare(rewards[:middle], rewards[middle:])
    if later - earlier > noise or window.mean(*ACCURACY, default=0.0) >= SOLVED:
        return []
    return [
        f"the reward does not rise: {earlier:.3f} -> {later:.3f} over the last {len(rewards)} rollouts",
        *(causes(window) or [NO_CAUSE]),
    ]


def causes(window: Window, recent: Window | None = None, *, learns: bool = False) -> list[str]:
    """What keeps a stage from learning, each with figures and a fix; empty where all looks well.

    Shares are read in `recent` (default: the window), trends over the whole window. While a stage `learns`, that its
    completions lack the format yet is no cause: it is what it learns; nor is tight clipping, which Adam divides out.
    Where the policy runs away, or does not move at all, equal rewards and a lost format are what follows from it.
    """
    weights = [cause(window) for cause in _WEIGHTS]
    found = weights + [cause(window) for cause in _TRENDS]
    found += [] if learns else [_clipped_gradients(window)]
    found += [] if any(weights) else [_zero_variance(recent or window)]
    found += [] if any(weights) or learns else [cause(recent or window) for cause in _FORM]
    return [text for text in found if text]


ACCURACY = ("accuracy", "gym")
NO_CAUSE = "none of the usual causes shows; try a higher lr, more prompts per step or more steps"


@dataclass(frozen=True)
class Window:
    """Consecutive lines of a stage, as `quantities` gives them; `max_grad_norm`: the clipping, 0 for none.

    entropy_coef: the run's own, NaN where it is not known.
    """

    lines: Sequence[Mapping[str, float]]
    max_grad_norm: float
    entropy_coef: float = math.nan

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


def quantities(line: Mapping[str, Any]) -> dict[str, float]:
    """A line's values without the stage's name before them."""
    prefix = f"{line.get('stage', '')}/"
    return {key.removeprefix(prefix): value for key, value in line.items() if key not in ("stage", "step")}


def applied(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The `quantities` of a stage's lines; of updates that were skipped without what is not finite.

    The weights stayed as they were before these: neither are they lost, nor does a mean of such a value say anything.
    """
    found, before = [], 0.0
    for line in map(quantities, lines):
        skipped = line.get("skipped_updates", before)
        found.append(line if skipped <= before else {key: value for key, value in line.items() if math.isfinite(value)})
        before = skipped
    return found


def _last_rollouts(lines: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """The lines since the WINDOW-th last rollout; a rollout of several updates has its reward in one line of them."""
    rollouts = [number for number, line in enumerate(lines) if "reward" in line]
    return lines[rollouts[-WINDOW] :] if len(rollouts) > WINDOW else lines


def compare(earlier: Sequence[float], later: Sequence[float]) -> tuple[float, float, float]:
    """Means of two series of a noisy quantity, and the standard error of their difference."""
    means = [sum(part) / len(part) for part in (earlier, later)]
    variance = 0.0
    for part, mean in zip((earlier, later), means, strict=True):
        variance += sum((value - mean) ** 2 for value in part) / max(1, len(part) - 1) / len(part)
    return means[0], means[1], math.sqrt(variance)


def not_finite(window: Window) -> str | None:
    """The first quantity that is no number any more, and what to do."""
    for name in ("loss", "kl", "grad_norm", "ratio_max"):
        values = window.values(name)
        if values and not math.isfinite(values[-1]):
            return (
                f"{name} is {values[-1]}: the weights are or will be lost; go back to the last checkpoint with a lower "
                "lr or a smaller max_grad_norm"
            )
    return None


def _zero_variance(window: Window) -> str | None:
    share = window.mean("zero_variance")
    if not share >= 0.5 or window.mean(*ACCURACY, default=0.0) >= SOLVED:
        return None
    accuracy, entropy = window.mean(*ACCURACY, "reward"), window.values("entropy")
    if entropy and entropy[-1] < NO_ENTROPY:
        which, fix = "their samples are nearly the same", "raise the temperature"
    elif accuracy >= 0.5:
        which, fix = "mostly all right", "use harder prompts, or stop here"
    else:
        which, fix = "mostly all wrong", "use easier prompts, a larger group_size or a longer max_tokens"
    return (
        f"{share:.0%} of the groups have equal rewards and teach nothing ({which}, accuracy {accuracy:.2f}): {fix}; "
        'zero_variance = "refill" replaces such groups'
    )


def _truncation(window: Window) -> str | None:
    values, lengths = window.values("truncated"), window.values("length")
    if not values:
        return None
    third = max(1, len(values) // 3)
    began, share = sum(values[:third]) / third, sum(values[-third:]) / third
    length = f"mean length {sum(lengths[-third:]) / third:.0f}" if len(lengths) >= third else "length unknown"
    if share >= 0.9 and began < 0.5:
        return (
            f"{share:.0%} of the completions never end ({length}), {began:.0%} did so at first: the policy has lost "
            "its end token; go back to an earlier checkpoint, lower lr"
        )
    if share >= 0.9:
        return (
            f"{share:.0%} of the completions never end ({length}): the model does not write its end token; check the "
            "template and the tokenizer's eos token, or raise max_tokens"
        )
    if share >= 0.2 and runs_away(window) is None:  # a policy that runs away needs no longer limit
        return (
            f"length hits the limit in {share:.0%} of the samples ({length}), which can hardly earn a reward: raise "
            "max_tokens, or start from a model that ends earlier"
        )
    return None


def _format(window: Window) -> str | None:
    share, lenient = window.mean("format"), window.mean("accuracy_any")
    if not share < 0.5:
        return None
    instead = f" although {lenient:.0%} have the right number somewhere" if lenient >= share else ""
    some = f"only {share:.0%}" if share >= 0.005 else "none"
    return (
        f"{some} of the completions have the format{instead}: raise the format reward's weight, or use a "
        "template that the model follows"
    )


def _outcomes(window: Window) -> dict[str, float]:
    """How the answers were judged, counted over the window."""
    counts: dict[str, float] = {}
    for line in window.lines:
        for key, value in line.items():
            if key.startswith(("outcome/accuracy/", "outcome/gym/")):
                outcome = key.rpartition("/")[2].removesuffix("_count")
                counts[outcome] = counts.get(outcome, 0.0) + value
    return counts


def _verifier(window: Window) -> str | None:
    counts = _outcomes(window)
    total, failures = sum(counts.values()), counts.get("timeout", 0.0) + counts.get("crash", 0.0)
    if not total or failures < 0.01 * total:
        return None
    return (
        f"the verifier failed on {failures / total:.0%} of the answers ({failures:.0f} timeouts, crashes), which score "
        "0: look at them in samples.jsonl, or raise the verifier's timeout"
    )


def _unparsed(window: Window) -> str | None:
    counts = _outcomes(window)
    share = counts.get("unparsed", 0.0) / max(1.0, sum(counts.values()))
    if share < 0.3:
        return None
    return (
        f"{share:.0%} of the answers cannot be parsed and score 0: look at samples.jsonl; the answer's form may not be "
        "what the template asks for"
    )


def runs_away(window: Window) -> str | None:
    """The policy leaves its reference: that is then the cause, and most other findings follow from it."""
    values = window.values("kl")
    if not values:
        return None
    first, last = values[0], statistics.median(values[-3:])  # a refresh of the reference puts it back to 0
    if last < 0.5 or last < 3 * max(first, 1e-3):
        return None
    return (
        f"KL to the reference grew from {first:.3f} to {last:.3f} nats a token: the policy runs away; lower lr, raise "
        "kl_coef, or refresh the reference more often"
    )


def _frozen(window: Window) -> str | None:
    values = window.values("kl")
    if len(values) < MIN_ROLLOUTS or max(values) >= 1e-5:
        return None
    return (
        f"the policy has hardly moved: KL to the reference is {max(values):.1g} nats a token at most; raise lr (it is "
        f"{window.mean('lr'):.1g}), lower kl_coef, or loosen max_grad_norm"
    )


def _entropy(window: Window) -> str | None:
    values = window.values("entropy")
    if not values or window.mean(*ACCURACY, default=0.0) >= SOLVED:
        return None
    if values[-1] < NO_ENTROPY:
        return (
            f"entropy is {values[-1]:.3f} nats a token: samples of a group are nearly the same; raise the temperature "
            "or clip_high, or set entropy_coef"
        )
    if values[-1] >= max(1.0, 2 * values[0]):
        coef = window.entropy_coef
        what = "lr" if coef == 0 else f"entropy_coef (it is {coef:g})" if coef > 0 else "lr or entropy_coef"
        grew = f"entropy grew from {values[0]:.2f} to {values[-1]:.2f} nats a token"
        return f"{grew}: the policy becomes random; lower {what}"
    return None


def _logp_gap(window: Window) -> str | None:
    values = window.values("logp_gap")
    third = len(values) // 3
    first, last, _ = compare(values[:third], values[-third:]) if third else (math.nan, math.nan, math.nan)
    grows = last >= 0.02 and last >= 3 * first
    if not (window.mean("logp_gap") >= 0.05 or grows):
        return None
    what = f"grew from {first:.3f} to {last:.3f}" if grows else f"is {window.mean('logp_gap'):.3f}"
    return (
        f"the log-prob gap between rollout and trainer {what} nats a token (in one precision below 0.001, in bfloat16 "
        "about 0.01): samples are not from this policy; check the dtypes and whether the model's position encoding "
        'changes with length (rope_type dynamic, longrope), or set correction = "truncate"'
    )


def _clipped_gradients(window: Window) -> str | None:
    values, limit = window.values("grad_norm"), window.max_grad_norm
    clipped = sum(value > limit for value in values) if limit else 0
    if not values or clipped < 0.8 * len(values):
        return None
    typical = sorted(values)[len(values) // 2]
    if typical < 3 * limit:
        return None
    effect = (
        "hardly anything is left of it beside Adam's epsilon" if limit < 1e-5 else "noisy steps count as much as clear"
    )
    return (
        f"the gradient was clipped in {clipped} of {len(values)} steps (median norm {typical:.2g}, limit {limit:g}): "
        f"{effect}; raise max_grad_norm" + ("" if limit < 1e-5 else ", or use larger batches")
    )


def _clipped_ratios(window: Window) -> str | None:
    lines = window.lines
    # the last update of each rollout is the farthest from it; the first one clips nothing
    ends = [line for line, after in zip(lines, [*lines[1:], {"reward": 0.0}], strict=True) if "reward" in after]
    updates = round(len(lines) / max(1, len(ends)))
    shares = [line["clip_low"] + line["clip_high"] for line in ends if {"clip_low", "clip_high"} <= line.keys()]
    share = sum(shares) / max(1, len(shares))
    if share < 0.15:
        return None
    return (
        f"{share:.0%} of the tokens are clipped and have no gradient in the last of {updates} updates of a rollout: "
        "the policy moves too far within one; lower lr or updates_per_rollout"
    )


_Cause = Callable[[Window], str | None]
_WEIGHTS: tuple[_Cause, ...] = (runs_away, _frozen)
_TRENDS: tuple[_Cause, ...] = (_clipped_ratios, _verifier, _logp_gap, _truncation, _entropy)
_FORM: tuple[_Cause, ...] = (_format, _unparsed)
