"""Measures variants of one piece of work beside each other, after checking what they compute.

Every result is compared with a float64 reference first; a wrong one of ours ends the bench, a peer's error is reported.
Then all variants run in turn, round after round, so that what disturbs the machine disturbs all of them: CUDA events on
a GPU, behind a flush of the L2 cache that also hides the launches; on a CPU process time of one thread, wall time of
several. A figure is the median of its rounds, a ratio the median of the rounds' ratios.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from bench.peak_memory import peak_bytes

Outputs = dict[str, Tensor]
Arm = Callable[[], Callable[[], Outputs]]
"""Makes everything ready, untimed, and returns what is timed."""
Kind = Literal["own", "eager", "compile", "peer", "ceiling"]
FLUSH_BYTES = 256 << 20  # five times an H100's L2 cache
HIDE_CYCLES = 4_000_000  # about 2 ms of a GPU: the host enqueues the whole variant meanwhile
LEAST_ROUNDS = 3


class WrongResult(Exception):
    """One of our own kernels is wrong: nothing that it does is worth timing."""


@dataclass(frozen=True)
class Variant:
    """One way to do the work. `missing`: why it cannot run here; `note`: what it does less or otherwise."""

    name: str
    kind: Kind
    arm: Arm | None
    note: str = ""
    missing: str = ""
    peak: Callable[[], int | None] | None = None
    """Of one that works in a process of its own: most bytes resident there so far."""
    about: Callable[[], dict[str, Any]] | None = None
    """What else there is to say of its rounds, when all are done."""


def compiled(make: Callable[[Callable[..., Any]], Callable[[], Outputs]], function: Callable[..., Any]) -> Arm:
    """What `make` makes of the function, by torch.compile; compiled when it is first made ready."""
    known: list[Callable[[], Outputs]] = []

    def arm() -> Callable[[], Outputs]:
        if not known:
            known.append(make(torch.compile(function, dynamic=False)))
        return known[0]

    return arm


def plain(run: Callable[[], Outputs]) -> Arm:
    """An arm that has nothing to make ready."""
    return lambda: run


@dataclass(frozen=True)
class Work:
    """Variants on one set of inputs, and what they must give: |x - reference| <= tolerance x max |reference|."""

    variants: list[Variant]
    reference: Callable[[], Outputs]
    tolerance: dict[str, float]
    accumulator_bytes: int = 0
    """Of the one fp32 [V, D] accumulator, which a memory figure may leave out."""
    close: Callable[[], None] | None = None
    """Ends the processes in which the variants work, where they do: time is wall time then, memory theirs."""


@dataclass(frozen=True)
class Figure:
    """A line of what must be reached: `value` at most `limit`, or at least it. None: could not be measured."""

    line: str
    value: float | None
    limit: float
    at_least: bool = False

    def record(self) -> dict[str, Any]:
        met = None
        if self.value is not None:
            met = self.value >= self.limit if self.at_least else self.value <= self.limit
        value = None if self.value is None else round(self.value, 4)
        return {"line": self.line, "value": value, "limit": self.limit, "at_least": self.at_least, "met": met}


@dataclass(frozen=True)
class Case:
    """A piece of work at one shape: its least FLOPs and bytes, which need no device, and the rest, which does."""

    label: str
    shape: dict[str, int]
    dtype: str
    flops: float
    num_bytes: float
    build: Callable[[], Work]
    figures: Callable[[Measured], list[Figure]] = field(default=lambda measured: [])
    count_launches: bool = False
    tokens: int = 0
    """That a run gives, where tokens a second are what it is for."""
    least_rounds: int = LEAST_ROUNDS
    """Whatever the budget; fewer where a round takes minutes."""


@dataclass(frozen=True)
class Settings:
    device: str = "cpu"
    rounds: int = 5
    budget_s: float = 60.0
    """Of the timed rounds of one case; three rounds run in any case."""
    threads: int = 1
    kinds: tuple[str, ...] = ("own", "eager", "compile", "peer", "ceiling")
    memory: bool = True
    """Peak memory; on a CPU that takes a fresh process for each variant, which torch.compile is not worth."""
    size: str = "full"
    """Which of a bench's cases: full, quick or tiny."""


