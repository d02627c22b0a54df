"""What the figures of one stage say about it: RL, supervised, reward models, sampling, evaluation.

A reader yields findings (fail: the stage has not done its job; warn: it has, at a price), or one line of its figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from r1fast.config import Config
from r1fast.diagnosis import (
    ACCURACY,
    MIN_ROLLOUTS,
    NO_CAUSE,
    SOLVED,
    Window,
    applied,
    causes,
    compare,
    not_finite,
    quantities,
    runs_away,
)
from r1fast.doctor.line import Line, Status
from r1fast.schedule import at, change_steps

Lines = Sequence[Mapping[str, Any]]
SIGMAS = 2.0  # a change within so many standard errors is none
PEAK_LOSS = 0.1  # of accuracy, from its best to the end, that is worth a word
PEAK_SIGMAS = 3.0
FLAT_BELOW = 0.5  # accuracy under which a reward that rises without it is suspicious
MIN_STEPS = 10  # of supervised training; fewer say nothing
COIN = 0.6  # share of right answers under which a reward model may as well guess

# What a stage's model is compared with in the closing evaluation: row -> the row it started from.
STARTED_FROM = {
    "r1_zero": "base",
    "rl_1": "sft_1",
    "r1": "sft_2",
    "student_distilled": "student_base",
    "student_rl": "student_base",
}


def read_rl(stage: str, lines: Lines, config: Config) -> Iterator[Line]:
    """A GRPO stage; `config` as the stage sees it. Reads what has happened since its weights last changed."""
    since = _last_change(config, lines)
    history = [values for line, values in zip(lines, applied(lines), strict=True) if line["step"] > since]
    limits = (at(config.optimizer.max_grad_norm, 0), at(config.loss.entropy_coef, 0))
    window = Window(history, *limits)
    broken = not_finite(window)
    if broken:
        yield Line(status="fail", name=stage, value=broken)
        return
    rewards = window.values("reward")
    if len(rewards) < MIN_ROLLOUTS:
        yield Line(status="-", name=stage, value=f"rollouts: {len(rewards)}, too few to say how it learns")
        if len(history) >= MIN_ROLLOUTS:  # of few rollouts with many updates
            yield from (Line(status="fail", name=stage, value=text) for text in causes(window, learns=True))
        return
    part = max(MIN_ROLLOUTS // 2, len(rewards) // 5)
    first, last, noise = compare(rewards[:part], rewards[-part:])
    recent = Window(history[-max(MIN_ROLLOUTS, len(history) // 3) :], *limits)
    solved = recent.mean(*ACCURACY, default=0.0) >= SOLVED
    learned = solved or last - first > SIGMAS * noise
    status: Status = "warn" if learned else "fail"
    if not learned:
        within = f" (within its noise, {SIGMAS * noise:.3f})" if last > first else ""
        value = f"the reward did not rise: {first:.3f} -> {last:.3f} over {len(rewards)} rollouts{within}"
        yield Line(status="fail", name=stage, value=value)
    found = list(_against_accuracy(stage, window, part, rose=last - first > SIGMAS * noise))
    status = "fail" if found else status
    found += [Line(status=status, name=stage, value=text) for text in causes(window, recent, learns=learned)]
    if not found and learned:
        found = [Line(status="ok", name=stage, value=_figures(window, part))]
    yield from found or [Line(status=status, name=stage, value=NO_CAUSE)]


def _against_accuracy(stage: str, window: Window, part: int, *, rose: bool) -> Iterator[Line]:
    """A reward that rises without accuracy, and accuracy that was better before."""
    accuracy = window.values(*ACCURACY)
    if len(accuracy) < 2 * part:
        return
    means = [sum(accuracy[n : n + part]) / part for n in range(len(accuracy) - part + 1)]
    best = max(range(len(means)), key=means.__getitem__)
    peak, last = means[best], means[-1]
    # of all rollouts, not of those at the peak: the best of many noisy means is high by chance
    steps = [(after - before) ** 2 / 2 for before, after in pairwise(accuracy)]
    noise = math.sqrt(sum(steps) / len(steps) * 2 / part)
    if peak - last > max(PEAK_LOSS, PEAK_SIGMAS * noise):
        value = f"accuracy fell from {peak:.2f} (around rollout {best + part // 2 + 1}) to {last:.2f} at the end"
        yield Line(status="fail", name=stage, value=value, fix="lower lr, raise loss.kl_coef, or stop there")
        return
    first, last, noise = compare(accuracy[:part], accuracy[-part:])
    if rose and last < FLAT_BELOW and last - first <= SIGMAS * noise:
        rewards = window.values("reward")
        before, after, _ = compare(rewards[:part], rewards[-part:])
        value = f"the reward rose from {before:.2f} to {after:.2f} while accuracy stayed at {first:.2f} -> {last:.2f}"
        fix = "other rewards than accuracy pay: lower their weights, and check that the answers belong to the questions"
        fix = "" if runs_away(window) else fix  # that is why, and has a fix of its own
        yield Line(status="fail", name=stage, value=value, fix=fix)


def _figures(window: Window, part: int) -> str:
    shown = []
    for name in ("reward", *ACCURACY, "format", "length"):
        values = window.values(name)
        if len(values) >= 2 * part:
            first, last, _ = compare(values[:part], values[-part:])
            shown.append(f"{name} {first:.3g} -> {last:.3g}")
    return f"{len(window.values('reward'))} rollouts: {', '.join(shown)}"


def _last_change(config: Config, lines: Lines) -> int:
    """The step after which rewards, prompts and sampling stayed as they were, if enough rollouts came after it."""
    rl = config.rl
    weights = [weight for table in config.rewards.values() for weight in table.values()]
    mixture = (rl.prompts_per_step, rl.general_prompts_per_step, rl.temperature, rl.top_p, rl.max_tokens)
    rollouts = [line["step"] for line in lines if f"{line['stage']}/reward" in line]
    changes = [step for step in change_steps(*weights, *mixture) if sum(at > step for at in rollouts) >= MIN_ROLLOUTS]
    return changes[-1] if changes else 0


def read_sft(stage: str, lines: Lines, result: Mapping[str, Any] | None, config: Config) -> Iterator[Line]:
    """A supervised stage: its loss falls, and not to nothing."""
    window = Window(applied(lines), at(config.optimizer.max_grad_norm, 0))
    broken, losses = not_finite(window), window.values("loss")
    if broken:
        yield Line(status="fail", name=stage, value=broken)
        return
    if len(losses) < MIN_STEPS:
        yield Line(status="-", name=stage, value=f"steps: {len(losses)}, too few to say how it learns")
        return
    part = max(3, len(losses) // 10)
    first, last, noise = compare(losses[:part], losses[-part:])
    if last > 1.2 * losses[0]:  # of the model as it was: the steps after may have spoilt it already
        first, noise = losses[0], 0.0
    fell = f"{first:.3f} -> {last:.3f} nats a token over {len(losses)} steps"
    if last - first > SIGMAS * noise:
        yield Line(status="fail", name=stage, value=f"the loss rose: {fell}", fix=f"lower {stage}'s lr")
        return
    if first - last <= SIGMAS * noise:
        fix = f"raise {stage}'s lr (it began at {window.values('lr')[0]:.1g}), or train longer"
        yield Line(status="fail", name=stage, value=f"the loss did not fall: {fell}", fix=fix)
        return
    worst = max(range(part, len(losses)), key=losses.__getitem__)
    if losses[worst] > 2 * first:
        value = f"the loss fell ({fell}), but it was {losses[worst]:.3f} at step {worst + 1}"
        yield Line(status="warn", name=stage, value=value, fix=f"lower {stage}'s lr, or set warmup_steps")
    elif last < 0.02:
        seen = len(losses) * config.sft.batch_size / max(1, (result or {}).get("examples", 0) or 1)
        times = f", every example seen {seen:.0f} times" if result else ""
        value = f"the loss is {last:.4f} at the end: the examples are learned by heart{times}"
        yield Line(status="warn", name=stage, value=value, fix="fewer steps or epochs, or more examples")
    else:
        yield Line(status="ok", name=stage, value=f"loss {fell}")


def read_reward_models(stage: str, lines: Lines, result: Mapping[str, Any] | None) -> Iterator[Line]:
    """Both reward models: better than a coin, and as good on held-out data as on their own."""
    history = [quantities(line) for line in lines]
    for kind, held_out in (("helpful", "pair_accuracy"), ("safe", "safety_accuracy")):
        window = Window(history, 0.0)
        losses, right = window.values(f"{kind}_loss"), window.values(f"{kind}_accuracy")
        if len(losses) < MIN_STEPS:
            if losses:
                yield Line(status="-", name=stage, value=f"{kind}: steps: {len(losses)}, too few to say")
            continue
        part = max(3, len(losses) // 10)
        last_loss, last_right = (sum(values[-part:]) / part for values in (losses, right))
        value = f"{kind}: loss {last_loss:.3f}, {last_right:.0%} right in training"
        measured = (result or {}).get(held_out)
        if measured is not None:
            value += f", {measured:.0%} on held-out data"
        known = measured if measured is not None else last_right
        if not math.isfinite(last_loss) or known < COIN:
            fix = (
                "the model has learned nothing: another reward_model.lr (lower if the loss jumps), more steps or pairs"
            )
            yield Line(status="fail", name=stage, value=f"{value}; a coin has 0.693 and 50%", fix=fix)
        elif last_right - known > 0.15:
            fix = "it has learned its pairs by heart: fewer reward_model.steps, more pairs"
            yield Line(status="warn", name=stage, value=value, fix=fix)
        else:
            yield Line(status="ok", name=stage, value=value)


def read_yield(stage: str, result: Mapping[str, Any], *, judged: bool = True) -> Line:
    """What a sampling stage kept, and which filter took most; a model that has hardly trained is not `judged`."""
    samples, kept = result.get("samples", 0), result.get("yield/kept", 0)
    lost = {key.removeprefix("yield/"): count for key, count in result.items() if key.startswith("yield/")}
    lost.pop("kept", None)
    value = f"{kept:,} of {samples:,} samples kept"
    if not samples or kept >= 0.05 * samples:
        return Line(status="ok", name=stage, value=value)
    reason = max(lost, key=lost.__getitem__) if lost else "unknown"
    value += f", {lost.get(reason, 0) / samples:.0%} dropped as {reason!r}"
    if not judged:
        return Line(status="-", name=stage, value=f"{value}: too few rollouts before it to say more")
    return Line(status="warn", name=stage, value=value, fix="train the stage before longer, or loosen that filter")


def read_limit(stage: str, max_tokens: int, before: str, lines: Lines) -> Iterator[Line]:
    """A sampling stage whose limit cuts off most of what its model writes; `lines` of the RL stage `before`."""
    lengths = Window([quantities(line) for line in lines[-MIN_ROLLOUTS:]], 0.0).values("length")
    length = sum(lengths) / max(1, len(lengths))
    if length > max_tokens:
        value = f"max_tokens = {max_tokens}, but completions of {before} have {length:.0f} tokens: most are cut off"
        yield Line(status="fail", name=stage, value=value, fix=f"raise {stage}.max_tokens")


def read_evaluation(stage: str, table: Mapping[str, Mapping[str, Any]]) -> Iterator[Line]:
    """Models that are worse than what they started from, and answers that are cut off."""
    found = False
    for row, before in STARTED_FROM.items():
        if row not in table or before not in table:
            continue
        new, old = table[row], table[before]
        if new["pass@1_ci"][1] < old["pass@1_ci"][0]:
            found = True
            value = f"{row} has pass@1 {new['pass@1']:.3f}, {before}, from which it was trained, {old['pass@1']:.3f}"
            yield Line(status="fail", name=stage, value=value, fix="look at the findings of its stage")
    for row, figures in table.items():
        if (figures.get("truncated") or 0.0) >= 0.2:
            found = True
            value = f"{row}: {figures['truncated']:.0%} of the answers hit the length limit and count as wrong"
            yield Line(status="warn", name=stage, value=value, fix="raise evaluation.max_tokens")
    if table and not found:
        shown = ", ".join(f"{row} {figures['pass@1']:.3f}" for row, figures in table.items())
        yield Line(status="ok", name=stage, value=f"pass@1: {shown}")
