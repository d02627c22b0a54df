"""What guesses are worth: the same samples with and without `rollout.draft_tokens`, in turn, on real text.

    python -m bench.drafting --model models/smollm2 --json FILE

asks an instruction model for reasoning-gym's answers (a lone sample, as in chat; a group of 8; four groups of 8), at
two temperatures. Rows without guesses are padded to 16 on a CPU, so guesses that fill them cost next to nothing;
with 32 rows a step costs more. Reported: share of the guesses that came true, decode steps, CPU seconds (one thread),
each against the same round without guesses; medians. Samples must be bitwise the same, or it raises.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.device import describe
from r1fast.policy import Policy
from r1fast.records import Prompt, Rollout
from r1fast.rollout.batch import DecodeBatch
from r1fast.rollout.engine import RolloutEngine
from r1fast.sampling import Sampling

TASK = "chain_sum"
ASK = " Think step by step, then give the answer."
CALLS = {"a lone sample": (1, 1, 192), "a group of 8": (1, 8, 160), "4 groups of 8": (4, 8, 128)}
TEMPERATURES = (0.6, 1.0)
DRAFTS = ((0, 16), (3, 16), (6, 16), (3, 32))  # draft_tokens, draft_rows


@dataclass(frozen=True)
class Turn:
    """One call: what it gave, CPU seconds, steps and guesses."""

    samples: list[list[int]]
    cpu_s: float
    steps: int
    guessed: int
    accepted: int


class Bench:
    """A model, and the prompts that it is asked."""

    def __init__(self, model: Path) -> None:
        import reasoning_gym  # of the peers' extra

        self.policy = Policy.load(str(model), device="cpu", dtype=torch.bfloat16)
        tokenizer: Any = self.policy.tokenizer
        self.prompts = []
        for n, row in enumerate(reasoning_gym.create_dataset(TASK, size=4, seed=1)):
            chat = [{"role": "user", "content": row["question"] + ASK}]
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            self.prompts.append(Prompt(id=f"{TASK} {n}", text=text, token_ids=tuple(ids)))

    def run(self, call: tuple[int, int, int], temperature: float, draft: tuple[int, int]) -> Turn:
        """One of CALLS with one of DRAFTS."""
        num_prompts, group_size, max_tokens = call
        engine = RolloutEngine(self.policy, rows=32, seed=0, draft_tokens=draft[0], draft_rows=draft[1])
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens, stage="bench", visit=0)
        steps, backbone = [0], DecodeBatch.backbone

        def counted(*arguments: Any) -> torch.Tensor:
            steps[0] += 1
            return backbone(*arguments)

        with mock.patch.object(DecodeBatch, "backbone", counted):
            begin = time.process_time()
            rollouts: list[Rollout] = engine.generate(self.prompts[:num_prompts], group_size, sampling)
            cpu_s = time.process_time() - begin
        samples = [rollout.token_ids.tolist() for rollout in rollouts]
        return Turn(samples, cpu_s, steps[0], engine.tally.num_guessed, engine.tally.num_drawn)


def measure(bench: Bench, label: str, temperature: float, rounds: int) -> dict[str, Any]:
    """All DRAFTS of a call in turn, `rounds` times. Raises RuntimeError where samples differ."""
    turns: list[list[Turn]] = []
    for _ in range(rounds):
        turns.append([bench.run(CALLS[label], temperature, draft) for draft in DRAFTS])
        if any(turn.samples != turns[0][0].samples for turn in turns[-1]):
            raise RuntimeError(f"{label}, temperature {temperature}: guesses changed a sample")
    plain = turns[0][0]
    found = []
    for place, (tokens, rows) in enumerate(DRAFTS):
        turn = turns[0][place]
        found.append(
            {
                "draft_tokens": tokens,
                "draft_rows": rows,
                "guessed": turn.guessed,
                "accepted": turn.accepted,
                "steps": turn.steps,
                "cpu_s": round(statistics.median(row[place].cpu_s for row in turns), 3),
                "faster": round(statistics.median(row[0].cpu_s / row[place].cpu_s for row in turns), 3),
            }
        )
    return {"call": label, "temperature": temperature, "tokens": sum(map(len, plain.samples)), "variants": found}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="an instruction model's checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench, results = Bench(options.model), []
    bench.run((1, 1, 8), 1.0, (0, 16))
    for label in CALLS:
        for temperature in TEMPERATURES:
            result = measure(bench, label, temperature, options.rounds)
            results.append(result)
            print(f"{label}, temperature {temperature}: {result['tokens']} tokens", flush=True)
            for row in result["variants"]:
                print("  " + ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if options.json:
        whole = {"bench": "drafting", **describe("cpu"), "results": results}
        options.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
