"""Cold start: samples of R1-Zero, kept when correct and readable, rewritten readably and with a summary."""

from __future__ import annotations

from collections import Counter

from r1fast.context import RunContext
from r1fast.records import ScoredRollout
from r1fast.rewards.response import parse_response, response_text
from r1fast.rollout.backend import make_engine
from r1fast.sampling import Sampling
from r1fast.source import Example
from r1fast.stages.chain_filters import lacks_language, repeats
from r1fast.stages.harvest import Harvest, YieldTable, source_of, write_examples
from r1fast.stages.rewrite import make_rewriting


def run_cold_start(context: RunContext, stage: str) -> dict[str, float]:
    """Write `examples.jsonl`, and the count of every filter's victims into the result."""
    config = context.config.for_stage(stage)
    options = config.cold_start
    with context.interruptible(stage):
        policy = context.load("r1_zero", user=stage)
        engine = make_engine(policy, config, context.ranks)
        prompts = context.prompts(policy, context.source.prompts("train")[: options.prompts])
        rewriting = make_rewriting(context, config)
    min_language = options.min_language if rewriting is None else 0.0  # else of what the rewriting makes of it

    def verdict_and_text(item: ScoredRollout) -> tuple[str, str]:
        verdict, example = judge(context, item, min_language)
        return verdict, "" if example is None else example.response

    harvest = Harvest(
        context=context,
        stage=stage,
        engine=engine,
        sampling=Sampling(temperature=options.temperature, max_tokens=options.max_tokens, stage=stage, visit=0),
        samples_per_prompt=options.samples_per_prompt,
        judge=verdict_and_text,
        review=rewriting,
    )
    report: YieldTable = {}
    kept: list[Example] = []
    per_prompt: Counter[str] = Counter()
    for prompt, verdict, text in harvest.run(prompts):
        if verdict == "kept" and per_prompt[prompt.text] >= options.max_per_prompt:
            verdict = "enough of this prompt"
        report.setdefault(source_of(prompt), Counter())[verdict] += 1
        if verdict == "kept":
            per_prompt[prompt.text] += 1
            kept.append(Example(prompt=prompt, response=text))
    return {**write_examples(context, stage, kept[: options.max_kept], report), **harvest.costs}


def judge(context: RunContext, item: ScoredRollout, min_language: float) -> tuple[str, Example | None]:
    """Which filter a sample of R1-Zero fails, or the readable example made of it."""
    rollout = item.rollout
    prompt = rollout.prompt
    if item.parts["accuracy"] < 1.0:
        return "wrong", None
    response = parse_response(response_text(prompt, rollout))
    if item.parts["format"] < 1.0 or response.chain is None:
        return "not formatted", None
    if repeats(response.chain):
        return "repetition", None
    chain = context.source.rewrite(" ".join(response.chain.split()), prompt.language)
    if lacks_language(chain, prompt.language, min_language):
        return "mixed language", None
    return "kept", Example(prompt=prompt, response=context.source.readable(chain, prompt))
