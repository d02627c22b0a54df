"""A run that is killed, again and again, leaves bitwise what a run leaves that was not: SIGKILL, real processes.

`pytest --slow tests/test_survival.py` kills a whole pipeline at a dozen moments (about ten minutes on two cores).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import dying
import pytest
from survival import Moment, events, launch, left_behind

from r1fast.checkpoint import StateFolder
from r1fast.metrics import read_metrics

STATE = "*/state/step-*"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]

SHORT = {
    "pipeline.stages": '["r1_zero", "cold_start", "sft_1"]',
    "rl.prompts_per_step": 2,
    "stages.r1_zero.steps": 5,
    "rl.dev_every_steps": 0,
    "sft.batch_size": 8,
    "stages.sft_1.steps": 6,
    "data.num_train": 64,
    "run.save_every_steps": 2,
    "run.tensorboard": "false",
    "run.device": "cpu",
}


def words_of(options: dict[str, object]) -> list[str]:
    return ["--recipe", "smoke", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def _in_child(log: Path, how: str, pattern: str, count: int, words: list[str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(dying.run(how, pattern, count, words))


Start = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Run SHORT in a process of its own, forked from one that has imported the libraries; exit code and output."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["r1fast.pipeline", "r1fast.start"])
    log = tmp_path_factory.mktemp("log") / "log"

    def started(run_dir: Path, how: str = "never", pattern: str = "", count: int = 1) -> tuple[int, str]:
        words = [*words_of(SHORT), "--run", str(run_dir)]
        process = context.Process(target=_in_child, args=(log, how, pattern, count, words))
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode, log.read_text(encoding="utf-8")

    return started


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that is not killed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    code, output = start(run_dir)
    assert code == 0, output
    return run_dir


def without_sft(whole: Path, target: Path) -> Path:
    """A copy of the finished run in which SFT has not begun."""
    shutil.copytree(whole, target)
    shutil.rmtree(target / "stages" / "03-sft_1")
    return target


def test_a_kill_in_the_middle_of_a_state_file(whole: Path, start: Start, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert start(run_dir, "half", STATE, 2)[0] == -signal.SIGKILL  # the one after step 4
    code, output = start(run_dir)
    assert code == 0, output
    assert "r1_zero: continuing after step 2" in output
    assert left_behind(run_dir) == left_behind(whole)


def test_a_kill_in_the_middle_of_a_line_of_sft(whole: Path, start: Start, tmp_path: Path) -> None:
    run_dir = without_sft(whole, tmp_path / "run")
    assert start(run_dir, "torn", "*/metrics.jsonl", 3)[0] == -signal.SIGKILL
    code, output = start(run_dir)
    assert code == 0, output
    assert "sft_1: continuing after step 2" in output
    assert left_behind(run_dir) == left_behind(whole)


@pytest.mark.parametrize("num_corrupt", [1, 2])
def test_corrupt_states(whole: Path, start: Start, tmp_path: Path, num_corrupt: int) -> None:
    run_dir = without_sft(whole, tmp_path / "run")
    assert start(run_dir, "torn", "*/metrics.jsonl", 5)[0] == -signal.SIGKILL
    states = sorted((run_dir / "stages" / "03-sft_1" / "state").glob("step-*.pt"))
    assert [path.name[:13] for path in states] == ["step-00000002", "step-00000004"]
    for path in states[-num_corrupt:]:
        corrupt(path)
    code, output = start(run_dir)
    assert code == 0, output
    assert output.count("is corrupt") == num_corrupt and f"{states[-1]}.corrupt is corrupt" in output
    expected = "going back to the state after step 2" if num_corrupt == 1 else "the stage starts again"
    assert output.count(expected) == num_corrupt
    assert left_behind(run_dir) == left_behind(whole)


def corrupt(path: Path) -> None:
    """Turn one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def test_a_whole_pipeline_leaves_nothing_unfinished(whole: Path) -> None:
    """The comparison sees what it should see."""
    found = left_behind(whole)
    assert len(found["metrics"]) == 5 + 1 + 6
    assert {"summary.json", "stages/02-cold_start/examples.jsonl", "stages/01-r1_zero/samples.jsonl"} < set(found)
    assert "stages/03-sft_1/checkpoint/model.safetensors" in found
    assert not [name for name in found if "state" in name or "partial" in name or "corrupt" in name]


