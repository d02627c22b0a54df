"""A step that is given up is written down, and comes out the same when it is replayed."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_model import random_sequences
from tiny_run import open_context, save_model, tiny_config, without_times

from r1fast import replay
from r1fast.config import Config, ConfigError
from r1fast.distributed_config import DistributedConfig
from r1fast.metrics import read_metrics
from r1fast.packing import pack
from r1fast.stages import rl
from r1fast.stages.minibatches import Minibatch, split_rollout
from r1fast.stages.rl import RLLoop, run_rl
from r1fast.step_dump import dump_directory, read_dump
from r1fast.step_guard import StepGuard


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def config_of(model: Path, **options: Any) -> Config:
    return tiny_config(
        model,
        stages__r1_zero__steps=4,
        rl__dev_every_steps=0,
        rl__lr=1e-2,
        rewards__math__language_any=1.0,
        optimizer__micro_batch_tokens=150,
        data__num_train=64,
        run__save_every_steps=1,
        **options,
    )


def run(config: Config, directory: Path) -> list[Any]:
    """The stage, from where it is; its figures but for times."""
    with open_context(config, directory) as context:
        context.console.stage_start("r1_zero", 4)
        run_rl(context, "r1_zero")
    return without_times(read_metrics(directory))


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of the steps (from 1) in which an advantage is NaN: what no check of values has caught."""
    steps: list[int] = []
    made = 0

    def split(*arguments: Any) -> list[Minibatch]:
        nonlocal made
        minibatches = split_rollout(*arguments)
        made += 1
        if made in steps:
            minibatches[0].batches[1].advantage[1] = math.nan
        return minibatches

    monkeypatch.setattr(rl, "split_rollout", split)
    yield steps


def test_a_bad_update_is_skipped_counted_and_the_run_goes_on(model: Path, tmp_path: Path, poison: list[int]) -> None:
    poison.append(3)
    lines = run(config_of(model), tmp_path)
    assert [line.get("r1_zero/skipped_updates") for line in lines] == [None, None, 1.0, 1.0]
    assert math.isnan(lines[2]["r1_zero/loss"]) and math.isnan(lines[2]["r1_zero/grad_norm"])
    assert math.isfinite(lines[3]["r1_zero/loss"]) and lines[3]["r1_zero/grad_norm"] > 0


def test_a_skipped_update_changes_nothing_but_the_count(model: Path, tmp_path: Path, poison: list[int]) -> None:
    poison.append(1)
    with open_context(config_of(model), tmp_path) as context:
        context.console.stage_start("r1_zero", 4)
        loop = RLLoop(context, "r1_zero")
        before = [master.clone() for master in loop.trainer.state_dict()["masters"]]
        loop._rollout_and_update()
        assert (loop.step, loop.trainer.num_steps, loop.policy.version, loop.guard.num_skipped) == (1, 0, 0, 1)
        assert all(map(torch.equal, before, loop.trainer.state_dict()["masters"]))
        loop._rollout_and_update()
        assert (loop.step, loop.trainer.num_steps, loop.policy.version, loop.guard.num_skipped) == (2, 1, 1, 1)


def test_a_resumed_run_knows_what_it_has_skipped(model: Path, tmp_path: Path, poison: list[int]) -> None:
    poison.append(2)
    whole = run(config_of(model), tmp_path / "whole")
    short = config_of(model, faults__max_skips=3)
    with open_context(short, tmp_path / "cut") as context:
        context.console.stage_start("r1_zero", 4)
        poison[:] = [len(whole) + 2]
        loop = RLLoop(context, "r1_zero")
        for _ in range(3):
            loop._rollout_and_update()
            loop.progress.step_done(loop.step, lambda: loop._state(loop._positions()))
    poison.clear()
    assert str(run(short, tmp_path / "cut")) == str(whole)  # NaN is not equal to itself


def stopped(config: Config, directory: Path) -> tuple[str, Path]:
    """What a stage that gives a step up says, and where it wrote the step."""
    with pytest.raises(RuntimeError, match="r1fast replay") as caught:
        run(config, directory)
    return str(caught.value), Path(str(caught.value).rpartition(" ")[2])


