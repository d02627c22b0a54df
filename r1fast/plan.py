"""The plan of a run, for `--dry-run`: steps, samples, tokens, memory and a rough time of every stage.

Counts and memory are upper bounds: every completion runs to its limit, every filter keeps what it may. Times take
completions of half the limit and shares of a matrix-product probe's rate; they tell minutes from hours, not more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from r1fast.checks import STUDENT_STAGES
from r1fast.config import RL_STAGES, STAGES, Config
from r1fast.disk import format_bytes
from r1fast.model_size import ModelSize
from r1fast.phase_memory import CACHES, Items, PhaseMemory, Place, total
from r1fast.schedule import at, change_steps, values

if TYPE_CHECKING:
    import torch
    from rich.console import Console

LENGTH_SHARE = 0.5  # of max_tokens, the completion that times assume
DECODE_STEP_S_PER_LAYER = 2e-4  # host time of one layer in one decode step
PROCESS_BYTES = 440 << 20  # Python, torch and transformers before any model


@dataclass(frozen=True, kw_only=True)
class Speed:
    """FLOP/s of one process in a matrix product, and the shares of it that training and decoding reach."""

    flops_per_s: float
    train_share: float = 0.6
    decode_share: float = 0.25  # few rows: reads every weight for little arithmetic


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage does. Tokens are upper bounds; FLOPs and decode steps (one token a row) are expected.

    `dev`: what its readings of dev draw, which is counted in but for samples, limit and rows.
    """

    steps: int = 0
    samples: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0
    train_flops: float = 0.0
    decode_flops: float = 0.0
    decode_steps: float = 0.0
    limit: int = 0  # tokens of the longest completion
    rows: int = 0  # most sequences of a process's decode batch
    phases: tuple[tuple[str, Items], ...] = ()  # phase -> what it holds
    dev: Work | None = None

    @property
    def memory(self) -> Items:
        """Of the phase that holds most."""
        return max((items for _, items in self.phases), key=total, default=())


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: `time_s` seconds, `peak_bytes` of one process."""

    name: str
    work: Work
    time_s: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run. `assumptions` are the sentences that the table needs beside it."""

    stages: tuple[StagePlan, ...]
    world_size: int
    assumptions: tuple[str, ...]

    @property
    def time_s(self) -> float:
        """Seconds of all stages."""
        return sum(stage.time_s for stage in self.stages)

    @property
    def largest(self) -> StagePlan:
        """The stage that needs most memory."""
        return max(self.stages, key=lambda stage: stage.peak_bytes)


def make_plan(
    config: Config,
    model: ModelSize,
    *,
    student: ModelSize | None = None,
    speed: Speed,
    place: Place | None = None,
    prompt_tokens: int = 64,
) -> Plan:
    """The plan of `config` for these models. Pure: reads no file, no device.

    speed: of one process (`probe_speed`). place: of each process, one on a CPU in float32 unless given.
    prompt_tokens: assumed length of a prompt.

    Raises:
        ValueError: a stage trains the student and `student` is missing.
    """
    stages = []
    place = place or Place(on_gpu=False, compute_bytes=4)
    for name, size, work in stage_works(config, model, student, place, prompt_tokens):
        train_s = work.train_flops / (speed.flops_per_s * speed.train_share * place.num_processes)
        decode_s = work.decode_flops / (speed.flops_per_s * speed.decode_share * place.num_processes)
        host_s = work.decode_steps * size.num_layers * DECODE_STEP_S_PER_LAYER
        peak_bytes = PROCESS_BYTES + total(work.memory)
        stages.append(StagePlan(name=name, work=work, time_s=train_s + decode_s + host_s, peak_bytes=peak_bytes))
    return Plan(
        stages=tuple(stages),
        world_size=place.num_processes,
        assumptions=(
            f"upper bounds: prompts of {prompt_tokens} tokens, completions at max_tokens, filters keep all they may",
            f"time, roughly: completions of {LENGTH_SHARE:.0%} of max_tokens; "
            f"{speed.flops_per_s / 1e9:,.0f} GFLOP/s in a matrix product (probed), {speed.train_share:.0%} of it in "
            f"training, {speed.decode_share:.0%} in decoding, {DECODE_STEP_S_PER_LAYER * 1e3:.1f} ms a layer and "
            "decode step; rewards and loading not counted",
            "zero_variance = refill draws further prompts, which are not counted",
        ),
    )


