"""Cold start: samples of R1-Zero, kept when correct and readable, rewritten readably and with a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from r1fast.context import RunContext, write_lines
from r1fast.records import Prompt, ScoredRollout
from r1fast.rewards.language import language_share
from r1fast.rewards.response import parse_response, response_text
from r1fast.rollout import RolloutEngine
from r1fast.sampling import Sampling
from r1fast.scorer import Scorer
from r1fast.source import Example
from r1fast.stages.sft import example_row

REPEATED_NGRAM = 8  # a chain that says the same eight words three times is a loop
MAX_REPEATS = 2


def run_cold_start(context: RunContext, stage: str) -> dict[str, float]:
    """Write `examples.jsonl`, and the count of every filter's victims into the result."""
    config = context.config.for_stage(stage)
    options = config.cold_start
    policy = context.load("r1_zero")
    engine = RolloutEngine(policy, rows=config.rl.rollout_rows, seed=config.run.seed)
    prompts = context.prompts(policy, context.source.prompts("train")[: options.prompts])
    context.console.stage_start(stage, 1, f"{len(prompts)} prompts x {options.samples_per_prompt}")
    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens, stage=stage, visit=0)
    scored = score_accuracy(engine, context.ranks.shard(prompts), options.samples_per_prompt, sampling)
    report: Counter[str] = Counter()
    kept: list[Example] = []
    per_prompt: Counter[str] = Counter()
    for item in scored:
        verdict, example = judge(context, item, options.min_language)
        if verdict == "kept" and per_prompt[item.rollout.prompt.id] >= options.max_per_prompt:
            verdict = "enough of this prompt"
        report[verdict] += 1
        if verdict == "kept" and example is not None:
            per_prompt[item.rollout.prompt.id] += 1
            kept.append(example)
    return write_examples(context, stage, kept, report, limit=options.max_kept)


def score_accuracy(
    engine: RolloutEngine, prompts: list[Prompt], samples: int, sampling: Sampling
) -> list[ScoredRollout]:
    """Sample and score by accuracy and format alone."""
    scorer = Scorer({prompt.kind: {"accuracy": 1.0, "format": 0.0} for prompt in prompts})
    try:
        return scorer.score(engine.generate(prompts, samples, sampling))
    finally:
        scorer.close()


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
    target, total = language_share(chain, prompt.language)
    if total == 0 or target < min_language * total:
        return "mixed language", None
    return "kept", Example(prompt=prompt, response=context.source.readable(chain, prompt))


def repeats(text: str) -> bool:
    """Whether any run of `REPEATED_NGRAM` words occurs more than `MAX_REPEATS` times."""
    words = text.split()
    grams = Counter(tuple(words[i : i + REPEATED_NGRAM]) for i in range(len(words) - REPEATED_NGRAM + 1))
    return any(count > MAX_REPEATS for count in grams.values())


def write_examples(
    context: RunContext, stage: str, kept: Sequence[Example], report: Counter[str], *, limit: int | None = None
) -> dict[str, float]:
    """Gather every rank's examples, write `limit` of them at most on rank 0 and report the yield."""
    parts = context.ranks.gather_objects((list(kept), dict(report)))
    examples = [example for part, _ in parts for example in part][:limit]
    total: Counter[str] = Counter()
    for _, counts in parts:
        total.update(counts)
    if not examples:
        raise RuntimeError(
            f"{stage} kept none of {sum(total.values())} samples ({dict(total)}); its model is too weak or a filter "
            f"too strict: raise {stage}.prompts or rl.steps of the stage before, or loosen min_language"
        )
    if context.ranks.rank == 0:
        write_lines(context.directory(stage) / "examples.jsonl", [example_row(example) for example in examples])
    context.ranks.barrier()
    samples = sum(total.values())
    lines = ", ".join(f"{reason} {count:,} ({count / samples:.0%})" for reason, count in total.most_common())
    context.console.note(f"{stage}: {samples:,} samples: {lines}")
    return {
        "examples": len(examples),
        "samples": samples,
        **{f"yield/{reason}": count for reason, count in total.items()},
    }
