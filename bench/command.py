"""The command line of every kernel bench: run its cases, print tables, write JSON after every case, end with a line."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.device import H100_BYTES_PER_S, H100_FLOPS, describe, predicted_s
from bench.harness import Case, Measured, Settings, WrongResult, measure
from r1fast.atomic import atomic_file

Cases = Callable[[str, str], Iterable[Case]]
Record = dict[str, Any]
MIB = 1 << 20
PATHS = ("json", "model", "vllm_python", "trl_python")  # options that name files of one machine


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every bench takes."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--json", type=Path, metavar="FILE", help="write everything there, after every case")
    found.add_argument("--quick", action="store_true", help="the shapes that figures are judged at, fewer rounds")
    found.add_argument("--tiny", action="store_true", help="shapes that show that it runs, and nothing else")
    found.add_argument("--rounds", type=int, help="of each variant at most (a GPU: 20, a CPU: 7, quick: 3)")
    found.add_argument("--case-s", type=float, default=60.0, help="seconds of timed rounds a case, 3 rounds at least")
    found.add_argument("--budget-s", type=float, default=3600.0, help="seconds after which no further case begins")
    found.add_argument("--threads", type=int, nargs="+", default=[1], help="of a CPU, one table each")
    found.add_argument("--kinds", nargs="+", default=list(Settings.kinds), choices=Settings.kinds, help="of variants")
    found.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    found.add_argument("--list", choices=("cpu", "cuda"), help="a device's cases and what they must reach; runs none")
    found.add_argument("--no-line", action="store_true", help="leave the closing line of JSON out")
    return found


def settings_of(options: argparse.Namespace, threads: int) -> Settings:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = options.rounds or (3 if options.quick or options.tiny else 20 if device == "cuda" else 7)
    size = "tiny" if options.tiny else "quick" if options.quick else "full"
    return Settings(
        device=device,
        rounds=rounds,
        budget_s=options.case_s,
        threads=threads,
        kinds=tuple(options.kinds),
        memory=not options.no_memory and threads == options.threads[0],
        size=size,
    )


def main(module: str, cases: Cases) -> None:
    """Run a bench that has no options of its own."""
    run(module, cases, parser(sys.modules["__main__"].__doc__).parse_args())


def run(module: str, cases: Cases, options: argparse.Namespace) -> None:
    """Run a bench. Exits with 1 where one of our kernels is wrong."""
    if options.list:
        listing(cases(options.list, "tiny" if options.tiny else "quick" if options.quick else "full"))
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a table is seen when it is done, in a file too
    console = Console(width=None if sys.stdout.isatty() else 150)
    all_settings = [settings_of(options, threads) for threads in options.threads]
    device = all_settings[0].device
    record: Record = {"bench": module.removeprefix("bench.bench_")}
    record |= describe(device)
    record["settings"] = {key: value for key, value in vars(options).items() if key not in PATHS}
    record["cases"], record["wrong"] = [], []
    start = time.perf_counter()
    for settings in all_settings if device == "cpu" else all_settings[:1]:
        for case in cases(device, settings.size):
            found = run_case(module, case, settings, console, left_s=options.budget_s - time.perf_counter() + start)
            record["cases"].append(found)
            if "wrong" in found:
                record["wrong"].append(found["wrong"])
            write(options.json, record)
    if device == "cpu" and not options.tiny:
        record["predicted"] = predict(cases("cuda", "quick" if options.quick else "full"), console)
    record["seconds"] = round(time.perf_counter() - start, 1)
    write(options.json, record)
    if not options.no_line:
        print(json.dumps(record), flush=True)
    if record["wrong"]:
        sys.exit(1)


def listing(cases: Iterable[Case]) -> None:
    """Every case with the figures that it is judged by."""
    for case in cases:
        print(f"{case.label}: {case.flops / 1e9:,.1f} GFLOP, {case.num_bytes / MIB:,.1f} MiB at least")
        for figure in case.figures(Measured({}, {})):
            print(f"  {figure.line} must be {'>=' if figure.at_least else '<='} {figure.limit:g}")


def run_case(module: str, case: Case, settings: Settings, console: Console, *, left_s: float) -> Record:
    """What a case gave, as it is written; a case that comes after the budget says so."""
    threads = {"threads": settings.threads} if settings.device == "cpu" else {}
    found: Record = {"label": case.label, "shape": case.shape, "dtype": case.dtype, **threads}
    found |= {"flops": case.flops, "bytes": case.num_bytes} | ({"tokens": case.tokens} if case.tokens else {})
    if left_s <= 0:
        console.print(f"{case.label}: left out, the budget is used up")
        return found | {"left_out": "the budget was used up"}
    try:
        rows, figures = measure(module, case, settings)
    except WrongResult as error:
        console.print(f"[bold red]WRONG[/] {case.label}: {error}")
        return found | {"wrong": f"{case.label}: {error}"}
    found["rows"], found["figures"] = [rounded(row) for row in rows], [figure.record() for figure in figures]
    console.print(table(found))
    for row in found["rows"]:
        if "phases_s" in row:
            phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in row["phases_s"].items())
            console.print(f"  {row['variant']}: {phases}")
    for figure in found["figures"]:
        console.print(line(figure))
    return found


def rounded(values: Record) -> Record:
    """Four significant digits."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = rounded(value)
        found[key] = float(f"{value:.4g}") if isinstance(value, float) else value
    return found


