"""`best/`: replaced by better readings alone, whole or not there, and found again after a kill."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import open_context, save_model, tiny_config

from r1fast.best_model import BestModel
from r1fast.checks import keeps_best
from r1fast.config import Config, ConfigError
from r1fast.console import Console
from r1fast.context import RunContext
from r1fast.disk import TEXT_BYTES, run_bytes
from r1fast.options import parse

STAGE = "r1_zero"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    model = save_model(tmp_path_factory.mktemp("model"))
    return tiny_config(model, run__keep_best="accuracy", rl__dev_every_steps=1)


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def context(config: Config, tmp_path: Path, said: io.StringIO) -> Iterator[RunContext]:
    with open_context(config, tmp_path) as opened:
        yield replace(opened, console=Console(stream=said))


def offer(best: BestModel, step: int, accuracy: float) -> dict[str, float]:
    def write(directory: Path) -> None:
        (directory / "model.safetensors").write_text(str(step))

    found = best.offer(step, {"dev/accuracy": accuracy, "dev/format": 1.0}, lambda: write)
    assert ("time/best_s" in found) == bool(found)
    return {name: value for name, value in found.items() if not name.startswith("time/")}


def never() -> Callable[[Path], None]:
    raise AssertionError("nothing is to be gathered for a model that is not kept")


def kept(context: RunContext) -> tuple[str, dict[str, object]]:
    path = context.directory(STAGE) / "best"
    return (path / "model.safetensors").read_text(), json.loads((path / "best.json").read_text())


def test_better_readings_replace_it_and_equal_ones_do_not(context: RunContext) -> None:
    best = BestModel(context, STAGE)
    assert offer(best, 1, 0.0) == {"best_step": 1}
    assert offer(best, 2, 0.5) == {"best_step": 2}
    assert offer(best, 3, 0.25) == {} and offer(best, 4, 0.5) == {}
    assert kept(context) == ("2", {"metric": "accuracy", "value": 0.5, "step": 2})


def test_it_goes_on_from_what_is_there(context: RunContext) -> None:
    offer(BestModel(context, STAGE), 7, 0.5)
    best = BestModel(context, STAGE)  # the run was killed, steps 3 to 7 come again
    assert best.value == 0.5
    assert offer(best, 3, 0.25) == {} and offer(best, 7, 0.5) == {}
    assert kept(context)[0] == "7"
    assert offer(best, 8, 0.75) == {"best_step": 8}


def test_a_kill_between_two_renames_leaves_the_best_one(context: RunContext) -> None:
    offer(BestModel(context, STAGE), 7, 0.5)
    path = context.directory(STAGE) / "best"
    path.replace(path.with_name("best.old"))
    assert BestModel(context, STAGE).value == 0.5 and kept(context)[0] == "7"


def test_another_metric_begins_anew_and_a_damaged_record_is_named(context: RunContext, said: io.StringIO) -> None:
    offer(BestModel(context, STAGE), 7, 0.5)
    other = replace(context, config=replace(context.config, run=replace(context.config.run, keep_best="format")))
    assert BestModel(other, STAGE).value is None
    (context.directory(STAGE) / "best" / "best.json").write_text("{")
    assert BestModel(context, STAGE).value is None
    assert "best.json cannot be read" in said.getvalue()


def test_a_reading_without_the_metric_is_said_once(context: RunContext, said: io.StringIO) -> None:
    best = BestModel(context, STAGE)
    for step in (1, 2):
        assert best.offer(step, {"dev/format": 1.0}, never) == {}
    assert said.getvalue().count("run.keep_best = 'accuracy'") == 1
    assert not (context.directory(STAGE) / "best").exists()


def test_a_write_that_fails_leaves_the_one_before(context: RunContext) -> None:
    best = BestModel(context, STAGE)
    offer(best, 1, 0.5)

    def full(directory: Path) -> None:
        (directory / "model.safetensors").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        best.offer(2, {"dev/accuracy": 0.75}, lambda: full)
    assert kept(context)[0] == "1"


def test_off_writes_nothing(config: Config, tmp_path: Path) -> None:
    with open_context(replace(config, run=replace(config.run, keep_best="off")), tmp_path) as context:
        assert offer(BestModel(context, STAGE), 1, 0.5) == {}
        assert not (context.directory(STAGE) / "best").exists()


def test_a_run_that_never_reads_dev_is_refused_and_disk_is_counted() -> None:
    words = ["--run.keep_best", "accuracy", "--pipeline.stages", "r1_zero", "--rl.dev_every_steps"]
    with pytest.raises(ConfigError, match=r"run.keep_best = 'accuracy', but no stage .* set rl.dev_every_steps"):
        parse([*words, "0"])
    config = parse([*words, "10"]).config
    assert keeps_best(config, "r1_zero") and not keeps_best(config, "sft_1") and not keeps_best(config, "evaluation")
    without = replace(config, run=replace(config.run, keep_best="off"))
    need, less = (
        run_bytes(c, ["r1_zero"], num_params=1000, student_params=0, compute_bytes=4) for c in (config, without)
    )
    assert need - less == 4000 and less > TEXT_BYTES
    with pytest.raises(ConfigError, match="keep_best"):
        parse(["--run.keep_best", "loss"])
