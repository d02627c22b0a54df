"""`r1fast plan`: what a recipe would do, here, or with `--gpu` on GPUs that one does not have yet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from r1fast.cluster import (
    CONTEXT_BYTES,
    DECODE_SHARE,
    FRAGMENTATION,
    NETWORK_SHARE,
    PROMPT_TOKENS,
    SCORE_SHARE,
    TRAIN_SHARE,
    ClusterPlan,
    Phase,
    plan_cluster,
)
from r1fast.cluster_advice import advise
from r1fast.config import Config, ConfigError
from r1fast.disk import format_bytes
from r1fast.gpus import GPUS
from r1fast.plan import LENGTH_SHARE, duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

USAGE = f"""usage: r1fast plan --recipe R [options of the recipe] [--gpu {"|".join(GPUS)} [--gpus N]]

Without --gpu: steps, tokens, memory and time on this machine, as r1fast train --dry-run prints them.
With --gpu: memory of each phase on one of N such GPUs, time, network, the largest micro-batch that fits, and what to
change where something does not. Nothing is downloaded for the checkpoints that r1fast knows.
Exit codes: 2 bad input, else without --gpu always 0, and with --gpu 0 where it fits, 3 where it does not fit or would
not start."""
DOES_NOT_FIT = 3
# Column of the memory table -> the items in it; `rest` has what is in none.
COLUMNS: dict[str, tuple[str, ...]] = {
    "weights": ("parameters",),
    "copies": ("rollout copy", "reference", "reward models", "vLLM's weights"),
    "optim.": ("masters", "moments"),
    "grads": ("gradients",),
    "activ.": ("activations",),
    "logits": ("logits chunk",),
    "cache": ("KV cache", "vLLM's cache"),
}


def main(argv: Sequence[str]) -> int:
    """Exit code 0, 2 for bad input, 3 for a plan with `--gpu` that does not fit or would not start."""
    arguments = list(argv)
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return 0
    try:
        gpu, num_gpus = _take(arguments, "--gpu"), _take(arguments, "--gpus")
        if gpu is None:
            if num_gpus is not None:
                raise ConfigError("--gpus needs --gpu, one of " + ", ".join(GPUS))
            return _here(arguments)
        return _there(arguments, gpu, num_gpus or "1")
    except ConfigError as error:
        print(f"r1fast: {error}", file=sys.stderr)
        return 2


def _here(arguments: list[str]) -> int:
    from r1fast.train import main as train

    return train([*arguments, "--dry-run"])


def _there(arguments: list[str], gpu: str, num_gpus: str) -> int:
    from rich.console import Console

    from r1fast.options import parse
    from r1fast.start import model_sizes

    if gpu not in GPUS:
        raise ConfigError(f"--gpu {gpu} is none of {', '.join(GPUS)}")
    if not num_gpus.isdecimal() or not int(num_gpus):
        raise ConfigError(f"--gpus {num_gpus} must be a whole number from 1")
    config = parse(arguments).config
    # said with the plan: the numbers of a recipe that cannot start are of use, too
    refused = [f"would not start: {problem}" for problem in _refusals(config, int(num_gpus))]
    model, student = model_sizes(config)
    plan = plan_cluster(config, model, student, GPUS[gpu], int(num_gpus))
    advice = [*refused, *advise(plan, config, student)]
    print_cluster_plan(plan, advice, Console())
    return DOES_NOT_FIT if advice else 0


def _refusals(config: Config, num_gpus: int) -> Iterator[str]:
    """What the start would refuse on GPUs, as far as the configuration alone tells."""
    from r1fast.checks import check_device, check_processes

    checks: list[Callable[[], None]] = [
        lambda: check_processes(config, num_gpus),
        lambda: check_device(config, "cuda"),
    ]
    for check in checks:
        try:
            check()
        except ConfigError as error:
            yield str(error)


def print_cluster_plan(plan: ClusterPlan, advice: Sequence[str], console: Console) -> None:
    """What every phase does, what it holds, what the figures assume, and what to change."""
    gpu, model = plan.gpu, plan.model
    sizes = f"{model.num_params / 1e9:.2f}B parameters"
    if model.expert_params:
        sizes += f", {model.active_params / 1e9:.2f}B of them active"
    console.print(f"plan: {sizes}, {plan.num_gpus} x {gpu.name} of {format_bytes(gpu.memory)}", style="bold")
    _print_work(plan, console)
    _print_memory(plan, console)
    lines: tuple[str, ...] = (
        "copies: reference, reward models, and beside ZeRO 3's shares the whole weights that rollouts need; optim.: "
        "float32 masters and AdamW's moments; activ.: what backward needs; logits: the fused head's chunk and its "
        "gradient; cache: keys and values of the rows, within half of what is free; rest: DeepSpeed's buckets, "
        f"{format_bytes(CONTEXT_BYTES)} of context, {FRAGMENTATION - 1:.0%} of fragments; fit at a time: samples at "
        "their limit in the cache, or the largest micro-batch; sent a step: by one GPU for one optimizer step",
        f"assumed, not measured: prompts of {PROMPT_TOKENS} tokens, memory at max_tokens, all else at "
        f"{LENGTH_SHARE:.0%} of it; {TRAIN_SHARE:.0%} of {gpu.flops / 1e12:,.0f} TFLOP/s in training, "
        f"{SCORE_SHARE:.0%} in scoring, {DECODE_SHARE:.0%} of {gpu.bandwidth / 1e12:.2f} TB/s in decoding, "
        f"{NETWORK_SHARE:.0%} of a link's rate, nothing overlapped; rewards, loading, saving and waiting for the "
        "longest sample are not counted",
    )
    if any(stage.config.run.dtype == "float32" for stage in plan.stages.values()):
        text = "run.dtype = float32 counts in memory and network; times take bf16's rate, float32's products are slower"
        lines = (*lines, text)
    for line in lines:
        console.print(line, style="dim", highlight=False)
    if not advice:
        console.print(f"fits: every phase stays below {format_bytes(gpu.memory)}", style="bold green")
        return
    console.print("does not fit:" if plan.over else "would not run as it is:", style="bold red")
    for sentence in advice:
        console.print(f"- {sentence}", highlight=False, markup=False)


def _table(title: str) -> Table:
    """Narrow enough for a terminal of 100 columns."""
    from rich import box
    from rich.table import Table

    options: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    table = Table(title=title, title_justify="left", title_style="bold", **options)
    table.add_column("stage", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    return table


def _print_work(plan: ClusterPlan, console: Console) -> None:
    table = _table("work of all GPUs")
    for column in ("steps", "tokens", "FLOPs", "time", "sent a step", "fit at a time"):
        table.add_column(column, justify="right")
    for stage, planned in plan.stages.items():
        for number, phase in enumerate(planned.phases):
            table.add_row(
                "" if number else stage,
                phase.name,
                f"{phase.steps:,}" if phase.name == "train" else "-",
                _short(phase.tokens),
                f"{phase.flops:.1e}" if phase.flops else "-",
                duration(phase.time_s) if phase.time_s else "-",
                format_bytes(phase.network / phase.steps) if phase.network else "-",
                _fitting(phase, planned.most_tokens),
                style=None if phase.fits(plan.gpu) else "red",
            )
    table.add_section()
    hours = plan.time_s * plan.num_gpus / 3600
    table.add_row("all", "", "", "", "", duration(plan.time_s), "", f"{hours:,.0f} GPU-hours")
    console.print(table)


def _print_memory(plan: ClusterPlan, console: Console) -> None:
    table = _table("memory of a GPU in GiB")
    names = [*COLUMNS, "rest", "peak"]
    for column in names:
        table.add_column(column, justify="right", no_wrap=True)
    for stage, planned in plan.stages.items():
        for number, phase in enumerate(planned.phases):
            cells = _columns(phase)
            shown = [_gib(cells[name]) for name in names[:-1]] + [_gib(phase.peak)]
            fits = phase.fits(plan.gpu)
            table.add_row("" if number else stage, phase.name, *shown, style=None if fits else "red")
    console.print(table)


def _columns(phase: Phase) -> dict[str, float]:
    """Column -> bytes; their sum is the peak."""
    place = {item: column for column, items in COLUMNS.items() for item in items}
    found = dict.fromkeys((*COLUMNS, "rest"), 0.0)
    for item, size in phase.memory:
        found[place.get(item, "rest")] += size
    found["rest"] += phase.peak - sum(found.values())
    return found


def _fitting(phase: Phase, most_tokens: int | None) -> str:
    if phase.name == "train":
        return f"{most_tokens:,} tokens" if most_tokens else "none"
    if phase.wanted_rows:
        return f"{phase.rows} of {phase.wanted_rows} rows"
    return "-"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.1f}" if num_bytes else "-"


def _short(count: float) -> str:
    """12.3M, 1.20B: three digits are enough for what is an estimate."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}" if count else "-"


def _take(arguments: list[str], name: str) -> str | None:
    """The value behind a flag, or `=`, both taken out; None without it."""
    for place, word in enumerate(arguments):
        if word.startswith(f"{name}="):
            return arguments.pop(place).partition("=")[2]
        if word == name:
            if place + 1 == len(arguments):
                raise ConfigError(f"{name} needs a value")
            arguments.pop(place)
            return arguments.pop(place)
    return None