def line(figure: Record) -> str:
    word = {True: "met", False: "MISSED", None: "not measured"}[figure["met"]]
    sign = ">=" if figure["at_least"] else "<="
    value = "-" if figure["value"] is None else f"{figure['value']:.3f}"
    return f"  {word:<12} {figure['line']}: {value} (must be {sign} {figure['limit']:g})"


def table(found: Record) -> Table:
    """Times, ratios, memory and errors of one case."""
    threads = f", {found['threads']} thread(s)" if "threads" in found else ""
    about = f"{found['flops'] / 1e9:,.1f} GFLOP, {found['bytes'] / MIB:,.1f} MiB at least"
    shown = Table(title=f"{found['label']}{threads} ({about})", title_justify="left")
    whole = "tokens" in found  # a case of whole processes: tokens a second and their peaks stand for memory and errors
    memory = ("tokens/s", "peak MiB") if whole else ("% of ceiling", "extra MiB", "scratch", "error")
    for name in ("variant", "time", "least-most", "x ours", *memory, "status"):
        shown.add_column(name, justify="left" if name in ("variant", "status") else "right", overflow="fold")
    for row in found["rows"]:
        status = row["status"] if row["status"] != "ok" else ""
        if row.get("launches") is not None:
            status = f"{status} {row['launches']} launch(es)".strip()
        shown.add_row(
            row["variant"],
            duration(row.get("median_s")),
            f"{duration(row['least_s'])}-{duration(row['most_s'])}" if "least_s" in row else "",
            f"{row['over_own']:.2f}" if "over_own" in row else "",
            *(_of_processes(row) if whole else _of_kernels(row)),
            "; ".join(part for part in (status, row["note"]) if part),
        )
    return shown


def _of_processes(row: Record) -> tuple[str, ...]:
    return (
        f"{row['tokens_per_s']:,.0f}" if "tokens_per_s" in row else "",
        f"{row['peak_bytes'] / MIB:,.0f}" if row.get("peak_bytes") else "",
    )


def _of_kernels(row: Record) -> tuple[str, ...]:
    errors = row.get("errors") or {}
    return (
        f"{100 * row['of_ceiling']:.0f}" if "of_ceiling" in row else "",
        f"{row['extra_bytes'] / MIB:,.0f}" if "extra_bytes" in row else "",
        f"{row['scratch_bytes'] / MIB:,.0f}" if "scratch_bytes" in row else "",
        f"{max(errors.values()):.1e}" if errors else "",
    )


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds:.3f} s"
        if seconds >= 1
        else f"{1e3 * seconds:.2f} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.1f} us"
    )


def predict(cases: Iterable[Case], console: Console) -> list[Record]:
    """No measurement: bytes and FLOPs of the cases of a GPU, and the time at an H100's measured ceilings."""
    title = (
        f"PREDICTED, not measured: time of an H100 at {H100_FLOPS / 1e12:.0f} TFLOP/s and "
        f"{H100_BYTES_PER_S / 1e12:.1f} TB/s (no GPU here)"
    )
    shown = Table("case", title=title, title_justify="left")
    for name in ("TFLOP", "GiB", "predicted"):
        shown.add_column(name, justify="right")
    found = []
    for case in cases:
        seconds = predicted_s(case.flops, case.num_bytes)
        found.append({"label": case.label, "shape": case.shape, "flops": case.flops, "bytes": case.num_bytes})
        found[-1]["predicted_s"] = float(f"{seconds:.4g}")
        shown.add_row(case.label, f"{case.flops / 1e12:.3f}", f"{case.num_bytes / 2**30:.3f}", duration(seconds))
    if found:
        console.print(shown)
    return found


def write(path: Path | None, record: Record) -> None:
    """All there is so far."""
    if path is not None:
        with atomic_file(path) as file:
            json.dump(record, file, indent=1)
            file.write("\n")
