"""One GRPO training step: score by the reference, loss, backward, update; no generation. Beside TRL's GRPOTrainer, and
the trainer's engines beside each other.

    python -m bench.bench_step --model models/smollm2 --threads 2 [--trl-python VENV/bin/python] [--json FILE]

On a CPU SmolLM2-135M in bf16 (without --model: random weights of its shape): 32 sequences of 128 to 512 tokens, four
prompts with eight samples each. Every variant is a process of its own; they take turns on the same tokens, weights and
loss, after a shorter step whose loss and gradient are compared with float32's, one sequence at a time. Time is wall
time of a whole step, memory the peak of the resident set in it above what was there when all imports were done, so
weights, masters and moments count. `--alone` keeps one process at a time, where memory is short; each step then has a
start and a first step before it that do not count.

What counts in both: the reference's log-probs, the policy's with entropy, clip and KL, gradient, clipping, AdamW, the
metrics; old log-probs are the policy's own, as in the first update after a rollout. Ours: packing too. TRL runs in its
own `train()`; what it would generate is given to it: its data loader, rewards and generation take no time. It has no
padding-free GRPO; its bf16 is autocast over float32 weights, which are its masters. Liger's layers need a GPU.

On a GPU: the step by itself and its phases at Qwen2.5's shapes (random weights), a pack of 8,192 tokens; MFU counts the
products of loss and gradient once, not what checkpointing repeats, over the GPU's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.bench_rollout import environment
from bench.command import parser, run
from bench.harness import Case, Figure, Kind, Measured, Outputs, Variant, Work
from bench.rollout_models import write_model
from bench.rollout_work import SMOLLM2, TINY, Shape
from bench.step_gpu import gpu_cases
from bench.step_work import Ask
from bench.worker import Worker

STEP = Ask("32 sequences of 128-512", 4, 8, 128, 512)
ENGINE_STEP = Ask("8 sequences of 128-512", 2, 4, 128, 512)
CHECK = Ask("32 sequences of 32-64", 4, 8, 32, 64, one_sign=True)
TINY_STEP = Ask("8 sequences of 16-40", 2, 4, 16, 40)
MODEL_TOKENS = 2048
MICRO_BATCH_TOKENS = 768
OWN, TRL = "ours", "TRL"
TIME, MEMORY, ENGINE = 0.7, 0.6, 1.1
TOLERANCE = {"loss_error": 0.05, "gradient_error": 0.2}  # relative; bf16 through 30 layers, against float32
LEAST_ROUNDS = 1  # of steps that take minutes
PEERS = {
    # name: rows of a micro-batch, activations recomputed
    f"{TRL}, 4 rows": (4, False),
    f"{TRL}, 8 rows, checkpointing": (8, True),  # its defaults
}


@dataclasses.dataclass(frozen=True)
class Given:
    """`model`: a checkpoint; `trl_python`: the interpreter of an environment with TRL; `alone`: a process at a time."""

    model: Path | None = None
    trl_python: str = ""
    alone: bool = False
    peers: tuple[str, ...] = ("",)
    """Words: configurations of TRL with one of them in their name."""
    dtype: str = "bfloat16"
    """Of our weights; masters are float32."""


class Contestant:
    """One variant's process; started when it is first made ready, and checked by its first step."""

    def __init__(self, command: list[str], environment: dict[str, str], all_: list[Contestant], alone: bool) -> None:
        self.command, self.environment, self.all, self.alone = command, environment, all_, alone
        self.worker: Worker | None = None
        self.checked = False
        self.answers: list[dict[str, Any]] = []
        all_.append(self)

    def arm(self) -> Callable[[], Outputs]:
        for other in self.all if self.alone else ():
            if other is not self:
                other.close()
        if self.worker is None:
            self.worker = Worker(self.command, self.environment)
            self.worker.wait()
            if self.checked:
                self.worker.ask({"check": False})
        for other in self.all:
            if other.worker is not None:
                other.worker.settle()
        return partial(self._ask, self.worker)

    def _ask(self, worker: Worker) -> Outputs:
        answer = worker.ask({"check": not self.checked})
        if not self.checked:
            self.checked = True
            return {name: torch.tensor([answer[name]]) for name in TOLERANCE}
        self.answers.append(answer)
        return {}

    def peak_bytes(self) -> int | None:
        peaks = [answer["peak_bytes"] for answer in self.answers if answer["peak_bytes"]]
        return max(peaks) if peaks else None

    def about(self) -> dict[str, Any]:
        """Medians over the timed steps: CPU seconds of the process, and seconds of each phase."""
        if not self.answers:
            return {}
        phases = {
            name: statistics.median(a["phases"][name] for a in self.answers) for name in self.answers[0]["phases"]
        }
        cpu_s = statistics.median(answer["cpu_s"] for answer in self.answers)
        return {"cpu_s": cpu_s, "phases_s": phases, "micro_batches": self.answers[0]["micro_batches"]}

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def build(ask: Ask, check: Ask, shape: Shape, given: Given, variants: dict[str, dict[str, Any]]) -> Work:
    """`variants`: by name, what their processes are told; those of TRL need its interpreter."""
    folder = tempfile.TemporaryDirectory()
    model = given.model
    if model is None:
        model = Path(folder.name) / "model"
        write_model(shape, model, max_position_embeddings=MODEL_TOKENS)
        write_weights(model)
    threads = torch.get_num_threads()  # the harness has set it
    options: dict[str, Any] = {"model": str(model), "threads": threads, "expected": f"{folder.name}/expected"}
    options |= {"own_dtype": given.dtype, "ask": dataclasses.asdict(ask), "check": dataclasses.asdict(check)}
    contestants: list[Contestant] = []

    def command(python: str, own: dict[str, Any]) -> list[str]:
        return [python, "-m", "bench.step_worker", json.dumps(options | own)]

    def variant(name: str, own: dict[str, Any]) -> Variant:
        peer = own["variant"] == "trl"
        kind: Kind = "peer" if peer else "own"
        if peer and not given.trl_python:
            return Variant(name, kind, None, missing="left out: no --trl-python")
        python = given.trl_python if peer else sys.executable
        found = Contestant(command(python, own), environment(threads, "cpu"), contestants, given.alone)
        note = ", ".join(f"{key} {value}" for key, value in own.items() if key != "variant")
        return Variant(name, kind, found.arm, note, peak=found.peak_bytes, about=found.about)

    found = [variant(name, own) for name, own in variants.items()]

    def reference() -> Outputs:
        exact = Worker(command(sys.executable, {"variant": "exact"}), environment(threads, "cpu"))
        try:
            exact.wait()
        finally:
            exact.close()
        return dict.fromkeys(TOLERANCE, torch.zeros(1))

    def close() -> None:
        for contestant in contestants:
            contestant.close()
        folder.cleanup()

    return Work(found, reference, TOLERANCE, close=close)