@dataclass
class Measured:
    """The rows of one case, by variant, and the readers that its figures need."""

    rows: dict[str, dict[str, Any]]
    samples: dict[str, list[float]]

    def ratio(self, name: str, other: str) -> float | None:
        """Time of one variant over another's, the median over rounds."""
        pairs = list(zip(self.samples.get(name, ()), self.samples.get(other, ()), strict=False))
        return statistics.median(x / y for x, y in pairs) if pairs else None

    def value(self, name: str, key: str) -> float | None:
        return self.rows.get(name, {}).get(key)

    def over(self, name: str, other: str, key: str) -> float | None:
        """One variant's value over another's."""
        first, second = self.value(name, key), self.value(other, key)
        return None if first is None or not second else first / second


def measure(module: str, case: Case, settings: Settings) -> tuple[list[dict[str, Any]], list[Figure]]:
    """Rows and figures of one case. Raises WrongResult. `module` is where a fresh process finds the case again."""
    if settings.device == "cpu":
        torch.set_num_threads(settings.threads)
    work = case.build()
    try:
        return _measure(module, case, work, settings)
    finally:
        if work.close is not None:
            work.close()
        del work
        release(settings.device)


def _measure(module: str, case: Case, work: Work, settings: Settings) -> tuple[list[dict[str, Any]], list[Figure]]:
    variants = [variant for variant in work.variants if variant.kind in settings.kinds]
    rows = {v.name: {"variant": v.name, "kind": v.kind, "note": v.note, "status": v.missing or "ok"} for v in variants}
    ready = check(work, variants, rows)
    here = [variant for variant in ready if variant.peak is None and variant.kind != "ceiling"]
    for variant in here if settings.memory else ():
        if variant.kind != "compile" or settings.device == "cuda":
            accumulator = work.accumulator_bytes
            memory = attempt(variant, rows, partial(_memory, module, case, variant, accumulator, settings))
            rows[variant.name] |= memory or {}
    cuda = settings.device == "cuda" and work.close is None
    gc.collect()
    gc.disable()  # a collection in the middle of a round would be one variant's time
    try:
        samples = _time(ready, rows, settings, cuda, case.least_rounds)
    finally:
        gc.enable()
    if case.count_launches and settings.device == "cuda":
        for variant in ready:
            rows[variant.name]["launches"] = _launches(variant)
    # With one thread process time is the variant's own, whatever else the machine does.
    clock = int(settings.device == "cpu" and settings.threads == 1 and work.close is None)
    measured = Measured(rows, {name: [pair[clock] for pair in pairs] for name, pairs in samples.items()})
    ceiling = next((v.name for v in ready if v.kind == "ceiling"), None)
    own = next((v.name for v in ready if v.kind == "own"), None)
    for name, pairs in samples.items():
        taken = measured.samples[name]
        rows[name] |= {"median_s": statistics.median(taken), "least_s": min(taken), "most_s": max(taken)}
        rows[name] |= {"rounds": len(taken), "clock": "process" if clock else "GPU" if cuda else "wall"}
        if not cuda:
            rows[name]["wall_s"] = statistics.median(wall for wall, _ in pairs)
        if own is not None:
            rows[name]["over_own"] = measured.ratio(name, own)
        if ceiling is not None:
            rows[name]["of_ceiling"] = measured.ratio(ceiling, name)
        if case.tokens:
            rows[name]["tokens_per_s"] = case.tokens / rows[name]["median_s"]
    for variant in ready if settings.memory else ():
        if variant.peak is not None:
            rows[variant.name]["peak_bytes"] = variant.peak()
    for variant in ready:
        rows[variant.name] |= variant.about() if variant.about is not None else {}
    return list(rows.values()), case.figures(measured)


