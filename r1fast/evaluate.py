"""Reading a model: k samples of every problem, strict and lenient accuracy, majority vote, language, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1fast.config import Config
from r1fast.context import RunContext
from r1fast.intervals import mean_interval
from r1fast.metrics import ratios
from r1fast.readings import Sums, sample_sums
from r1fast.records import Prompt, Rollout, ScoredRollout
from r1fast.rewards.response import parse_response, response_text
from r1fast.rollout.backend import Engine
from r1fast.sampling import Sampling
from r1fast.scorer import Scorer

METRICS: Mapping[str, float] = {"accuracy": 1.0, "accuracy_any": 0.0, "format": 0.0}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One model on one set: means, and per problem the share of right samples (for paired differences)."""

    row: dict[str, Any]
    per_problem: dict[str, float]
    samples: list[ScoredRollout] = field(default_factory=list)


def read_model(
    context: RunContext,
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    samples_per_problem: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    name: str,
) -> Reading:
    """Sample and score; every rank samples its share of the problems, all ranks get the same reading."""
    sampling = Sampling(
        temperature=temperature, top_p=top_p, max_tokens=max_tokens, stage=f"evaluation {name}", visit=0
    )
    pulse = context.ranks.pulse
    scorer = Scorer(dict.fromkeys((prompt.kind for prompt in prompts), METRICS), pulse=pulse)
    try:
        own = context.ranks.shard(list(prompts))
        with pulse.during("evaluation"):
            scored = scorer.score_groups(own, engine.groups(own, samples_per_problem, sampling))
        metrics = scorer.take_metrics()
    finally:
        scorer.close()
    groups = [scored[start : start + samples_per_problem] for start in range(0, len(scored), samples_per_problem)]
    sums = sample_sums(scored)
    for group in groups:
        sums.add("cons", majority_is_right(group))
    means = ratios(context.ranks.reduce({**sums, **metrics}))
    shares = {g[0].rollout.prompt.id: sum(item.parts["accuracy"] for item in g) / len(g) for g in groups}
    per_problem = {key: value for part in context.ranks.gather_objects(shares) for key, value in part.items()}
    low, high = mean_interval(list(per_problem.values()))
    row = {
        "pass@1": means["accuracy"],
        "pass@1_ci": [low, high],
        "cons@k": means["cons"],
        "accuracy_any": means["accuracy_any"],
        "format": means["format"],
        "language": means.get("language_share"),
        "mixed": means.get("mixed"),
        "tokens": means["length"],
        "truncated": means["truncated"],
        "num_problems": len(per_problem),
        "k": samples_per_problem,
    }
    return Reading(row=row, per_problem=per_problem, samples=scored)


def dev_reading(context: RunContext, engine: Engine, prompts: Sequence[Prompt], config: Config) -> dict[str, float]:
    """One sample of every dev problem with the evaluation's sampling; keys `dev/...` for the log."""
    evaluation = config.evaluation
    reading = read_model(
        context,
        engine,
        prompts,
        samples_per_problem=1,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        max_tokens=evaluation.max_tokens,
        name="dev",
    )
    shown = {
        "accuracy": "pass@1",
        "accuracy_any": "accuracy_any",
        "format": "format",
        "language": "language",
        "length": "tokens",
    }
    return {f"dev/{name}": reading.row[key] for name, key in shown.items() if reading.row[key] is not None}


def read_general(
    context: RunContext,
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    rewards: Mapping[str, Callable[[Sequence[Rollout]], Sequence[float]]],
    config: Config,
) -> dict[str, float]:
    """Refusal rates on harmful and benign requests, and the mean helpful reward of the benign ones' summaries.

    One sample of every prompt at the evaluation's temperature and top-p. `reward_model` is absent without a helpful
    reward model.
    """
    evaluation = config.evaluation
    sampling = Sampling(
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        max_tokens=evaluation.max_tokens,
        stage="evaluation general",
        visit=0,
    )
    with context.ranks.pulse.during("evaluation"):
        rollouts = engine.generate(context.ranks.shard(list(prompts)), 1, sampling)
    sums = Sums()
    for rollout in rollouts:
        summary = parse_response(response_text(rollout.prompt, rollout)).summary
        refused = context.source.is_refusal(summary)
        sums.add("refusal" if rollout.prompt.kind == "harmful" else "refusal_benign", refused)
    for name, column in (("helpful", "reward_model"), ("safe", "reward_safe")):
        if name in rewards and rollouts:
            chosen = [rollout for rollout in rollouts if name == "safe" or rollout.prompt.kind == "general"]
            for value in rewards[name](chosen):
                sums.add(column, value)
    return ratios(context.ranks.reduce(sums))


def majority_is_right(group: Sequence[ScoredRollout]) -> float:
    """cons@k: whether the most frequent strict answer is right; ties share the credit, no answer is wrong."""
    votes: Counter[str] = Counter()
    right: dict[str, bool] = {}
    for item in group:
        answer = parse_response(response_text(item.rollout.prompt, item.rollout)).answer
        if answer is not None:
            key = " ".join(answer.split())
            votes[key] += 1
            right[key] = item.parts["accuracy"] >= 1.0
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [key for key, count in votes.items() if count == most]
    return sum(right[key] for key in leaders) / len(leaders)