def test_a_step_that_is_given_up_is_replayed(
    model: Path, tmp_path: Path, poison: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    poison.append(2)
    config = config_of(model, faults__max_skips=0)
    said, directory = stopped(config, tmp_path)
    assert said.startswith("r1_zero, step 2: the loss is nan at step 1") and "nothing was updated" in said
    assert directory == dump_directory(tmp_path, "r1_zero", 2)
    dumps, weights = read_dump(directory)
    (dump,) = dumps
    assert (dump.step, dump.world_size, weights["num_steps"]) == (2, 1, 1) and math.isnan(dump.loss_sum)
    capsys.readouterr()
    assert replay.replay(dumps, weights, config.for_stage("r1_zero"), tmp_path, "cpu") == 0
    out = capsys.readouterr().out
    assert out.count("not finite") == 1 and out.count("sequence ") == 1
    assert "      sequence 2 (" in out and "advantage nan): loss nan, gradient nan" in out
    assert "loss nan, recorded nan; gradient nan, recorded nan: reproduced" in out


def test_a_replay_gives_the_very_loss_and_gradient(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StepGuard, "_spike", lambda self: 1e-9)  # every gradient is a spike
    config = config_of(model, faults__max_skips=0, faults__spike="skip", rl__updates_per_rollout=2)
    _, directory = stopped(config, tmp_path)
    dumps, weights = read_dump(directory)
    assert replay.replay(dumps, weights, config.for_stage("r1_zero"), tmp_path, "cpu") == 0
    out = capsys.readouterr().out
    assert f"loss {dumps[0].loss_sum:.6g}, recorded {dumps[0].loss_sum:.6g}" in out and "not finite" not in out
    assert out.count(f"{dumps[0].grad_norm:.6g}") == 2
    group = replace(config, distributed=DistributedConfig(sequence_parallel=2)).for_stage("r1_zero")
    assert replay.replay([dumps[0], dumps[0]], weights, group, tmp_path, "cpu") == 0  # both had the same micro-batches
    capsys.readouterr()
    weights["masters"][0] += 0.1
    assert replay.replay(dumps, weights, config.for_stage("r1_zero"), tmp_path, "cpu") == 1
    assert "NOT reproduced" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("of_run", "asked", "found"),
    [("cpu", "cuda", "cuda"), ("cpu", "auto", "cpu"), ("cuda", "cpu", "cpu"), ("auto", "auto", "cuda")],
)
def test_the_device_that_is_asked_for_is_taken(
    of_run: str, asked: replay.Device, found: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found(Exception):
        """Where the replay would be."""

    def trainer(*arguments: Any) -> None:
        raise Found(arguments[4].type)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(replay, "_trainer", trainer)
    dumps: Any = [SimpleNamespace(stage="r1_zero")]
    with pytest.raises(Found, match=found):
        replay.replay(dumps, {}, config_of(model, run__device=of_run).for_stage("r1_zero"), tmp_path, asked)


def test_a_device_that_is_not_there_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda: there is no GPU here"):
        replay.replay([], {}, config_of(model), tmp_path, "cuda")
    with pytest.raises(SystemExit):
        replay.main([str(tmp_path), "--device", "gpu"])


def _by_deepspeed(directory: Path) -> None:
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(rl, "split_rollout", poisoned)
    options = {"distributed__engine": "deepspeed", "distributed__zero_stage": 2}
    config = config_of(save_model(directory / "model"), faults__max_skips=0, **options)
    _, dump = stopped(config, directory / "run")
    dumps, weights = read_dump(dump)
    assert not math.isfinite(dumps[0].loss_sum)
    assert replay.replay(dumps, weights, config.for_stage("r1_zero"), directory / "run", "cpu") == 0


def poisoned(*arguments: Any) -> list[Minibatch]:
    """`split_rollout` whose first sequence has an advantage that is not finite."""
    minibatches = split_rollout(*arguments)
    minibatches[0].batches[0].advantage[0] = math.inf
    return minibatches


@pytest.mark.slow
def test_a_step_of_deepspeeds_is_replayed_by_deepspeed(tmp_path: Path) -> None:
    """In a process of its own, since DeepSpeed keeps groups for as long as there is one."""
    pytest.importorskip("deepspeed")
    worker = multiprocessing.get_context("spawn").Process(target=_by_deepspeed, args=(tmp_path,))
    worker.start()
    worker.join(timeout=900)
    assert worker.exitcode == 0


@pytest.mark.parametrize("share", [False, True])
def test_unpacking_undoes_packing(share: bool) -> None:
    sequences = random_sequences(6) * 2  # each prompt twice, so that some are shared
    found = []
    for batch in pack(sequences, micro_batch_tokens=120, share_prompts=share):
        for single, span in replay.unpack(batch):
            assert torch.equal(single.targets, batch.targets[span])
            found.append(single)
    assert len(found) == len(sequences)
    for sequence in sequences:
        (expected,) = pack([sequence], micro_batch_tokens=1)
        place = next(
            n
            for n, one in enumerate(found)
            if torch.equal(one.token_ids, sequence.token_ids) and len(one.targets) == len(expected.targets)
        )
        one = found.pop(place)
        for name, value in vars(expected).items():
            assert value is None if getattr(one, name) is None else torch.equal(value, getattr(one, name)), name


def test_what_is_no_dump_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(tmp_path)]) == 2
    assert f"{tmp_path} holds no dump of a step: it has no rank-*.pt" in capsys.readouterr().err


def test_a_dump_without_a_rank_is_refused(model: Path, tmp_path: Path, poison: list[int]) -> None:
    poison.append(1)
    _, directory = stopped(config_of(model, faults__max_skips=0), tmp_path)
    values = torch.load(directory / "rank-0.pt", weights_only=True)
    torch.save({**values, "world_size": 2}, directory / "rank-0.pt")
    with pytest.raises(ValueError, match="has the parts of 1 of 2 ranks"):
        read_dump(directory)
