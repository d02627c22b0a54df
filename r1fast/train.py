"""The main job: `torchrun -m r1fast.train`, `python -m r1fast.train` and `r1fast train` are the same.

Exit codes: 0 done or saved on SIGTERM, 2 bad input, 1 failure.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from r1fast.atomic import atomic_file
from r1fast.config import Config, ConfigError
from r1fast.launcher import die_with_launcher
from r1fast.options import Invocation, differing_engine, differing_keys, help_text, parse, read_config, to_toml
from r1fast.stop import Stopped, StopRequest

T = TypeVar("T")
FAILURE = 1
BAD_INPUT = 2
SIGNAL_SPREAD_S = 1.0  # within which a launcher's SIGTERM reaches all ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, set up, run or continue; returns the exit code. SIGTERM is no failure, from the first moment on."""
    die_with_launcher()
    _let_threads_sleep()
    _use_huge_pages()
    arguments, stop = list(sys.argv[1:] if argv is None else argv), StopRequest()
    try:
        with stop.listening():
            return _main(arguments, stop)
    except Stopped:
        if os.environ.get("RANK", "0") == "0":
            print("r1fast: stopped by SIGTERM; the same command continues the run", file=sys.stderr, flush=True)
        return 0


def _let_threads_sleep() -> None:
    """Idle OpenMP threads must not spin long: on a busy machine that costs several times the work itself.

    But a decode step has hundreds of short parallel parts, and waking a thread for each takes a fifth of its time:
    GNU's threads spin some 0.2 ms first. OMP_WAIT_POLICY and GOMP_SPINCOUNT of the user stand.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def _use_huge_pages() -> None:
    """PyTorch's large tensors on a CPU lie on huge pages where Linux has them: it takes them afresh from the system for
    every step, and the system is up to five times as long about as many small pages. The user's own setting stands.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _main(arguments: Sequence[str], stop: StopRequest) -> int:
    try:
        invocation = parse(arguments)
    except ConfigError as error:
        return _refuse(error, leads=os.environ.get("RANK", "0") == "0")
    if invocation.wants_help:
        print(help_text())
        return 0
    if invocation.dry_run:
        return _dry_run(invocation.config)
    return _train(invocation, stop)


def run_directory(invocation: Invocation) -> Path:
    """[run] dir, or runs/RECIPE."""
    config = invocation.config
    name = config.run.name or Path(invocation.recipe).name.removesuffix(".toml")
    return Path(config.run.dir).expanduser() if config.run.dir else Path("runs") / name


def _refuse(error: Exception, *, leads: bool = True) -> int:
    """Say what is wrong with the input, once for all processes."""
    if leads:
        print(f"r1fast: {error}", file=sys.stderr, flush=True)
    return BAD_INPUT


def _dry_run(config: Config) -> int:
    from rich.console import Console

    from r1fast.checks import check_device
    from r1fast.context import local_device
    from r1fast.plan import print_plan
    from r1fast.preflight import check_backend
    from r1fast.start import plan_of
    from r1fast.training_checks import check_offload

    try:
        plan = plan_of(config)
    except ConfigError as error:
        return _refuse(error)
    print_plan(plan, Console())
    stages, device = config.pipeline.stages, local_device(config).type
    checks: list[Callable[[], None]] = [
        lambda: check_offload(config, stages, device),
        lambda: check_device(config, device),
        lambda: check_backend(config, stages),
    ]
    for check in checks:
        try:
            check()
        except ValueError as error:  # a plan may be for other machines
            print(f"r1fast: here it would not start: {error}", file=sys.stderr, flush=True)
    return 0


def _train(invocation: Invocation, stop: StopRequest) -> int:
    from r1fast import distributed
    from r1fast.preflight import check_run
    from r1fast.start import open_run, open_source
    from r1fast.watchdog import Watchdog

    config, run_dir = invocation.config, run_directory(invocation)
    _set_threads(config)
    try:
        ranks = distributed.start(config.run.device)
    except ValueError as error:  # may be this process's alone: its GPU is not there
        return _refuse(error)
    try:
        source = _each(ranks, lambda: open_source(config))
        size = ranks.world_size
        _first(ranks, lambda: check_run(config, run_dir, source, device=ranks.device, world_size=size))
        with _each(ranks, lambda: distributed.lock_run_dir(run_dir, ranks.rank)):
            _first(ranks, lambda: _claim(config, run_dir))
            stage = partial(_current_stage, config, run_dir)
            with Watchdog(ranks, config.faults, run_dir, stop=stop, stage=stage):
                return _run(open_run(config, run_dir, ranks, stop, source=source))
    except RefusedByAll as error:
        return _refuse(error, leads=ranks.rank == 0)
    except ConfigError as error:  # may be this process's alone: what it cannot read lies on another machine's disk
        return _refuse(ConfigError(f"rank {ranks.rank}: {error}") if ranks.rank else error)
    except distributed.RankLost as error:
        if not stop.requested:
            time.sleep(SIGNAL_SPREAD_S)  # it raises if the signal reached another rank first
            return _failed(config, run_dir, error)
        raise Stopped from None
    except Stopped:
        raise
    except Exception as error:
        return _failed(config, run_dir, error)
    finally:
        ranks.shutdown()


