"""Rejection sampling from RL 1's model: R1's filters, a yield report, and non-reasoning data beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from r1fast.config import RejectionConfig
from r1fast.context import RunContext
from r1fast.policy import Policy
from r1fast.records import ScoredRollout
from r1fast.rewards.judge import Judge
from r1fast.rewards.response import parse_response, response_text
from r1fast.rollout.backend import make_engine
from r1fast.sampling import Sampling
from r1fast.scorer import Scorer
from r1fast.source import Example
from r1fast.stages.chain_filters import ChainLimits, chain_faults
from r1fast.stages.harvest import Harvest, YieldTable, source_of, write_examples


def run_rejection(context: RunContext, stage: str) -> dict[str, float]:
    """Write `examples.jsonl`: what SFT 2 and distillation learn from."""
    config = context.config.for_stage(stage)
    options = config.rejection
    with context.interruptible(stage):
        policy = context.load("rl_1", user=stage)
        engine = make_engine(policy, config, context.ranks)
        prompts = context.prompts(policy, context.source.prompts("train")[-options.prompts :])

    def verdict_and_text(item: ScoredRollout) -> tuple[str, str]:
        verdict = reject(item, options, policy)
        return verdict, response_text(item.rollout.prompt, item.rollout).strip() if verdict == "kept" else ""

    harvest = Harvest(
        context=context,
        stage=stage,
        engine=engine,
        sampling=Sampling(temperature=options.temperature, max_tokens=options.max_tokens, stage=stage, visit=0),
        samples_per_prompt=options.samples_per_prompt,
        judge=verdict_and_text,
        review=Grading(Judge(config.judge, context.ranks.pulse.beat), options.min_grade) if options.min_grade else None,
    )
    report: YieldTable = {}
    per_prompt: Counter[str] = Counter()  # by question: ids of several files may be the same
    seen: set[tuple[str, str]] = set()
    kept: list[Example] = []
    for prompt, verdict, text in harvest.run(prompts):
        words = " ".join(text.split())
        if verdict == "kept" and (prompt.text, words) in seen:
            verdict = "duplicate"
        if verdict == "kept" and per_prompt[prompt.text] >= options.max_per_prompt:
            verdict = "enough of this prompt"
        report.setdefault(source_of(prompt), Counter())[verdict] += 1
        if verdict == "kept":
            seen.add((prompt.text, words))
            per_prompt[prompt.text] += 1
            kept.append(Example(prompt=prompt, response=text))
    if options.general_share:
        count = round(len(kept) * options.general_share / (1 - options.general_share))
        kept += context.source.general_examples(count, config.run.seed)
    return {**write_examples(context, stage, kept, report), **harvest.costs}


@dataclass(frozen=True)
class Grading:
    """A review by the judge of [judge]: of what the filters kept only what it grades `min_grade` or better."""

    judge: Judge
    min_grade: float

    @property
    def last_error(self) -> str:
        """The judge's."""
        return self.judge.last_error

    def __call__(
        self, scored: Sequence[ScoredRollout], verdicts: Sequence[tuple[str, str]], scorer: Scorer
    ) -> list[tuple[str, str]]:
        """The verdicts after it; a sample whose reply holds no grade is not kept."""
        found = list(verdicts)
        kept = [number for number, (verdict, _) in enumerate(found) if verdict == "kept"]
        for number, score in zip(kept, self.judge.grade([scored[number].rollout for number in kept]), strict=True):
            if score.outcome != "ok":
                found[number] = "without a grade", ""
            elif score.value < self.min_grade:
                found[number] = "judged low", ""
        return found

    def take_metrics(self) -> dict[str, float]:
        """The judge's."""
        return self.judge.take_metrics()


def reject(item: ScoredRollout, options: RejectionConfig, policy: Policy) -> str:
    """The first of R1's filters that a sample fails, or `kept`."""
    if item.parts["accuracy"] < 1.0:
        return "wrong"
    rollout = item.rollout
    response = parse_response(response_text(rollout.prompt, rollout))
    if item.parts["format"] < 1.0 or response.chain is None:
        return "not formatted"
    limits = ChainLimits(
        min_language=options.min_language,
        max_paragraph_tokens=options.max_paragraph_tokens,
        max_chain_tokens=options.max_chain_tokens,
        drop_code_blocks=options.drop_code_blocks,
    )

    def count_tokens(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in policy.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    faults = chain_faults(response.chain, rollout.prompt.language, limits, count_tokens)
    return faults[0] if faults else "kept"