def stage_works(
    config: Config, model: ModelSize, student: ModelSize | None, place: Place, prompt_tokens: int
) -> Iterator[tuple[str, ModelSize, Work]]:
    """Every stage with the model that it trains or samples and what it does; arguments and errors as `make_plan`."""
    for name in config.pipeline.stages:
        if name in STUDENT_STAGES and student is None:
            raise ValueError(f"stage {name} trains the student, but its size is missing; give student=ModelSize(...)")
        size = student if name in STUDENT_STAGES and student is not None else model
        planner = _Planner(config.for_stage(name), name, size, place, prompt_tokens)
        yield name, size, planner.work(config)


@dataclass(frozen=True)
class _Planner:
    """One stage's view of the configuration with the sizes that its estimates share."""

    config: Config
    name: str
    size: ModelSize
    place: Place
    prompt_tokens: int

    def work(self, whole: Config) -> Work:
        if self.name in RL_STAGES:
            return self._rl()
        if self.name in ("sft_1", "sft_2", "distill"):
            return self._sft(whole)
        if self.name in ("cold_start", "rejection"):
            section = getattr(self.config, self.name)
            return self._sampling(section.prompts * section.samples_per_prompt, section.max_tokens, section.prompts)
        simple: dict[str, Callable[[], Work]] = {
            "base": lambda: self._reading_dev(Work(phases=(("load", self._memory(0).loaded()),)), 1),
            "reward_models": self._reward_models,
            "evaluation": self._evaluation,
        }
        return simple[self.name]()

    def _rl(self) -> Work:
        rl = self.config.rl
        passes = self._passes() + self._memory(0).num_scored
        samples = generated = trained = longest = most_rows = 0
        train_flops = decode_flops = decode_steps = 0.0
        changes = change_steps(rl.prompts_per_step, rl.general_prompts_per_step, rl.max_tokens)
        pieces = [step for step in changes if step < rl.steps]
        for first, end in zip(pieces, [*pieces[1:], rl.steps], strict=True):
            num_prompts = at(rl.prompts_per_step, first) + at(rl.general_prompts_per_step, first)
            limit = at(rl.max_tokens, first)
            num_samples = num_prompts * rl.group_size * (end - first)
            samples += num_samples
            generated += num_samples * limit
            trained += num_samples * (self.prompt_tokens + limit)
            train_flops += num_samples * self._sequence_flops(limit) * passes
            drawn = self._sampling(num_samples, limit, num_samples // rl.group_size)
            decode_flops += drawn.decode_flops
            a_rollout = num_prompts * rl.group_size * rl.updates_per_rollout
            rows = min(self.config.rollout.rows, math.ceil(a_rollout / self._num_engines))
            decode_steps += num_samples / self._num_engines / rows * limit * LENGTH_SHARE
            longest, most_rows = max(longest, limit), max(most_rows, rows)
        memory = self._memory(longest, most_rows)
        phases = [("rollout", memory.rollout())]
        if memory.num_scored:
            phases.append(("score", memory.score()))
        phases.append(("train", memory.train()))
        work = Work(
            steps=rl.steps,
            samples=samples,
            generated_tokens=generated,
            trained_tokens=trained,
            train_flops=train_flops,
            decode_flops=decode_flops,
            decode_steps=decode_steps,
            limit=longest,
            rows=most_rows,
            phases=tuple(phases),
        )
        if not rl.dev_every_steps:
            return work
        return self._reading_dev(work, 1 + math.ceil(rl.steps / rl.dev_every_steps))  # before the first, after the last

    def _sft(self, whole: Config) -> Work:
        source = "cold_start" if self.name == "sft_1" else "rejection"
        made = whole.for_stage(source)
        sft = self.config.sft
        if source not in whole.pipeline.stages:  # from files alone, a micro-batch's tokens long at most
            limit = self.config.optimizer.micro_batch_tokens - self.prompt_tokens
            return self._tuned(sft.steps, max(1, limit))
        if source == "cold_start":
            limit, kept = made.cold_start.max_tokens, made.cold_start.max_kept
            kept = min(kept, made.cold_start.prompts * made.cold_start.max_per_prompt)
        else:
            limit = made.rejection.max_tokens
            per_prompt = min(made.rejection.max_per_prompt, made.rejection.samples_per_prompt)
            kept = math.ceil(made.rejection.prompts * per_prompt / (1 - made.rejection.general_share))
        kept = math.ceil(kept / (1 - sft.general_share))
        steps = sft.steps or max(1, round(kept * sft.epochs / sft.batch_size))
        return self._tuned(steps, limit)

    def _tuned(self, steps: int, limit: int) -> Work:
        sft = self.config.sft
        work = self._supervised(steps, steps * sft.batch_size, limit)
        return self._reading_dev(work, math.ceil(steps / sft.dev_every_steps)) if sft.dev_every_steps else work

    def _supervised(self, steps: int, sequences: int, limit: int, models: int = 1) -> Work:
        return Work(
            steps=steps * models,
            samples=sequences * models,
            trained_tokens=sequences * (self.prompt_tokens + limit) * models,
            train_flops=sequences * models * self._sequence_flops(limit) * self._passes(),
            limit=limit,
            phases=(("train", self._memory(limit).train()),),
        )

    def _reward_models(self) -> Work:
        options = self.config.reward_model
        steps = options.steps or math.ceil(options.pairs / options.batch_size)
        limit = int(max(values(self.config.for_stage("rl_2").rl.max_tokens)))
        return self._supervised(steps, steps * options.batch_size * 2, limit, models=2)

    def _sampling(self, num_samples: int, limit: int, num_prompts: int) -> Work:
        likely = limit * LENGTH_SHARE
        forward = self.size.forward_flops(self.prompt_tokens + likely)
        rows = min(self.config.rollout.rows, math.ceil(num_samples / self._num_engines))
        return Work(
            samples=num_samples,
            generated_tokens=num_samples * limit,
            decode_flops=(num_samples * likely + num_prompts * self.prompt_tokens) * forward,
            decode_steps=math.ceil(num_samples / self._num_engines / rows) * likely,
            limit=limit,
            rows=rows,
            phases=(("rollout", self._memory(limit, rows).rollout()),),
        )

    def _reading_dev(self, work: Work, num_readings: int) -> Work:
        """A stage that reads dev so often: one sample of every problem, with the evaluation's limit."""
        num_problems = self.config.rl.dev_problems
        one = self._sampling(num_problems, self.config.evaluation.max_tokens, num_problems)
        dev = replace(
            one,
            samples=num_readings * one.samples,
            generated_tokens=num_readings * one.generated_tokens,
            decode_flops=num_readings * one.decode_flops,
            decode_steps=num_readings * one.decode_steps,
            phases=(("dev", one.memory),),
        )
        return replace(
            work,
            generated_tokens=work.generated_tokens + dev.generated_tokens,
            decode_flops=work.decode_flops + dev.decode_flops,
            decode_steps=work.decode_steps + dev.decode_steps,
            phases=_with_one_cache((*work.phases, *dev.phases)),
            dev=dev,
        )

    def _evaluation(self) -> Work:
        stages = self.config.pipeline.stages
        num_teachers = 1 + sum(stage in ("r1_zero", "sft_1", "rl_1", "sft_2", "rl_2") for stage in stages)
        num_students = sum(stage in STUDENT_STAGES for stage in stages)
        options = self.config.evaluation
        a_problem = options.samples_per_problem + options.high_temperature_samples
        num_models = num_teachers + num_students + (num_students > 0)  # the student's base too
        problems = self.config.data.num_held_out * num_models
        return self._sampling(problems * a_problem, options.max_tokens, problems)

    def _memory(self, limit: int, rows: int = 0) -> PhaseMemory:
        return PhaseMemory(
            config=self.config,
            stage=self.name,
            size=self.size,
            place=self.place,
            prompt_tokens=self.prompt_tokens,
            limit=limit,
            rows=rows,
        )

    @property
    def _num_engines(self) -> int:
        """That sample beside each other, each in a team of processes."""
        return max(1, self.place.num_processes // self.config.rollout.tensor_parallel)

    def _passes(self) -> float:
        """Forward passes' worth of an update: forward, backward as two, recomputation."""
        return 3.0 + self.config.optimizer.gradient_checkpointing

    def _sequence_flops(self, limit: int) -> float:
        length = self.prompt_tokens + limit * LENGTH_SHARE
        return length * self.size.forward_flops(length)


def _with_one_cache(phases: tuple[tuple[str, Items], ...]) -> tuple[tuple[str, Items], ...]:
    """An engine's cache grows to the most that is asked of it, and keeps that."""
    most = max((size for _, items in phases for name, size in items if name in CACHES), default=0)
    return tuple(
        (phase, tuple((name, most if name in CACHES else size) for name, size in items)) for phase, items in phases
    )


def probe_speed(device: torch.device, dtype: torch.dtype, *, duration_s: float = 0.2) -> Speed:
    """The rate of a square matrix product, measured for `duration_s` seconds after a warm-up."""
    import torch

    width = 4096 if device.type == "cuda" else 512
    left = torch.randn(width, width, device=device).to(dtype)
    _wait(left @ left)  # warm-up: threads, kernels
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < duration_s:
        _wait(left @ left)
        count += 1
    flops_per_s = 2.0 * width**3 * count / (time.perf_counter() - start)
    # A GPU's decode waits for memory: its arithmetic outruns it by far more than a CPU's.
    return (
        Speed(flops_per_s=flops_per_s, decode_share=0.03) if device.type == "cuda" else Speed(flops_per_s=flops_per_s)
    )


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        import torch

        torch.cuda.synchronize(tensor.device)


def print_plan(plan: Plan, console: Console) -> None:
    """The plan as a table, the largest stage's memory by item, and what the figures assume."""
    from rich.table import Table

    table = Table(title="plan", title_justify="left")
    table.add_column("stage", no_wrap=True, min_width=max(map(len, STAGES)))
    for column in ("steps", "samples", "generated tokens <=", "trained tokens <=", "memory <=", "time ~"):
        table.add_column(column, justify="right")
    for stage in plan.stages:
        work = stage.work
        counts = (work.steps, work.samples, work.generated_tokens, work.trained_tokens)
        cells = [f"{count:,}" if count else "-" for count in counts]
        table.add_row(stage.name, *cells, format_bytes(stage.peak_bytes), duration(stage.time_s))
    table.add_section()
    table.add_row("all", "", "", "", "", format_bytes(plan.largest.peak_bytes), duration(plan.time_s))
    console.print(table)
    items = ", ".join(f"{name} {format_bytes(num_bytes)}" for name, num_bytes in plan.largest.work.memory)
    processes = f"{plan.world_size} processes" if plan.world_size > 1 else "1 process"
    console.print(
        f"memory of {plan.largest.name}, each of {processes}: {format_bytes(PROCESS_BYTES)} libraries, {items}"
    )
    for sentence in plan.assumptions:
        console.print(sentence)


def duration(time_s: float) -> str:
    """Seconds as a person says them: 42 s, 7 min, 3.5 h, 12 days."""
    if time_s < 90:
        return f"{time_s:.0f} s"
    if time_s < 90 * 60:
        return f"{time_s / 60:.0f} min"
    return f"{time_s / 3600:.1f} h" if time_s < 72 * 3600 else f"{time_s / 86400:,.0f} days"