def write_weights(model: Path) -> None:
    """Random ones, beside config.json."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model), dtype=torch.bfloat16).save_pretrained(model)


def figures(measured: Measured) -> list[Figure]:
    """Over TRL at its fastest, time and memory of the same configuration."""
    times = {name: row["median_s"] for name, row in measured.rows.items() if name.startswith(TRL) and "median_s" in row}
    fastest = min(times, key=times.__getitem__, default=TRL)
    peaks = {name: peak for name in times if (peak := measured.value(name, "peak_bytes"))}
    leanest = min(peaks, key=peaks.__getitem__, default=TRL)
    return [
        Figure(f"time over {fastest}", measured.ratio(OWN, fastest), TIME),
        Figure(f"peak memory over {fastest}", measured.over(OWN, fastest, "peak_bytes"), MEMORY),
        Figure(f"peak memory over the leanest, {leanest}", measured.over(OWN, leanest, "peak_bytes"), MEMORY),
    ]


def against_trl(micro_batch_tokens: int, peers: dict[str, tuple[int, bool]]) -> dict[str, dict[str, Any]]:
    own = {"variant": "ours", "micro_batch_tokens": micro_batch_tokens, "share_prompts": True}
    found: dict[str, dict[str, Any]] = {OWN: own}
    for name, (rows, checkpointing) in peers.items():
        found[name] = {
            "variant": "trl",
            "batch_size": rows,
            "gradient_checkpointing": checkpointing,
            "dtype": "float32",
        }
    return found


def engines(micro_batch_tokens: int, processes: int) -> dict[str, dict[str, Any]]:
    own = {"variant": "ours", "micro_batch_tokens": micro_batch_tokens, "share_prompts": True, "processes": processes}
    return {"torch": {**own, "engine": "torch"}, "deepspeed, ZeRO 1": {**own, "engine": "deepspeed"}}


def engine_figures(measured: Measured) -> list[Figure]:
    return [Figure("time of DeepSpeed over torch", measured.ratio("deepspeed, ZeRO 1", "torch"), ENGINE)]


def cases(device: str, size: str = "full", given: Given | None = None) -> Iterator[Case]:
    given = given or Given()
    if device == "cuda":
        yield from gpu_cases(size)
        return
    tiny = size == "tiny"
    shape = TINY if tiny else SMOLLM2 if given.model is None else Shape.read(given.model)
    name = "tiny" if tiny else "SmolLM2-135M's shape" if given.model is None else given.model.resolve().name
    given = dataclasses.replace(given, model=None) if tiny else given
    words = given.peers
    step, few, check, tokens = STEP, ENGINE_STEP, CHECK, MICRO_BATCH_TOKENS
    peers = {name: how for name, how in PEERS.items() if any(word in name for word in words)}
    if tiny:
        step, few, check, tokens, peers = TINY_STEP, TINY_STEP, TINY_STEP, 64, {f"{TRL}, 2 rows": (2, False)}
    asked: list[tuple[Ask, str, dict[str, Any], Callable[[Measured], list[Figure]]]] = [
        (step, "TRL", against_trl(tokens, peers), (lambda measured: []) if tiny else figures),
        (few, "1 process", engines(tokens, 1), engine_figures),
        (few, "2 processes", engines(tokens, 2), engine_figures),
    ]
    for ask, about, variants, judged in asked:
        check = dataclasses.replace(check, num_prompts=ask.num_prompts, group_size=ask.group_size)
        yield Case(
            f"{name}, {ask.label}: {about}",
            {"P": ask.num_prompts, "G": ask.group_size, "least": ask.least, "most": ask.most},
            given.dtype,
            ask.flops(shape),
            ask.num_bytes(shape),
            partial(build, ask, check, shape, given, variants),
            judged,
            tokens=ask.tokens(),
            least_rounds=LEAST_ROUNDS,
        )


def arguments() -> argparse.Namespace:
    found = parser(__doc__)
    found.add_argument("--model", default="", metavar="DIR", help="a checkpoint, for a CPU (the README: how to get it)")
    found.add_argument("--trl-python", default="", metavar="FILE", help="the interpreter of an environment with TRL")
    found.add_argument(
        "--peers", nargs="+", default=[""], metavar="WORD", help="TRL's configurations with one of these"
    )
    found.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of our weights")
    found.add_argument("--alone", action="store_true", help="one process at a time, where memory is short")
    found.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases with one of these in their label")
    return found.parse_args()


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes are ended
    given = Given(
        Path(options.model) if options.model else None,
        options.trl_python,
        options.alone,
        tuple(options.peers),
        options.dtype,
    )

    def chosen(device: str, size: str) -> Iterator[Case]:
        return (found for found in cases(device, size, given) if any(word in found.label for word in options.only))

    run("bench.bench_step", chosen, options)


if __name__ == "__main__":
    main()