PIPELINE = {
    "rl.steps": 6,
    "stages.r1_zero.steps": 8,
    "stages.rl_1.steps": 6,
    "stages.rl_2.steps": 6,
    "stages.student_rl.steps": 6,
    "rl.updates_per_rollout": 1,
    "stages.rl_1.updates_per_rollout": 2,
    "rollout.rows": 32,
    "rl.dev_every_steps": 3,
    "rl.reference_refresh_steps": 4,
    "cold_start.prompts": 128,
    "rejection.prompts": 128,
    "stages.sft_1.steps": 8,
    "stages.sft_2.steps": 8,
    "stages.distill.steps": 12,
    "reward_model.steps": 6,
    "run.save_every_steps": 2,
    "run.device": "cpu",
}


def random_moment(rng: random.Random, most_lines: int) -> Moment:
    lines, delay_s = rng.randint(0, most_lines), round(rng.uniform(0.0, 2.0), 2)
    return Moment(f"{delay_s} s after {lines} more lines", lines=lines, delay_s=delay_s)


def moments(seed: int) -> list[Moment]:
    """In the order in which a run meets them; random ones wherever they fall."""
    rng = random.Random(seed)
    return [
        random_moment(rng, 4),
        Moment("half a state of R1-Zero", "half", "*/01-r1_zero/state/step-*", rng.randint(1, 2)),
        Moment("torn samples", "torn", "*/01-r1_zero/samples.jsonl", rng.randint(1, 2)),
        Moment("inside R1-Zero's checkpoint", "inside", "*/01-r1_zero/checkpoint*"),
        Moment("between R1-Zero's result and the summary", "after", "*/01-r1_zero/result.json"),
        Moment("before a part of the cold start has its name", "before", "*/02-cold_start/state/part-*", 2),
        Moment("torn metrics in SFT 1", "torn", "*/metrics.jsonl", rng.randint(3, 7)),
        random_moment(rng, 6),
        Moment("before RL 1's checkpoint has its name", "before", "*/04-rl_1/checkpoint"),
        Moment("half a result", "half", "*/05-rejection/result.json"),
        Moment("between SFT 2 and the next stage", "after", "*/summary.json", 2),
        Moment("half a state of the second reward model", "half", "*/07-reward_models/state/step-*", 5),
        random_moment(rng, 8),
        Moment("half a summary", "half", "*/summary.json"),
        Moment("a state just written, which the disk then damages", "after", STATE, rng.randint(2, 4)),
        random_moment(rng, 20),
        Moment("the third reading just kept", "after", "*/11-evaluation/state/part-*", 3),
        random_moment(rng, 3),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_a_pipeline_that_is_killed_again_and_again(tmp_path: Path, seed: int) -> None:
    words = words_of(PIPELINE)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = launch([sys.executable], words, whole, Moment("never"), tmp_path / "log")
    assert first.code == 0, first.output
    report, corrupted = [], 0
    for moment in moments(seed):
        ended = launch([sys.executable], words, killed, moment, tmp_path / "log")
        assert ended.code in (-signal.SIGKILL, 0), ended.output
        report.append(f"{'killed' if ended.code else 'had finished before'}: {moment.name}")
        if moment.pattern == STATE and ended.code:
            corrupt(max(killed.glob("stages/*/state/step-*"), key=lambda path: path.stat().st_mtime_ns))
            corrupted += 1
    last = launch([sys.executable], words, killed, Moment("never"), tmp_path / "log")
    assert last.code == 0, last.output
    print(*report, sep="\n")
    assert corrupted and sum(line.startswith("killed") for line in report) >= 10
    assert left_behind(killed) == left_behind(whole)
    assert events(killed) == events(whole)
    finished = launch([sys.executable], words, killed, Moment("never"), tmp_path / "log")
    assert finished.code == 0 and finished.output.count("finished before, skipped") == 12


TWO_RANKS = {
    **PIPELINE,
    "pipeline.stages": '["base", "r1_zero", "cold_start", "sft_1", "rl_1", "evaluation"]',
    "evaluation.high_temperature_samples": 0,
}
LAUNCHER = {"DYING": "launcher"}


@pytest.mark.slow
def test_two_ranks_that_are_killed_again_and_again(tmp_path: Path) -> None:
    """torchrun is killed, one of its workers is, and torchrun is terminated; no worker outlives its launcher."""
    words, rng = words_of(TWO_RANKS), random.Random(1)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = launch(TORCHRUN, words, whole, Moment("never"), tmp_path / "log")
    assert first.code == 0, first.output
    report = []
    for moment in (
        random_moment(rng, 4),
        Moment("half a state", "half", "*/01-r1_zero/state/step-*", 2, environment=LAUNCHER),
        Moment("SIGTERM", lines=2, delay_s=0.5, signal=signal.SIGTERM),
        Moment("one rank alone, torn metrics", "torn", "*/metrics.jsonl", 3),
        Moment("between stages", "after", "*/01-r1_zero/result.json", environment=LAUNCHER),
        Moment("half a part", "half", "*/02-cold_start/state/part-*", 1, environment=LAUNCHER),
        random_moment(rng, 10),
        Moment("inside RL 1's checkpoint", "inside", "*/04-rl_1/checkpoint*", environment=LAUNCHER),
        random_moment(rng, 2),
    ):
        ended = launch(TORCHRUN, words, killed, moment, tmp_path / "log")
        torchrun_fails = moment.signal == signal.SIGTERM or (moment.how != "never" and not moment.environment)
        assert ended.code in (0, 1 if torchrun_fails else -signal.SIGKILL), ended.output
        what = "killed" if ended.code else "had finished before"
        report.append(f"{what}: {moment.name}; its workers lived on for {ended.lived_on_s:.2f} s")
        if moment.signal == signal.SIGTERM:
            assert "r1fast: stopped by SIGTERM; the same command continues the run" in ended.output
            (folder,) = killed.glob("stages/*/state")
            assert StateFolder(folder.parent, pytest.fail).newest() is not None
    last = launch(TORCHRUN, words, killed, Moment("never"), tmp_path / "log")
    assert last.code == 0, last.output
    print(*report, sep="\n")
    assert sum(line.startswith("killed") for line in report) >= 8
    assert left_behind(killed) == left_behind(whole)


ELASTIC = {**SHORT, "pipeline.stages": '["r1_zero"]', "stages.r1_zero.steps": 8, "rl.prompts_per_step": 4}
ENGINES = [  # processes, engine, stage of ZeRO; each goes on from the state after two steps of the one before
    (1, "torch", 2),
    (2, "deepspeed", 3),
    (1, "deepspeed", 1),
    (2, "torch", 2),
]


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_another_engine(tmp_path: Path) -> None:
    """Killed after every second step and continued otherwise, it draws the same samples and makes the same updates."""
    pytest.importorskip("deepspeed")
    words = words_of(ELASTIC)
    whole, changed, log = tmp_path / "whole", tmp_path / "changed", tmp_path / "log"
    first = launch([sys.executable], words, whole, Moment("never"), log)
    assert first.code == 0, first.output
    for number, (processes, engine, stage) in enumerate(ENGINES):
        command = [*TORCHRUN[:-1], str(processes)] if processes > 1 else [sys.executable]
        engine_words = ["--distributed.engine", engine, "--distributed.zero_stage", str(stage)]
        moment = Moment("never") if number == 3 else Moment("a state is there", "after", STATE, 1)
        ended = launch(command, [*words, *engine_words], changed, moment, log)
        assert (ended.code == 0) == (number == 3), ended.output
        assert ("it goes on, equal but for rounding" in ended.output) == (engine == "deepspeed"), ended.output
        assert number == 0 or f"continuing after step {2 * number}" in ended.output, ended.output
    expected, found = (read_metrics(run_dir) for run_dir in (whole, changed))
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    for mine, other in zip(found, expected, strict=True):
        for key in ("r1_zero/reward", "r1_zero/length", "r1_zero/grad_norm", "r1_zero/loss"):
            assert mine[key] == pytest.approx(other[key], rel=2e-4, abs=1e-6), (mine["step"], key)
