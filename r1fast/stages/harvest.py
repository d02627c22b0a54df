"""What cold start and rejection sampling share: many samples of a finished model, judged one by one, part by part."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from r1fast.context import RunContext, write_json, write_lines
from r1fast.data.prompts import each_once, varieties
from r1fast.distributed import merge
from r1fast.progress import Progress
from r1fast.records import Prompt, ScoredRollout
from r1fast.rollout.backend import Engine, release
from r1fast.sampling import Sampling
from r1fast.scorer import Scorer
from r1fast.source import Example
from r1fast.stages.sft import example_row

# Of a rank's decode batches: a kill costs at most this much, and at the end of a part rows of the batch run empty.
BATCHES_PER_PART = 8

Judged = tuple[Prompt, str, str]  # of a sample: its prompt, a filter's verdict (`kept` for one that passes), its text

# Of the questions of a part that a server leaves without a reply: above it the stage stops and the part is not saved.
MAX_FAILED_SHARE = 0.1

YieldTable = dict[str, Counter[str]]  # source of prompts -> verdict -> samples


class Review(Protocol):
    """What a rank's share of a part is shown to after `judge`, all at once: it asks a model, or a server."""

    @property
    def last_error(self) -> str:
        """Why a server did not reply; empty while it did."""
        ...

    def __call__(
        self, scored: Sequence[ScoredRollout], verdicts: Sequence[tuple[str, str]], scorer: Scorer
    ) -> list[tuple[str, str]]:
        """Samples, their verdicts and texts, a scorer of accuracy and format -> verdicts and texts in that order."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """What a server was asked since the last call, as `Endpoint.take_metrics`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Harvest:
    """`samples_per_prompt` samples of every prompt, scored by accuracy and format and judged.

    `judge`: verdict and text of a sample; the text of one that is not kept may be empty. `costs`: what the review's
    server was asked by all ranks, also before an interruption.
    """

    context: RunContext
    stage: str
    engine: Engine
    sampling: Sampling
    samples_per_prompt: int
    judge: Callable[[ScoredRollout], tuple[str, str]]
    review: Review | None = None
    costs: dict[str, float] = field(default_factory=dict)

    def run(self, prompts: Sequence[Prompt]) -> list[Judged]:
        """All samples in the order of the prompts, the same on every rank and for any number of ranks.

        A prompt that comes again is not sampled again: it would get the same samples.
        Parts that were finished before an interruption are not sampled again. Releases the engine. Raises RuntimeError
        where the review's server leaves more than `MAX_FAILED_SHARE` of a part's questions without a reply.
        """
        context, stage = self.context, self.stage
        samples_of_part = BATCHES_PER_PART * self.engine.rows * context.ranks.world_size
        size = max(1, samples_of_part // self.samples_per_prompt)
        starts = range(0, len(prompts), size)
        context.console.stage_start(stage, len(starts), f"{len(prompts)} prompts x {self.samples_per_prompt}")
        progress = Progress(context, stage)
        kinds = {prompt.kind for prompt in varieties(context.source.prompts("train"))}
        scorer = Scorer({kind: {"accuracy": 1.0, "format": 0.0} for kind in kinds}, pulse=context.ranks.pulse)
        found: list[Judged] = []
        ids: set[str] = set()
        try:
            for number, start in enumerate(starts, start=1):
                began = time.perf_counter()
                part = each_once(prompt for prompt in prompts[start : start + size] if prompt.id not in ids)
                if not part:
                    continue
                ids.update(prompt.id for prompt in part)
                name = f"prompts-{start}-{start + len(part)}"
                finished: dict[str, Any] | None = progress.part(name)
                if finished is None:
                    with context.interruptible(stage):
                        verdicts, costs = self._judge(part, scorer)
                    finished = {"verdicts": verdicts, "costs": costs}
                    progress.save_part(name, finished)
                verdicts, costs = finished["verdicts"], finished["costs"]
                self.costs.update(merge([self.costs, costs]))
                found += [(part[place], verdict, text) for place, verdict, text in verdicts]
                kept = sum(verdict == "kept" for _, verdict, _ in verdicts) / len(verdicts)
                values = {"samples": len(verdicts), "kept": kept, "time/part_s": time.perf_counter() - began}
                context.log(stage, number, {**values, **costs})
        finally:
            scorer.close()
            release(self.engine)
        return found

    def _judge(self, prompts: Sequence[Prompt], scorer: Scorer) -> tuple[list[tuple[int, str, str]], dict[str, float]]:
        """(place of the prompt, verdict, text) of every sample, and what they cost: of all ranks and known to each."""
        places = self.context.ranks.shard(range(len(prompts)))
        own = [prompts[place] for place in places]
        with self.context.ranks.pulse.during("rollout"):
            scored = list(scorer.score_groups(own, self.engine.groups(own, self.samples_per_prompt, self.sampling)))
        verdicts = [self.judge(item) for item in scored]
        if self.review is not None:
            verdicts = self.review(scored, verdicts, scorer)
        judged = [(places[number // self.samples_per_prompt], *found) for number, found in enumerate(verdicts)]
        parts = self.context.ranks.gather_objects(judged)
        # a stable sort: the samples of a prompt, all of one rank, keep their order
        rows = sorted((row for part in parts for row in part), key=lambda row: row[0])
        if self.review is None:
            return rows, {}
        costs = self.context.ranks.reduce(self.review.take_metrics())
        self._check_replies(costs, self.context.ranks.gather_objects(self.review.last_error))
        return rows, costs

    def _check_replies(self, costs: Mapping[str, float], errors: Sequence[str]) -> None:
        asked, failed = costs.get("judge/questions_count", 0), costs.get("judge/failed_count", 0)
        if failed > max(1, MAX_FAILED_SHARE * asked):
            raise RuntimeError(
                f"{self.stage}: {failed:.0f} of {asked:.0f} questions to judge.endpoint had no reply (allowed share "
                f"{MAX_FAILED_SHARE}); the last error: {next(filter(None, errors))}. See to the server, or raise "
                "judge.timeout_s, judge.total_timeout_s or judge.concurrency, and start again: what was finished "
                "before is kept, these samples are not"
            )
        if costs.get("judge/cut_off_count", 0):
            limit = self.context.config.for_stage(self.stage).judge.max_tokens
            self.context.console.warn(
                f"{self.stage}: {costs['judge/cut_off_count']:.0f} of {asked:.0f} replies were cut off at "
                f"judge.max_tokens = {limit}, and count without what they lack: raise it"
            )


def source_of(prompt: Prompt) -> str:
    """What a yield table counts a prompt under: its `metadata` source, reasoning-gym task or kind, and its language."""
    source = prompt.metadata.get("source") or prompt.metadata.get("gym_dataset") or prompt.kind
    return f"{source} {prompt.language}"


def write_examples(
    context: RunContext, stage: str, examples: Sequence[Example], report: YieldTable
) -> dict[str, float]:
    """Write the examples, which all ranks have, on rank 0, and the yield as yield.json; say both."""
    whole = sum(report.values(), Counter())
    samples = sum(whole.values())
    if not examples:
        raise RuntimeError(
            f"{stage} kept none of {samples} samples ({dict(whole)}); its model is too weak or a filter "
            f"too strict: raise {stage}.prompts or rl.steps of the stage before, or loosen min_language"
        )
    if context.ranks.rank == 0:
        write_lines(context.directory(stage) / "examples.jsonl", [example_row(example) for example in examples])
        write_json(context.directory(stage) / "yield.json", report)
    context.ranks.barrier()
    for source, counts in {"": whole, **(report if len(report) > 1 else {})}.items():
        context.console.note(f"{stage}{source and ', ' + source}: {_yield_line(counts)}")
    return {
        "examples": len(examples),
        "samples": samples,
        **{f"yield/{reason}": count for reason, count in whole.items()},
    }


def _yield_line(counts: Counter[str]) -> str:
    samples = sum(counts.values())
    lines = ", ".join(f"{reason} {count:,} ({count / samples:.0%})" for reason, count in counts.most_common())
    return f"{samples:,} samples: {lines}"
