"""Rollouts end to end: the engine beside `transformers.generate` (its best batch size counts), transformers' continuous
batching (on a GPU) and vLLM.

    python -m bench.bench_rollout --model models/smollm2 --threads 2 [--vllm-python VENV/bin/python] [--json FILE]

On a CPU SmolLM2-135M in bf16 (without --model: random weights of its shape), on a GPU random weights of Qwen2.5's
shapes. Every variant is a process of its own, started anew for every case and thread count, with a short warm-up; they
run in turn on the same prompts, which are others in every round. Time is wall time, tokens are those asked for, memory
is the peak of the resident set, weights and libraries included. FLOPs and bytes: every matrix product, and the weights
once a step with all samples in one batch, a prompt's keys and values once for its group.

vLLM needs an environment of its own, for what it brings with it; the README says how to make one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.command import parser, run
from bench.harness import Case, Figure, Kind, Measured, Outputs, Variant, Work, WrongResult
from bench.rollout_models import write_model
from bench.rollout_work import QWEN, SMOLLM2, TINY, Ask, Shape
from bench.worker import Worker

GROUPS = Ask("a: 4 prompts x 8 x 64", 4, 8, 40, 64, 64)
RAGGED = Ask("b: 16 prompts x 8 x 16-256", 16, 8, 40, 16, 256)
LONG = Ask("c: 2 prompts of 1024 x 16 x 64", 2, 16, 1024, 64, 64)
ON_GPU = Ask("ragged: 16 prompts x 16 x 32-512", 16, 16, 256, 32, 512)
TINY_ASKS = (Ask("uniform: 2 prompts x 2 x 8", 2, 2, 8, 8, 8), Ask("ragged: 3 prompts x 2 x 2-12", 3, 2, 8, 2, 12))
ROWS = {"cpu": 128, "cuda": 256}  # most sequences at a time, of ours and of vLLM
BATCHES = {"cpu": (8, 32, 128), "cuda": (128, 256)}  # of transformers.generate
OWN, TRANSFORMERS, CONTINUOUS, VLLM = "ours", "transformers, batch", "transformers, continuous batching", "vLLM"
OVER_TRANSFORMERS = {GROUPS: 1.5, RAGGED: 3.0, LONG: 3.0}
OVER_VLLM = {GROUPS: 1.0, RAGGED: 1.2, LONG: 1.5}
ON_GPU_OVER_TRANSFORMERS = {"0.5B": 10.0, "7B": 4.0}
OVER_CONTINUOUS = 5.0
SHARED_WEIGHTS = 4 << 30  # bytes of a model that all variants' processes can hold at the same time on a GPU of 80 GB
WARM_TOKENS = 8  # of each sample, at most
MODEL_TOKENS = 2048  # prompt and completion of every case fit; one number, so that vLLM compiles once for all of them
VLLM_CACHE_GIB = 2  # of its CPU build: enough for every case, and part of its peak as far as it is used


@dataclass(frozen=True)
class Given:
    """`model`: a checkpoint, for a CPU; `vllm_python`: the interpreter of an environment that has vLLM.

    `batches`: sizes for transformers.generate, in place of BATCHES.
    """

    model: Path | None = None
    vllm_python: str = ""
    batches: tuple[int, ...] = ()


class Contestant:
    """One variant's process on one case; started when it is first made ready. `alone`: the others' end then."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        ask: Ask,
        shape: Shape,
        all_: list[Contestant],
        *,
        alone: bool = False,
    ) -> None:
        self.command, self.environment, self.ask, self.shape, self.all = command, environment, ask, shape, all_
        self.alone = alone
        self.turn = 0
        self.worker: Worker | None = None
        all_.append(self)

    def arm(self) -> Callable[[], Outputs]:
        """The next round's prompts, once no contestant is busy; the first time few tokens, to warm up."""
        if self.alone:
            for other in self.all:
                if other is not self:
                    other.close()
        if self.worker is None:
            self.worker = Worker(self.command, self.environment)
            self.worker.wait()
            if self.turn:
                self._ask()()  # one that works alone is a new process in every round, and warms up with a whole one
        for other in self.all:
            if other.worker is not None:
                other.worker.settle()
        return self._ask()

    def _ask(self) -> Callable[[], Outputs]:
        assert self.worker is not None
        max_tokens = self.ask.max_tokens
        if self.turn == 0:
            max_tokens = [min(WARM_TOKENS, tokens) for tokens in max_tokens]
        prompts = self.ask.prompts(self.turn, self.shape.vocab_size)
        self.turn += 1
        question = {"prompts": prompts, "group_size": self.ask.group_size, "max_tokens": max_tokens}
        return partial(self._generate, self.worker, question)

    def _generate(self, worker: Worker, question: dict[str, Any]) -> Outputs:
        lengths = worker.ask(question)["lengths"]
        if lengths != question["max_tokens"]:
            raise WrongResult(f"samples of {lengths} tokens, asked for {question['max_tokens']}")
        return {"wrong_lengths": torch.zeros(1)}

    def peak_bytes(self) -> int | None:
        return None if self.worker is None else self.worker.peak_bytes()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def environment(threads: int, device: str) -> dict[str, str]:
    """Of ours and of transformers. Threads wait and pages are as in the main job (r1fast/train.py); both gain by it."""
    found = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    waiting = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000", "THP_MEM_ALLOC_ENABLE": "1"}
    return found | ({"OMP_NUM_THREADS": str(threads)} | waiting if device == "cpu" else {})


def vllm_environment(threads: int, device: str) -> dict[str, str]:
    """Its own defaults, on as many cores as the others have threads."""
    found = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if device == "cpu":
        cores = sorted(os.sched_getaffinity(0))[:threads]
        found |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
        found |= {"VLLM_CPU_KVCACHE_SPACE": str(VLLM_CACHE_GIB)}
    return found


