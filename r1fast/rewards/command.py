"""`r1fast rewards check DATA.jsonl [--samples S.jsonl]`: what the rewards make of data, without training.

Every gold answer is scored as an answer, in both structures and by its verifier itself; every sample against its gold
answer. A table counts the outcomes, the failures follow. Exit code 1 where too many fail, 2 for bad input.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from r1fast.data.prompts import read_prompts
from r1fast.records import Prompt
from r1fast.rewards import REWARDS
from r1fast.rewards.check_data import VERIFIER, Verdict, gold_verdicts, read_samples, sample_verdicts
from r1fast.rewards.score import ERRORS, Outcome
from r1fast.rewards.verifiers import VerifierPool
from r1fast.scorer import JUDGES, Scorer
from r1fast.templates import RESPONSE_PREFIX

FAILED, BAD_INPUT = 1, 2
GOLD_REWARDS = ("accuracy",)  # where no other that judges answers is asked for
SAMPLE_REWARDS = ("accuracy", "accuracy_any", "format")
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the file and print what was found."""
    options = _parser().parse_args(argv)
    try:
        prompts = list(read_prompts(str(options.data)))
        if options.response_prefix:
            prefix = {RESPONSE_PREFIX: options.response_prefix}
            prompts = [replace(prompt, metadata={**prompt.metadata, **prefix}) for prompt in prompts]
        passed = _check_golds(prompts, options)
        if options.samples is not None:
            passed = _check_samples(prompts, options) and passed
    except ValueError as error:
        print(f"r1fast rewards check: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0 if passed else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="r1fast rewards", description=__doc__)
    check = parser.add_subparsers(required=True).add_parser("check", help="score gold answers, and samples")
    check.add_argument(
        "data", type=Path, metavar="DATA.jsonl", help='lines of {"prompt", "answer"}, as --data of train'
    )
    check.add_argument(
        "--samples",
        type=Path,
        metavar="S.jsonl",
        help='lines of {"id", "response"}, as the samples.jsonl that a run writes for a stage',
    )
    names = ", ".join(REWARDS)
    check.add_argument("--rewards", help=f"names, with commas between them, of {names}; gym data: gym in any case")
    check.add_argument("--response-prefix", default="", metavar="TEXT", help="what the template opens, like <think>")
    check.add_argument("--max-bad", type=float, default=0.0, metavar="SHARE", help="of gold answers that may fail (0)")
    check.add_argument(
        "--max-errors",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of samples' scores that may fail in the verifier",
    )
    check.add_argument("--timeout-s", type=float, default=5.0, metavar="S", help="wall clock of a verifier (5)")
    check.add_argument("--workers", type=int, default=2, metavar="N", help="verifier processes (2)")
    check.add_argument("--show", type=int, default=20, metavar="N", help="failures that are printed (20)")
    return parser


def _check_golds(prompts: Sequence[Prompt], options: argparse.Namespace) -> bool:
    start = time.perf_counter()
    scorer = _scorer(prompts, GOLD_REWARDS, options, judging=True)
    pool = VerifierPool(num_workers=options.workers, timeout_s=options.timeout_s)
    try:
        verdicts = gold_verdicts(prompts, scorer, pool)
    finally:
        scorer.close()
        pool.close()
    failures = [verdict for verdict in verdicts if verdict.score.value < 1.0]
    num_bad = len({id(verdict.prompt) for verdict in failures})
    print(f"{len(prompts):,} gold answers of {options.data}, {time.perf_counter() - start:.1f} s")
    _table(verdicts)
    if any(verdict.reward == VERIFIER for verdict in failures):
        print(f"{VERIFIER}: it does not take the gold answer for itself, so that only the same text scores 1")
    _list("answer", failures, options.show)
    passed: bool = num_bad <= options.max_bad * len(prompts)
    print(
        f"{'ok' if passed else 'FAIL'}: {num_bad:,} of {len(prompts):,} do not score 1 (allowed {options.max_bad:.1%})"
    )
    return passed


def _check_samples(prompts: Sequence[Prompt], options: argparse.Namespace) -> bool:
    start = time.perf_counter()
    samples, num_others = read_samples(options.samples, prompts)
    scorer = _scorer(prompts, SAMPLE_REWARDS, options)
    try:
        verdicts = sample_verdicts(samples, scorer)
    finally:
        scorer.close()
    errors = [verdict for verdict in verdicts if verdict.score.outcome in ERRORS]
    others = f" ({num_others:,} of other prompts left out)" if num_others else ""
    print(f"\n{len(samples):,} samples of {options.samples}{others}, {time.perf_counter() - start:.1f} s")
    _table(verdicts)
    _list("response", errors, options.show)
    differing = [verdict for verdict in verdicts if verdict.differs]
    num_recorded = sum(verdict.recorded is not None for verdict in verdicts)
    if num_recorded:
        print(f"{num_recorded - len(differing):,} of {num_recorded:,} scores that the file has came out the same")
    _list("response", differing, options.show)
    passed: bool = len(errors) <= options.max_errors * len(verdicts)
    share = f"{len(errors):,} of {len(verdicts):,} scores"
    print(f"{'ok' if passed else 'FAIL'}: {share} failed in the verifier (allowed {options.max_errors:.1%})")
    return passed


def _scorer(
    prompts: Iterable[Prompt], default: Sequence[str], options: argparse.Namespace, *, judging: bool = False
) -> Scorer:
    """For the rewards that are asked for; `judging`: with the default beside such as judge no answer."""
    names = options.rewards.split(",") if options.rewards else default
    weights = {}
    for prompt in prompts:
        own = ("gym",) if "gym_entry" in prompt.metadata else ()
        further = default if judging and not {*names, *own}.intersection(JUDGES) else ()
        weights[prompt.kind] = dict.fromkeys((*names, *own, *further), 1.0)
    return Scorer(weights, num_workers=options.workers, timeout_s=options.timeout_s)


def _table(verdicts: Iterable[Verdict]) -> None:
    counts: dict[str, Counter[Outcome]] = {}
    values: dict[str, float] = {}
    for verdict in verdicts:
        counts.setdefault(verdict.reward, Counter())[verdict.score.outcome] += 1
        values[verdict.reward] = values.get(verdict.reward, 0.0) + verdict.score.value
    print(f"{'reward':<20}{'scores':>10}{'mean':>8}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for name, row in counts.items():
        cells = "".join(f"{row[outcome] or '-':>10}" for outcome in OUTCOMES)
        print(f"{name:<20}{row.total():>10,}{values[name] / row.total():>8.3f}{cells}")


def _list(what: str, verdicts: Sequence[Verdict], most: int) -> None:
    for verdict in verdicts[:most]:
        text = verdict.text if len(verdict.text) <= 160 else "... " + verdict.text[-156:]
        was = f" {verdict.score.value:g}, was {verdict.recorded:g}" if verdict.differs else ""
        print(f"  {verdict.prompt.id}  {verdict.reward}: {verdict.score.outcome}{was}  {what} {text!r}")
    if len(verdicts) > most:
        print(f"  and {len(verdicts) - most:,} more (--show N)")
