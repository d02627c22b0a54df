"""Saving when it is due, on SIGTERM, and finding the way back: the same for every stage."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import math_prompt, open_context, save_model, scored, tiny_config

from r1fast.checkpoint import read_state
from r1fast.config import Config
from r1fast.console import Console
from r1fast.context import RunContext, read_lines
from r1fast.disk import is_disk_full
from r1fast.metrics import read_metrics
from r1fast.progress import Progress
from r1fast.stop import Stopped
from r1fast.tiny.tokenizer import build_tokenizer

STAGE = "sft_1"


@pytest.fixture(scope="module", params=["on", "off"])
def config(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Config:
    model = save_model(tmp_path_factory.mktemp("model"))
    return tiny_config(model, run__save_every_steps=3, run__async_save=request.param)


@pytest.fixture
def said() -> io.StringIO:
    """What the console shows."""
    return io.StringIO()


@pytest.fixture
def context(config: Config, tmp_path: Path, said: io.StringIO) -> Iterator[RunContext]:
    with open_context(config, tmp_path) as opened:
        context = replace(opened, console=Console(stream=said))
        context.console.stage_start(STAGE, 20)
        yield context


def do(context: RunContext, progress: Progress, *steps: int) -> None:
    for step in steps:
        context.log(STAGE, step, {"loss": float(step)})
        context.write_samples(STAGE, step, [scored(math_prompt(), "7")], build_tokenizer())
        progress.step_done(step, lambda done=step: {"weights": torch.full((2,), float(done))})  # type: ignore[misc]
    context.writer.wait()


def saved_steps(context: RunContext) -> list[int]:
    return sorted(int(path.name[5:13]) for path in context.state_folder(STAGE).path.glob("step-*.pt"))


def test_it_saves_when_it_is_due(context: RunContext) -> None:
    progress = Progress(context, STAGE)
    assert progress.resume() is None
    do(context, progress, 1, 2)
    assert saved_steps(context) == []
    do(context, progress, 4)  # a stage may take several steps at once
    assert saved_steps(context) == [4]
    do(context, progress, 5, 6, 7, 8, 9)
    assert saved_steps(context) == [6, 9]


def test_what_came_after_the_state_is_forgotten(context: RunContext) -> None:
    do(context, Progress(context, STAGE), 1, 2, 3, 4, 5)
    progress = Progress(context, STAGE)
    state = progress.resume()
    assert state is not None and state["step"] == 3 and state["weights"].tolist() == [3.0, 3.0]
    samples = context.directory(STAGE) / "samples.jsonl"
    assert [line["step"] for line in read_metrics(context.run_dir)] == [1, 2, 3]
    assert [row["step"] for row in read_lines(samples)] == [1, 2, 3]
    do(context, progress, 4, 5)
    assert saved_steps(context) == [3]  # due at 6, as it would have been without an interruption
    do(context, progress, 6)
    assert saved_steps(context) == [3, 6]


def damage(context: RunContext, step: int) -> Path:
    (path,) = context.state_folder(STAGE).path.glob(f"step-{step:08}-*.pt")
    path.write_bytes(path.read_bytes()[:-1])
    return path


def test_a_corrupt_state_costs_the_steps_since_the_one_before(context: RunContext, said: io.StringIO) -> None:
    do(context, Progress(context, STAGE), 1, 2, 3, 4, 5, 6, 7)
    path = damage(context, 6)
    state = Progress(context, STAGE).resume()
    assert state is not None and state["step"] == 3
    assert [line["step"] for line in read_metrics(context.run_dir)] == [1, 2, 3]
    output = said.getvalue()
    assert f"warning: {path}.corrupt is corrupt" in output and "going back to the state after step 3" in output


def test_without_a_whole_state_the_stage_starts_again(context: RunContext, said: io.StringIO) -> None:
    do(context, Progress(context, STAGE), 1, 2, 3, 4, 5, 6, 7)
    for step in (3, 6):
        damage(context, step)
    assert Progress(context, STAGE).resume() is None
    assert read_metrics(context.run_dir) == []
    assert read_lines(context.directory(STAGE) / "samples.jsonl") == []
    assert said.getvalue().count("the stage starts again") == 2


def test_sigterm_saves_and_stops(context: RunContext) -> None:
    progress = Progress(context, STAGE)
    with context.stop.listening(), pytest.raises(Stopped), context.stop.held():
        do(context, progress, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        do(context, progress, 2)
    assert saved_steps(context) == [2]


def test_never_unless_asked(config: Config, tmp_path: Path) -> None:
    seldom = replace(config, run=replace(config.run, save_every_steps=0))
    with open_context(seldom, tmp_path) as context:
        context.console.stage_start(STAGE, 20)
        progress = Progress(context, STAGE)
        do(context, progress, *range(1, 8))
        assert saved_steps(context) == []
        progress.save(7, {})
        assert saved_steps(context) == [7]


def test_what_is_written_behind_is_the_state_of_its_step(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training changes the weights in place while the thread writes; the next save waits for it."""
    progress, weights, going_on = Progress(context, STAGE), torch.zeros(4), threading.Event()
    behind = context.config.run.async_save == "on"
    real: Any = torch.save
    waited: list[bool] = []

    def slow(state: Any, file: Any) -> None:
        waited.append(going_on.wait(timeout=10) if behind else True)
        real(state, file)

    monkeypatch.setattr(torch, "save", slow)
    progress.step_done(3, lambda: {"weights": weights})
    assert progress.saved_step == 3 and (context.state_folder(STAGE).newest() is None) == behind
    weights.fill_(1.0)
    going_on.set()
    progress.step_done(6, lambda: {"weights": weights})
    context.writer.wait()
    assert waited == [True, True] and saved_steps(context) == [3, 6]
    states = [read_state(path) for path in sorted(context.state_folder(STAGE).path.glob("step-*.pt"))]
    assert [state["weights"].tolist() for state in states] == [[0.0] * 4, [1.0] * 4]