class RefusedByAll(ConfigError):
    """Bad input that every process knows of: rank 0 says it for all."""


def _each(ranks: Any, work: Callable[[], T]) -> T:
    """What `work` gives this rank; all refuse what one of them refuses, and say whose it is."""
    result, problem = None, None
    try:
        result = work()
    except ConfigError as error:
        problem = str(error)
    problems = ranks.gather_objects(problem)
    if any(problems):
        rank, text = next((rank, text) for rank, text in enumerate(problems) if text)
        raise RefusedByAll(text if len(set(problems)) == 1 else f"rank {rank}: {text}")
    return cast("T", result)


def _first(ranks: Any, work: Callable[[], None]) -> None:
    """Rank 0 does it while the others wait; all refuse what it refuses, so that none is left behind."""
    problem = None
    if ranks.rank == 0:
        try:
            work()
        except ConfigError as error:
            problem = str(error)
    problem = ranks.broadcast_object(problem)
    if problem is not None:
        raise RefusedByAll(problem)


def _failed(config: Config, run_dir: Path, error: Exception) -> int:
    """Note how the run ended; a full disk is explained, anything else goes on as it is."""
    from r1fast.disk import is_disk_full
    from r1fast.failure import write_failure

    stage = _current_stage(config, run_dir)
    write_failure(run_dir, stage, error)
    if not is_disk_full(error, run_dir):
        raise error
    print(
        f"r1fast: the disk of {run_dir} is full, stage {stage} stopped; what was saved before is intact: free some "
        "space there, and the same command continues",
        file=sys.stderr,
        flush=True,
    )
    return FAILURE


def _current_stage(config: Config, run_dir: Path) -> str:
    from r1fast.run_dir import unfinished_stages

    return next(iter(unfinished_stages(config, run_dir)), "")


def _run(context: Any) -> int:
    from r1fast.distributed import RankLost
    from r1fast.pipeline import run_pipeline

    with context:
        try:
            whole = run_pipeline(context)
        except (RankLost, Stopped):  # a launcher's SIGTERM follows the loss of a process within moments
            with context.stop.held():
                _save_what_is_done(context)
            raise
        if context.ranks.rank == 0:
            show(context, whole)
    return 0


def _save_what_is_done(context: Any) -> None:
    """The run ends here: the state between two steps, where rank 0 has it whole, is not lost with it."""
    try:
        saved = context.ranks.pulse.safe.save()
    except Exception as error:  # the run ends of something else, which is on its way to the user
        context.console.warn(f"what was done could not be saved ({type(error).__name__}: {error})")
    else:
        if saved:
            context.console.note(f"saved {saved}")


def show(context: Any, whole: dict[str, Any]) -> None:
    """The closing table, the paper's curves, and where everything is."""
    from r1fast.metrics import read_metrics

    if whole["eval"]:
        context.console.table(whole["eval"])
    context.console.sparklines(read_metrics(context.run_dir))
    for name, pair in whole["pairs"].items():
        low, high = pair["ci"]
        context.console.note(
            f"pass@1 {name}: {pair['mean']:+.3f} [{low:+.3f}, {high:+.3f}] over {pair['num_problems']} problems"
        )
    minutes, gib = whole["wall_s"] / 60, whole["peak_pss_bytes"] / 2**30
    context.console.note(
        f"{minutes:.1f} minutes, {gib:.2f} GiB at the peak (whole process tree); everything is in {context.run_dir}"
    )


def _claim(config: Config, run_dir: Path) -> None:
    """Write config.toml, or refuse a directory that another recipe has used."""
    from r1fast.failure import clear_failure

    path = run_dir / "config.toml"
    if config.scoring.custom:
        from r1fast.config import user_input
        from r1fast.rewards.custom import record_custom

        with user_input():
            record_custom(config.scoring.custom, run_dir)
    if path.exists():
        before = read_config(path)
        keys = differing_keys(before, config)
        if keys:
            raise ConfigError(
                f"{run_dir} holds a run with another recipe; it differs in {', '.join(keys)}. "
                "Give --run.dir another directory, or the options it was started with"
            )
        engine = differing_engine(before, config)
        if engine:
            print(f"r1fast: {run_dir} was begun with another {', '.join(engine)}; it goes on, equal but for rounding")
        clear_failure(run_dir)
        return
    from r1fast.pipeline import versions

    about = {**versions(), "command": shlex.join(["python", "-m", "r1fast.train", *sys.argv[1:]])}
    with atomic_file(path) as file:
        file.write(to_toml(config, about))


def _set_threads(config: Config) -> None:
    import torch

    if config.run.threads:
        torch.set_num_threads(config.run.threads)


if __name__ == "__main__":
    sys.exit(main())