def release(device: str) -> None:
    """Forget compiled code and give cached memory back: the next case has other shapes."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def check(work: Work, variants: list[Variant], rows: dict[str, dict[str, Any]]) -> list[Variant]:
    """Run every variant once, put its error into its row; those that ran. Raises WrongResult for one of ours."""
    expected = work.reference()
    ready = []
    for variant in variants:
        if variant.arm is None:
            continue
        outputs = attempt(variant, rows, partial(_run, variant.arm))
        if outputs is None:
            continue
        found = errors(outputs, expected)
        rows[variant.name]["errors"] = found
        wrong = {name: error for name, error in found.items() if not error <= work.tolerance[name]}
        if wrong and variant.kind == "own":
            raise WrongResult(f"{variant.name}: error over the largest value {wrong}, at most {work.tolerance}")
        if wrong:
            rows[variant.name]["status"] = "less exact than ours may be"
        ready.append(variant)
        del outputs
    return ready


def _run(arm: Arm) -> Outputs:
    return arm()()


def attempt(variant: Variant, rows: dict[str, dict[str, Any]], call: Callable[[], Any]) -> Any:
    """What the call gives; None where another library's code fails, for whatever reason, which goes into its row."""
    if variant.kind == "own":
        return call()
    try:
        return call()
    except Exception as error:
        message = " ".join(str(error).split())
        rows[variant.name]["status"] = f"failed: {type(error).__name__}: {message[-300:]}"
        return None


def errors(outputs: Outputs, expected: Outputs) -> dict[str, float]:
    """Largest error of each output over its largest reference value; NaN where there is a NaN."""
    found = {}
    for name, value in outputs.items():
        reference, total = expected[name], 0.0
        largest = float(reference.abs().max())
        value = value.reshape(reference.shape)
        worst = [(x.double() - y.double()).abs().max() for x, y in zip(_slabs(value), _slabs(reference), strict=True)]
        total = float(torch.stack(worst).max())
        found[name] = total / largest if largest else total
    return found


def _slabs(values: Tensor) -> tuple[Tensor, ...]:
    """Pieces whose copy in float64 is small."""
    flat = values.detach().reshape(-1)
    return flat.split(1 << 24) if flat.numel() else (flat.new_zeros(1),)


def _memory(module: str, case: Case, variant: Variant, accumulator: int, settings: Settings) -> dict[str, Any]:
    """Bytes of the peak above what there was before the call; and without results and the accumulator."""
    assert variant.arm is not None
    if settings.device == "cuda":
        thunk = variant.arm()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()  # what is live: cached blocks do not count
        torch.cuda.reset_peak_memory_stats()
        outputs = thunk()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
        results = sum(x.numel() * x.element_size() for x in outputs.values())
    else:
        found = peak_bytes(module, settings.size, case.label, variant.name, settings.threads)
        if found is None:
            return {}
        extra, results = found
    return {"extra_bytes": extra, "scratch_bytes": max(0, extra - results - accumulator)}


def _time(
    variants: list[Variant], rows: dict[str, dict[str, Any]], settings: Settings, on_gpu: bool, least: int
) -> dict[str, list[tuple[float, float]]]:
    """Wall (or GPU) and process seconds of every round by variant; a variant that fails leaves with its error."""
    samples: dict[str, list[tuple[float, float]]] = {variant.name: [] for variant in variants}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if on_gpu else None
    running, start = list(variants), time.perf_counter()
    warm = 2 if flush is not None else 0  # rounds that do not count: clocks and caching allocators settle
    for turn in range(max(least, settings.rounds) + warm):
        if turn >= least + warm and time.perf_counter() - start > settings.budget_s:
            break
        shift = turn % max(1, len(running))
        for variant in running[shift:] + running[:shift]:
            sample = attempt(variant, rows, partial(_once, variant, flush))
            if sample is None:
                running.remove(variant)
                del samples[variant.name]
            elif turn >= warm:
                samples[variant.name].append(sample)
    return samples


def _once(variant: Variant, flush: Tensor | None) -> tuple[float, float]:
    assert variant.arm is not None
    thunk = variant.arm()
    if flush is None:
        wall, process = time.perf_counter(), time.process_time()
        outputs = thunk()
        found = time.perf_counter() - wall, time.process_time() - process
        del outputs
        return found
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(HIDE_CYCLES)
    flush.zero_()
    begin.record()
    start = time.perf_counter()
    thunk()
    host = time.perf_counter() - start
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3, host


def _launches(variant: Variant) -> int | None:
    """Kernels that one run puts on the GPU, copies and fills left out; None where the profiler may not look."""
    assert variant.arm is not None
    thunk = variant.arm()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        thunk()
        torch.cuda.synchronize()
    device = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in device) if device else None
