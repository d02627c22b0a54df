"""Rollouts in, scored rollouts out: rewards weighted per prompt kind, every failure typed, counted and bounded."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field

import torch

from r1fast.pulse import Pulse
from r1fast.records import Prompt, Rollout, ScoredRollout
from r1fast.rewards import REWARDS, Reward
from r1fast.rewards.custom import load_custom
from r1fast.rewards.gold import gold_responses
from r1fast.rewards.score import ERRORS, Check, Score
from r1fast.rewards.verifiers import VerifierPool
from r1fast.schedule import Schedule, at

# One value (or score, where it can fail) per rollout, unweighted: a reward model, or what else wants whole batches.
ModelReward = Callable[[Sequence[Rollout]], Sequence[float | Score]]

# The rewards that judge an answer; the self-test requires 1 of them for the gold answer.
JUDGES = ("accuracy", "accuracy_in_format", "gym", "code", "code_partial")
_CHECKED = (*JUDGES, "accuracy_any")  # rewards of ours that verifiers may have to decide
_MIN_SCORES_TO_ABORT = 64


class Scorer:
    """Scores rollouts with the rewards that `weights` gives their prompt's kind.

    weights: kind -> reward name -> weight (a number or a schedule over the stage's steps). A rule reward of weight 0
    is computed and reported in `parts` (a metric); a model reward is skipped while its weight is 0.
    model_rewards: name -> function of a list of rollouts; its names may be used in `weights` like those of `REWARDS`.
    custom: rewards of the user's own, FILE.py:NAME each (`rewards.custom`).
    gate: name of a rule reward; where it is not 1, positive parts of the others do not count. Empty: all are added.
    num_workers, timeout_s: verifier processes, started only when an answer needs one, and the wall clock of a check.
    max_error_share: above this share of verifier failures (timeout, crash) among a reward's recent scores `score`
    raises RuntimeError with examples. One hostile answer must not stop a run, a broken verifier must.
    pulse: is shown the phase `reward` and its progress.

    Raises ValueError for an unknown reward name, and for a reward of the user that cannot be loaded.
    """

    def __init__(
        self,
        weights: Mapping[str, Mapping[str, Schedule]],
        *,
        model_rewards: Mapping[str, ModelReward] | None = None,
        custom: Sequence[str] = (),
        gate: str = "",
        num_workers: int = 2,
        timeout_s: float = 5.0,
        max_error_share: float = 0.1,
        pulse: Pulse | None = None,
    ) -> None:
        self._weights = {kind: dict(table) for kind, table in weights.items()}
        self._model_rewards = dict(model_rewards or {})
        self._gate = gate
        self._custom = load_custom(custom, taken=(*REWARDS, *self._model_rewards))
        self._rules: dict[str, Reward] = {**REWARDS, **self._custom}
        self._max_error_share = max_error_share
        self._pulse = pulse or Pulse()
        self._pool = VerifierPool(num_workers=num_workers, timeout_s=timeout_s)
        self._early: dict[Check, Future[Score]] = {}  # begun before their groups had ended
        self._foreseen: dict[int, tuple[Rollout, dict[str, Score | Check]]] = {}  # by id() of the rollout
        self._tallies: dict[str, _Tally] = {}
        self._waited_s = self._verified_s = 0.0
        known = {*self._rules, *self._model_rewards}
        for kind, table in self._weights.items():
            for name in table:
                if name not in known:
                    raise ValueError(f"[rewards.{kind}] {name}: unknown reward; known are {', '.join(sorted(known))}")

    def score(self, rollouts: Sequence[Rollout], step: int = 0) -> list[ScoredRollout]:
        """Score rollouts with the weights in force at `step` (of the stage); order is kept.

        `reward` is the weighted sum of `parts`. `outcome` is that of the first reward in the kind's table, unless a
        verifier failed: then `timeout` or `crash`.
        """
        return self.result([self.submit(rollouts)], step)

    def score_groups(
        self, prompts: Sequence[Prompt], groups: Generator[Sequence[Rollout], None, None], step: int = 0
    ) -> list[ScoredRollout]:
        """`score` of what `RolloutEngine.groups` yields, in the order of `prompts`; verifiers work while it generates.

        An exception in generation cancels what is not verified yet, and goes on.
        """
        begun: dict[str, Begun] = {}
        try:
            with closing(groups):
                for group in groups:
                    begun[group[0].prompt.id] = self.submit(group)
            return self.result([begun[prompt.id] for prompt in prompts], step)
        except BaseException:
            for part in begun.values():
                part.cancel()
            raise
        finally:
            self._foreseen.clear()
            while self._early:
                self._early.popitem()[1].cancel()

    def foresee(self, rollout: Rollout) -> None:
        """Let verifiers begin with a completion whose group has not ended; `submit` of the group takes what they find.

        For `RolloutEngine.on_sample` while `score_groups` runs.
        """
        names = [name for name in self._table(rollout.prompt) if name in _CHECKED]
        found = {name: self._rules[name](rollout.prompt, rollout) for name in names}
        self._foreseen[id(rollout)] = rollout, found
        for score in found.values():
            if isinstance(score, Check) and score not in self._early:
                self._early[score] = self._pool.submit(score)

    def submit(self, rollouts: Sequence[Rollout]) -> Begun:
        """Begin to score rollouts: rule rewards at once, verifiers in the background."""
        with self._pulse.during("reward"):
            return self._submit(rollouts)

    def _submit(self, rollouts: Sequence[Rollout]) -> Begun:
        parts: list[dict[str, Score]] = [{} for _ in rollouts]
        asked: list[tuple[int, str, Check]] = []
        for place, rollout in enumerate(rollouts):
            _, known = self._foreseen.get(id(rollout), (rollout, {}))
            for name in self._table(rollout.prompt):
                if name in self._model_rewards:
                    continue
                score = known[name] if name in known else self._rules[name](rollout.prompt, rollout)
                if isinstance(score, Check):
                    asked.append((place, name, score))
                    score = Score(0.0, "crash")
                self._pulse.beat(name)
                parts[place][name] = score  # also for a check, so that the table's order is kept
        # strict and lenient accuracy often ask the same question
        checks = dict.fromkeys(check for *_, check in asked)
        early, ask = self._early, self._pool.submit
        futures = {check: early.pop(check) if check in early else ask(check) for check in checks}
        return Begun(list(rollouts), parts, [(place, name, futures[check]) for place, name, check in asked])

    def result(self, begun: Sequence[Begun], step: int = 0) -> list[ScoredRollout]:
        """The scores of what `submit` began, as `score` gives them, in the order given; model rewards run here."""
        with self._pulse.during("reward"):
            return self._result(begun, step)

    def _result(self, begun: Sequence[Begun], step: int) -> list[ScoredRollout]:
        start = time.perf_counter()
        rollouts = [rollout for part in begun for rollout in part.rollouts]
        try:
            parts = [scores for part in begun for scores in part.scores(self._pulse.beat)]
        except BaseException:
            for part in begun:
                part.cancel()
            raise
        for name, places in self._batches(rollouts, step).items():
            values = self._model_rewards[name]([rollouts[place] for place in places])
            for place, value in zip(places, values, strict=True):
                self._pulse.beat(name)
                parts[place][name] = value if isinstance(value, Score) else Score(float(value), "ok")
        self._waited_s += time.perf_counter() - start
        self._count(rollouts, parts)
        return [self._combine(rollout, scores, step) for rollout, scores in zip(rollouts, parts, strict=True)]

    def gold_scores(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, str, Score]]:
        """(prompt, reward, score) of every gold answer, in both structures, by each reward that judges answers."""
        asked: dict[Check, Future[Score]] = {}
        found: list[tuple[Prompt, str, Score | Check]] = []
        for prompt in prompts:
            names = [name for name in self._table(prompt) if name in JUDGES]
            for text in gold_responses(prompt):
                # what the template opens is there already
                rollout = written(prompt, text.removeprefix(prompt.metadata.get("response_prefix", "")))
                for name in names:
                    score = self._rules[name](prompt, rollout)
                    if isinstance(score, Check) and score not in asked:
                        asked[score] = self._pool.submit(score)
                    found.append((prompt, name, score))
        return [(p, name, asked[score].result() if isinstance(score, Check) else score) for p, name, score in found]

    def check_gold(self, prompts: Sequence[Prompt], *, max_bad_share: float = 0.0) -> int:
        """Score every gold answer in both structures; call it before step 1. The number of those that do not score 1.

        Raises ValueError naming the first of them where their share is above `max_bad_share`: a verifier that cannot
        read the data, or data without answers, would otherwise train on zeros.
        """
        scores = self.gold_scores(prompts)
        failures = [(prompt, name, score) for prompt, name, score in scores if score.value < 1.0]
        num_golds = len({id(prompt) for prompt, *_ in scores})
        num_bad = len({id(prompt) for prompt, *_ in failures})
        if num_bad > max_bad_share * num_golds:
            shown = "; ".join(f"{p.id} ({n}: {s.outcome}, answer {p.answer[:80]!r})" for p, n, s in failures[:5])
            error = f" Last verifier error: {self._pool.last_error}." if self._pool.last_error else ""
            allowed = f" (allowed share {max_bad_share})" if max_bad_share else ""
            raise ValueError(
                f"{num_bad} of {num_golds} gold answers do not score 1{allowed}: {shown}.{error} "
                "Fix or drop these prompts: trained on, they would teach that right answers are wrong"
            )
        return num_bad

    def take_metrics(self) -> dict[str, float]:
        """Sums and counts since the last call: `NAME_sum`, `NAME_count`, `outcome/NAME/OUTCOME_count`."""
        metrics: dict[str, float] = {}
        for name, tally in self._tallies.items():
            if not tally.count:
                continue
            metrics[f"{name}_sum"] = tally.value
            metrics[f"{name}_count"] = tally.count
            for outcome, count in sorted(tally.outcomes.items()):
                metrics[f"outcome/{name}/{outcome}_count"] = count
            tally.value, tally.count = 0.0, 0
            tally.outcomes.clear()
        return metrics

    def take_times(self) -> dict[str, float]:
        """Seconds since the last call: `time/score_s` that callers waited, `time/verify_s` that verifiers worked.

        The latter are added up over the processes; what of them the former do not show was hidden behind generation.
        """
        times = {"time/score_s": self._waited_s, "time/verify_s": self._pool.busy_s - self._verified_s}
        self._waited_s, self._verified_s = 0.0, self._pool.busy_s
        return times

    def close(self) -> None:
        """End the verifier processes."""
        self._pool.close()

    def _table(self, prompt: Prompt) -> Mapping[str, Schedule]:
        table = self._weights.get(prompt.kind)
        if table is None:
            raise ValueError(
                f"prompt {prompt.id!r} is of kind {prompt.kind!r}, which has no rewards; add [rewards.{prompt.kind}] "
                f"to the recipe (it has {', '.join(sorted(self._weights)) or 'none'})"
            )
        return table

    def _batches(self, rollouts: Sequence[Rollout], step: int) -> dict[str, list[int]]:
        """The places of the rollouts that each model reward is asked for."""
        batches: dict[str, list[int]] = {}
        for place, rollout in enumerate(rollouts):
            for name, weight in self._table(rollout.prompt).items():
                if name in self._model_rewards and at(weight, step) != 0.0:
                    batches.setdefault(name, []).append(place)
        return batches

    def _combine(self, rollout: Rollout, scores: Mapping[str, Score], step: int) -> ScoredRollout:
        table = self._table(rollout.prompt)
        outcomes = [score.outcome for score in scores.values()]
        return ScoredRollout(
            rollout=rollout,
            reward=self._sum({name: at(table[name], step) * score.value for name, score in scores.items()}, scores),
            parts={name: score.value for name, score in scores.items()},
            outcome=next((o for o in outcomes if o in ERRORS), outcomes[0] if outcomes else "ok"),
        )

    def _sum(self, weighted: Mapping[str, float], scores: Mapping[str, Score]) -> float:
        closed = self._gate in scores and scores[self._gate].value < 1.0
        return sum(min(value, 0.0) if closed and name != self._gate else value for name, value in weighted.items())

    def _count(self, rollouts: Sequence[Rollout], parts: Sequence[Mapping[str, Score]]) -> None:
        for rollout, scores in zip(rollouts, parts, strict=True):
            for name, score in scores.items():
                self._tallies.setdefault(name, _Tally()).add(rollout, score)
        for name, tally in self._tallies.items():
            if tally.recent >= _MIN_SCORES_TO_ABORT and tally.recent_errors > self._max_error_share * tally.recent:
                raise RuntimeError(
                    f"reward {name!r}: {tally.recent_errors} of the last {tally.recent} scores failed in the verifier "
                    f"(allowed share {self._max_error_share}). Examples: {'; '.join(tally.examples)}. "
                    f"Last error: {self._last_error(name) or 'timeout'}"
                )

    def _last_error(self, name: str) -> str:
        return self._custom[name].last_error if name in self._custom else self._pool.last_error


@dataclass(frozen=True)
class Begun:
    """Rollouts whose rule rewards are known and whose checks (place, reward, score to come) are on their way."""

    rollouts: list[Rollout]
    parts: list[dict[str, Score]]
    checks: list[tuple[int, str, Future[Score]]]

    def scores(self, beat: Callable[[str], object] = len) -> list[dict[str, Score]]:
        """By rollout and name of the reward; waits for the checks, and calls `beat` after each."""
        for place, name, score in self.checks:
            self.parts[place][name] = score.result()
            beat(name)
        return self.parts

    def cancel(self) -> None:
        """Take back the checks that no verifier has begun."""
        for *_, score in self.checks:
            score.cancel()


_WINDOW = 1024


@dataclass
class _Tally:
    """Counts of one reward: since the last `take_metrics`, and over a fading window for the error limit."""

    value: float = 0.0
    count: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    recent: int = 0
    recent_errors: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, rollout: Rollout, score: Score) -> None:
        self.value += score.value
        self.count += 1
        self.outcomes[score.label] += 1
        if self.recent >= _WINDOW:
            self.recent, self.recent_errors = self.recent // 2, self.recent_errors // 2
        self.recent += 1
        if score.failed:
            self.recent_errors += 1
            if len(self.examples) < 3:
                self.examples.append(f"{rollout.prompt.id} {score.outcome} {rollout.text[-120:]!r}")


_EMPTY_IDS = torch.empty(0, dtype=torch.int64)
_EMPTY = torch.empty(0)


def written(prompt: Prompt, text: str) -> Rollout:
    """A rollout of given text without tokens: for scoring text that no policy sampled."""
    return Rollout(
        prompt=prompt,
        sample_index=0,
        token_ids=_EMPTY_IDS,
        logp=_EMPTY,
        log_kept_mass=_EMPTY,
        entropy=_EMPTY,
        text=text,
        finish_reason="stop",
        policy_version=0,
    )
