"""Samples of a finished model in parts: order, what an interruption keeps, and several processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_run import ScriptedEngine, open_context, save_model, tiny_config

from r1fast.context import RunContext
from r1fast.metrics import read_metrics
from r1fast.records import Prompt, ScoredRollout
from r1fast.sampling import Sampling
from r1fast.scorer import Scorer
from r1fast.stages.harvest import BATCHES_PER_PART, Harvest, Judged

STAGE = "rejection"
SAMPLES = 4
SAMPLING = Sampling(temperature=1.0, max_tokens=12, stage=STAGE, visit=0)


def script(prompt: Prompt, number: int) -> str:
    return f"<think> {number} </think> <answer> {prompt.answer if number % 2 else 'none'} </answer>"


def judge(item: ScoredRollout) -> tuple[str, str]:
    return ("kept" if item.parts["accuracy"] else "wrong"), item.rollout.text


def new_context(folder: Path, **options: object) -> RunContext:
    model = folder / "model"
    if not model.exists():
        save_model(model)
    return open_context(tiny_config(model, data__num_train=80, **options), folder / "run")


class Counting:
    """A review that counts what it is shown, and asks no one."""

    last_error = ""
    num_shown = 0

    def __call__(
        self, scored: Sequence[ScoredRollout], verdicts: Sequence[tuple[str, str]], scorer: Scorer
    ) -> list[tuple[str, str]]:
        self.num_shown += len(scored)
        return list(verdicts)

    def take_metrics(self) -> dict[str, float]:
        shown, self.num_shown = self.num_shown, 0
        return {"judge/calls_count": shown}


def harvest(
    context: RunContext, script: object = script, prompts: Sequence[Prompt] = ()
) -> tuple[list[Judged], ScriptedEngine]:
    """80 prompts, or those given; a part is 32 of them, whatever the number of ranks is."""
    engine = ScriptedEngine(script)  # type: ignore[arg-type]
    engine.rows = 16 // context.ranks.world_size
    assert BATCHES_PER_PART * 16 // SAMPLES == 32
    whole = Harvest(
        context=context,
        stage=STAGE,
        engine=engine,  # type: ignore[arg-type]
        sampling=SAMPLING,
        samples_per_prompt=SAMPLES,
        judge=judge,
        review=Counting(),
    )
    found = whole.run(prompts or context.source.prompts("train"))
    assert whole.costs == {"judge/calls_count": len(found)}  # of all ranks, and of parts that were finished before
    assert prompts or len(found) == 80 * SAMPLES
    return found, engine


def expected(context: RunContext) -> list[Judged]:
    return [
        (prompt, "kept" if number % 2 else "wrong", script(prompt, number))
        for prompt in context.source.prompts("train")
        for number in range(SAMPLES)
    ]


def test_all_samples_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    with new_context(tmp_path) as context:
        found, engine = harvest(context)
        assert found == expected(context)
    assert [len(ids) for ids, _, _ in engine.calls] == [32, 32, 16]
    lines = read_metrics(tmp_path / "run")
    assert [(line["step"], line["rejection/samples"], line["rejection/kept"]) for line in lines] == [
        (1, 128.0, 0.5),
        (2, 128.0, 0.5),
        (3, 64.0, 0.5),
    ]


def test_a_prompt_that_comes_again_is_sampled_once(tmp_path: Path) -> None:
    """What takes the place of another may come in the same part, in a later one, or be all that a part has."""
    with new_context(tmp_path) as context:
        all_prompts = context.source.prompts("train")
        drawn = [*all_prompts[:20], *all_prompts[8:20], *all_prompts[:32], *all_prompts[:32], *all_prompts[31:33]]
        found, engine = harvest(context, prompts=drawn)
        assert found == expected(context)[: 33 * SAMPLES]
        context.truncate(STAGE, 0)
        again, idle = harvest(context, prompts=drawn)
    assert [len(ids) for ids, _, _ in engine.calls] == [20, 12, 1]
    assert again == found and not idle.calls
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 4]


def test_finished_parts_are_not_sampled_again(tmp_path: Path) -> None:
    last = 70

    def dying(prompt: Prompt, number: int) -> str:
        if prompt.id == prompts[last].id:
            raise KeyboardInterrupt
        return script(prompt, number)

    with new_context(tmp_path) as context:
        prompts = context.source.prompts("train")
        with pytest.raises(KeyboardInterrupt):
            harvest(context, dying)
    with new_context(tmp_path) as context:
        context.truncate(STAGE, 0)
        found, engine = harvest(context)
        assert found == expected(context)
    assert [ids for ids, _, _ in engine.calls] == [[prompt.id for prompt in prompts[64:]]]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3]


def test_a_corrupt_part_is_sampled_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new_context(tmp_path) as context:
        harvest(context)
        path = context.state_folder(STAGE).find_part("prompts-32-64")
        assert path is not None
        path.write_bytes(path.read_bytes()[:-1])
        context.truncate(STAGE, 0)
        found, engine = harvest(context)
        assert found == expected(context)
        assert [ids for ids, _, _ in engine.calls] == [[p.id for p in context.source.prompts("train")[32:64]]]
    assert "prompts-32-64 is done again" in capsys.readouterr().out


WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
from r1fast.distributed import start
from test_harvest import expected, harvest, new_context

ranks = start("cpu")
context = replace(new_context(Path(sys.argv[1]) / str(ranks.rank)), ranks=ranks)
found, engine = harvest(context)
assert found == expected(context)
assert [len(ids) for ids, _, _ in engine.calls] == [16, 16, 8]
ranks.shutdown()
"""


def test_two_processes_find_the_same(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join(str(Path(__file__).parents[number]) for number in (0, 1))
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": paths}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
