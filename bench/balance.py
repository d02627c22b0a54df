"""How evenly training is shared out: `python -m bench.balance [--json FILE]`.

Rollouts like those of R1-Zero (512 prompts x 16 samples, 16 mini-batches, limit 32,768 tokens, micro-batches of 32,768
tokens): prompts of some hundred tokens, lengths of completions log-normal between and within prompts, cut at the limit.
`early` has a mean of some 1,400 tokens, `late` of some 10,000 (the paper's figure of R1-Zero's lengths ends there).
Nothing is trained; the same planner as in a run (`r1fast.balance`) says who would train on what. For each number of
data-parallel ranks, over the mini-batches:

    utilisation     tokens / what all micro-batches could hold: mean; and the most that any packing could reach, since
                    every rank has a whole number of micro-batches
    waited for      tokens / what ranks wait for that meet after every micro-batch (ZeRO 3): mean
    imbalance       busiest rank over the mean, minus 1, in tokens: mean and worst; in FLOPs of a model of 7B, the
                    square of attention included: mean and worst
    as sampled      imbalance in tokens if every rank trained on what it has sampled: mean
    plan_ms         the planner's time for a mini-batch

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from statistics import fmean

from r1fast.balance import Size, balance_figures, packed_tokens, spread_sequences

PROMPTS, SAMPLES, MINI_BATCHES, LIMIT, BUDGET = 512, 16, 16, 32_768, 32_768
RANKS = (1, 2, 4, 8, 16, 64)
CASES = {"early": (1000, 0.5, 0.6), "late": (8000, 0.5, 0.6)}  # median, sigma between prompts, sigma within
PARAMETERS, LAYERS, WIDTH = 7.1e9, 28, 3584  # of Qwen2.5-7B, its head counted, its embedding not
MOST_IMBALANCE, LEAST_UTILISATION = 0.03, 0.97


def rollout(case: str, rng: random.Random) -> list[Size]:
    """Sizes of a rollout's samples, by prompt."""
    median, between, within = CASES[case]
    sizes = []
    for prompt in range(PROMPTS):
        num_prompt, level = round(120 * math.exp(0.5 * rng.gauss(0, 1))), between * rng.gauss(0, 1)
        for _ in range(SAMPLES):
            length = round(median * math.exp(level + within * rng.gauss(0, 1)))
            sizes.append(Size(prompt, num_prompt, max(1, min(LIMIT - num_prompt, length))))
    return sizes


def flops(num_tokens: int) -> float:
    """Of a sequence, forward and backward: 6 per parameter and token, 6 per layer, width and pair of tokens."""
    return 6.0 * PARAMETERS * num_tokens + 6.0 * LAYERS * WIDTH * num_tokens**2


def measure(case: str, num_ranks: int) -> dict[str, float | int | str]:
    """One line of the table."""
    rng = random.Random(f"balance {case}")
    everything = list(enumerate(rollout(case, rng)))
    rng.shuffle(everything)
    share = len(everything) // MINI_BATCHES
    rows = []
    for start in range(0, len(everything), share):
        part = everything[start : start + share]
        sizes = [size for _, size in part]
        began = time.process_time()
        plan = spread_sequences(sizes, num_ranks=num_ranks, micro_batch_tokens=BUDGET)
        plan_ms = 1e3 * (time.process_time() - began)
        tokens = packed_tokens(plan, sizes)
        total, rounds = sum(map(sum, tokens)), max(map(len, tokens))
        longest = sum(max(counts[n] for counts in tokens if n < len(counts)) for n in range(rounds))
        work = [sum(flops(_tokens(sizes[n])) for bin_ in bins for n in bin_) for bins in plan]
        sampled = [0] * num_ranks
        for place, size in part:
            sampled[place // SAMPLES % num_ranks] += _tokens(size)
        figures = balance_figures(tokens, BUDGET)
        rows.append(
            {
                **figures,
                "rounds": rounds,
                "bound": total / (math.ceil(total / (num_ranks * BUDGET)) * num_ranks * BUDGET),
                "waited_for": total / (num_ranks * longest),
                "flops_imbalance": max(work) * num_ranks / sum(work) - 1,
                "sampled_imbalance": max(sampled) * num_ranks / total - 1,
                "tokens": total / len(sizes),
                "plan_ms": plan_ms,
            }
        )
    mean = {name: fmean(row[name] for row in rows) for name in rows[0]}
    worst = {name: max(row[name] for row in rows) for name in ("imbalance", "flops_imbalance")}
    return {
        "lengths": case,
        "ranks": num_ranks,
        **{name: round(value, 4) for name, value in mean.items()},
        **{f"worst_{name}": round(value, 4) for name, value in worst.items()},
    }


def _tokens(size: Size) -> int:
    return size.num_prompt + size.num_completion


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the JSON line here")
    options = parser.parse_args()
    rows = [measure(case, num_ranks) for case in CASES for num_ranks in RANKS]
    names = [name for name in rows[0] if name != "lengths"]
    print("lengths " + " ".join(f"{name[:14]:>14}" for name in names))
    for row in rows:
        print(f"{row['lengths']:7} " + " ".join(f"{row[name]:>14}" for name in names))
    line = json.dumps(
        {
            "bench": "balance",
            "sequences": PROMPTS * SAMPLES,
            "mini_batches": MINI_BATCHES,
            "micro_batch_tokens": BUDGET,
            "must_be": {"utilisation": LEAST_UTILISATION, "imbalance": MOST_IMBALANCE},
            "rows": rows,
        }
    )
    print(line)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
