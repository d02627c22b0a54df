"""Threads of a rollout: as many as asked within the process's share, and none of it shows in the samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from r1fast.context import load_model
from r1fast.options import parse
from r1fast.records import Prompt
from r1fast.rollout.cpu_threads import cpu_threads
from r1fast.rollout.engine import RolloutEngine
from r1fast.sampling import Sampling


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Outside; and a machine of four cores, so that threads are what is asked for anywhere."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("wanted", "processes", "threads"), [(0, 1, 1), (2, 1, 2), (9, 1, 4), (2, 2, 2), (4, 3, 1)])
def test_a_process_takes_its_share(wanted: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    with cpu_threads(wanted):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 1


def test_an_exception_gives_the_threads_back() -> None:
    with pytest.raises(KeyError), cpu_threads(3):
        raise KeyError
    assert torch.get_num_threads() == 1


def test_samples_are_the_same_and_the_caller_keeps_its_threads(tmp_path: Path) -> None:
    """The teacher of tiny, whose products are wide enough for several threads, in a batch of a hundred rows."""
    policy = load_model(parse(["--recipe", "tiny"]).config, tmp_path, "base", torch.device("cpu"))
    prompts = [Prompt(id=f"p{n}", text="", token_ids=tuple(range(5, 25 + n))) for n in range(12)]
    sampling = Sampling(temperature=1.0, top_p=0.95, max_tokens=24, stage="rl_1", visit=0)
    found = []
    for threads in (0, 2, 3):
        rollouts = []
        for group in RolloutEngine(policy, rows=96, seed=0, threads=threads).groups(prompts, 8, sampling):
            assert torch.get_num_threads() == 1  # scoring and training between two looks
            rollouts += group
        found.append(sorted((r.prompt.id, r.sample_index, r.token_ids.tolist(), r.logp.tolist()) for r in rollouts))
    assert found[0] == found[1] == found[2]