def test_a_write_that_fails_is_raised_by_the_next_save(
    config: Config, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(context, STAGE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        if config.run.async_save == "off":
            with pytest.raises(OSError, match="No space"):
                progress.step_done(3, dict)
            return
        progress.step_done(3, dict)
        with pytest.raises(OSError, match="No space") as found:
            progress.step_done(6, dict)
    assert is_disk_full(found.value, context.run_dir)
    progress.step_done(9, dict)
    context.writer.wait()
    assert saved_steps(context) == [9]


def test_a_process_that_must_end_waits_for_what_is_being_written(
    config: Config, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, safe, going_on = Progress(context, STAGE), context.ranks.pulse.safe, threading.Event()
    write = torch.save

    def slow(*arguments: Any, **options: Any) -> None:
        going_on.wait()
        write(*arguments, **options)

    if config.run.async_save == "off":
        going_on.set()
    monkeypatch.setattr(torch, "save", slow)
    progress.step_done(3, dict)
    if config.run.async_save == "off":
        assert not safe.is_there and saved_steps(context) == [3]
        return
    assert safe.is_there and saved_steps(context) == []
    threading.Timer(0.1, going_on.set).start()
    assert safe.save().endswith("after step 3") and saved_steps(context) == [3]


def test_a_write_that_failed_costs_only_its_own_state(
    config: Config, context: RunContext, monkeypatch: pytest.MonkeyPatch, said: io.StringIO
) -> None:
    progress, safe = Progress(context, STAGE), context.ranks.pulse.safe
    if config.run.async_save == "off":
        pytest.skip("nothing is written beside the steps")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        progress.step_done(3, dict)
        while context.writer.busy:
            time.sleep(0.01)
    progress.step_done(4, dict, alone=True)
    assert safe.save().endswith("after step 4") and saved_steps(context) == [4]
    assert "is not saved" in said.getvalue() and "No space left" in said.getvalue()


def test_auto_copies_where_twice_the_copy_is_free(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(context.config.run, async_save="auto")
    progress = Progress(replace(context, config=replace(context.config, run=run)), STAGE)
    state = {"a": torch.zeros(100), "b": [torch.zeros(25, dtype=torch.bfloat16)]}
    begun: list[object] = []
    monkeypatch.setattr(context.writer, "start", begun.append)
    monkeypatch.setattr("r1fast.progress.available_bytes", lambda: 900)
    progress.step_done(3, lambda: state)
    assert not begun and saved_steps(context) == [3]
    monkeypatch.setattr("r1fast.progress.available_bytes", lambda: 901)
    progress.step_done(6, lambda: state)
    assert len(begun) == 1 and saved_steps(context) == [3]


def test_what_saving_took_is_taken_once(context: RunContext) -> None:
    progress = Progress(context, STAGE)
    assert progress.take_save_s() == 0.0
    do(context, progress, 3)
    assert 0.0 < progress.take_save_s() < 10.0
    assert progress.take_save_s() == 0.0


def test_as_many_states_are_kept_as_asked(config: Config, tmp_path: Path) -> None:
    with open_context(replace(config, run=replace(config.run, keep_states=3)), tmp_path) as context:
        context.console.stage_start(STAGE, 20)
        do(context, Progress(context, STAGE), *range(1, 16))
        assert saved_steps(context) == [9, 12, 15]


def test_another_number_of_processes_is_said_aloud(context: RunContext, said: io.StringIO) -> None:
    do(context, Progress(context, STAGE), 3)
    Progress(context, STAGE).resume()
    assert "processes" not in said.getvalue()
    folder = context.state_folder(STAGE)
    folder.save(4, {"step": 4, "world_size": 2})
    assert Progress(context, STAGE).resume() == {"step": 4, "world_size": 2}
    assert "sft_1 was saved by 2 processes and continues with 1" in said.getvalue()


def test_parts_come_back(context: RunContext) -> None:
    part: Any = {"row": {"pass@1": 0.5, "language": None}, "per_problem": {"q": 1.0}}
    Progress(context, STAGE).save_part("reading-base", part)
    progress = Progress(context, STAGE)
    assert progress.part("reading-base") == part and progress.part("reading-r1") is None


def test_time_adds_up_over_launches(context: RunContext) -> None:
    folder = context.state_folder(STAGE)
    folder.save_elapsed(1000.0)
    progress = Progress(context, STAGE)
    do(context, progress, 3)
    first = folder.elapsed_s()
    assert 1000.0 < first < 1100.0
    do(context, progress, 6)
    assert first < folder.elapsed_s() < 1100.0  # of this launch once
    assert json.loads((folder.path / "elapsed.json").read_text()) == {"wall_s": folder.elapsed_s()}