def build(ask: Ask, shape: Shape, given: Given, device: str, rows: int, batches: tuple[int, ...]) -> Work:
    """Every variant with its process yet to start."""
    folder = tempfile.TemporaryDirectory()
    model = given.model
    if model is None:
        model = Path(folder.name)
        write_model(shape, model, max_position_embeddings=MODEL_TOKENS)
    threads = torch.get_num_threads()  # the harness has set it
    options: dict[str, Any] = {"model": str(model), "device": device, "threads": threads}
    options["max_model_tokens"] = MODEL_TOKENS
    contestants: list[Contestant] = []
    alone = device == "cuda" and shape.weight_bytes > SHARED_WEIGHTS

    def variant(name: str, kind: Kind, key: str, num_rows: int, python: str, note: str = "") -> Variant:
        about = json.dumps(options | {"variant": key, "rows": num_rows})
        own = (vllm_environment if key == "vllm" else environment)(threads, device)
        command = [python, "-m", "bench.rollout_worker", about]
        found = Contestant(command, own, ask, shape, contestants, alone=alone)
        return Variant(name, kind, found.arm, note, peak=found.peak_bytes)

    sizes = sorted({min(size, len(ask.max_tokens)) for size in batches})
    variants = [variant(OWN, "own", "ours", rows, sys.executable)]
    variants += [variant(f"{TRANSFORMERS} {size}", "peer", "transformers", size, sys.executable) for size in sizes]
    if device == "cuda" or shape == TINY:
        variants.append(variant(CONTINUOUS, "peer", "continuous", rows, sys.executable))
    if given.vllm_python:
        variants.append(variant(VLLM, "peer", "vllm", rows, given.vllm_python, "all of its processes"))
    else:
        variants.append(Variant(VLLM, "peer", None, missing="left out: no --vllm-python"))

    def close() -> None:
        for contestant in contestants:
            contestant.close()
        folder.cleanup()

    zeros = {"wrong_lengths": torch.zeros(1)}
    return Work(variants, lambda: zeros, {"wrong_lengths": 0.0}, close=close)


def figures(
    measured: Measured,
    over_transformers: float | None,
    over_vllm: float | None = None,
    over_continuous: float | None = None,
) -> list[Figure]:
    """Ours over transformers at its best batch size, and over the others: the medians of the rounds' ratios."""
    times = {name: row["median_s"] for name, row in measured.rows.items() if "median_s" in row}
    best = min((name for name in times if name.startswith(TRANSFORMERS)), key=times.__getitem__, default=TRANSFORMERS)
    limits = {best: over_transformers, CONTINUOUS: over_continuous, VLLM: over_vllm}
    return [
        Figure(f"tokens/s over {name}", measured.ratio(name, OWN), limit, at_least=True)
        for name, limit in limits.items()
        if limit is not None
    ]


def case(
    ask: Ask,
    shape: Shape,
    given: Given,
    device: str,
    name: str,
    judged: Callable[[Measured], list[Figure]] | None = None,
    batches: tuple[int, ...] = (),
) -> Case:
    sizes = {"P": ask.num_prompts, "G": ask.group_size, "prompt": ask.prompt_tokens, "most": ask.most}
    return Case(
        f"{name}, {ask.label}",
        sizes | {"tokens": sum(ask.max_tokens)},
        "bfloat16",
        shape.flops(ask),
        shape.num_bytes(ask),
        partial(build, ask, shape, given, device, ROWS[device], batches or given.batches or BATCHES[device]),
        judged or (lambda measured: []),
        tokens=sum(ask.max_tokens),
    )


def cases(device: str, size: str = "full", given: Given | None = None) -> Iterator[Case]:
    given = given or Given()
    if size == "tiny":
        for ask in TINY_ASKS:
            yield case(ask, TINY, replace(given, model=None), device, "tiny", batches=(2,))
    elif device == "cpu":
        shape = SMOLLM2 if given.model is None else Shape.read(given.model)
        name = "SmolLM2-135M's shape, random weights" if given.model is None else given.model.resolve().name
        for ask in (GROUPS, RAGGED, LONG):
            judged = partial(figures, over_transformers=OVER_TRANSFORMERS[ask], over_vllm=OVER_VLLM[ask])
            yield case(ask, shape, given, device, name, judged)
    else:
        for name, shape in QWEN.items():
            limit = ON_GPU_OVER_TRANSFORMERS.get(name)
            judged = partial(figures, over_transformers=limit, over_continuous=OVER_CONTINUOUS)
            largest = BATCHES[device][-1:] if shape.weight_bytes > SHARED_WEIGHTS else ()  # a start of each takes long
            yield case(
                ON_GPU,
                shape,
                replace(given, model=None),
                device,
                f"Qwen2.5-{name}'s shape",
                judged,
                given.batches or largest,
            )


def arguments() -> argparse.Namespace:
    found = parser(__doc__)
    found.add_argument("--model", default="", metavar="DIR", help="a checkpoint, for a CPU (the README: how to get it)")
    found.add_argument("--vllm-python", default="", metavar="FILE", help="the interpreter of an environment with vLLM")
    found.add_argument("--batches", nargs="+", type=int, default=[], metavar="N", help="of transformers.generate")
    found.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases with one of these in their label")
    return found.parse_args()


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes are ended
    given = Given(Path(options.model) if options.model else None, options.vllm_python, tuple(options.batches))

    def chosen(device: str, size: str) -> Iterator[Case]:
        return (found for found in cases(device, size, given) if any(word in found.label for word in options.only))

    run("bench.bench_rollout", chosen, options)


if __name__ == "__main__":
    main()
