"""Every hostile program ends in time with its outcome; the server lives on, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from programs import HOSTILE, SECRET

from r1fast.sandbox.cases import Case
from r1fast.sandbox.client import Ended, Sandbox
from r1fast.sandbox.confine import Limits
from r1fast.sandbox.verdict import Terms, judge

TERMS = Terms(time_limit_s=0.4, memory_bytes=512 << 20, float_tolerance=0.0, partial=False)
GOOD = "print(input())"


class Watched(Sandbox):
    """A sandbox that remembers its last run of a test."""

    limits: Limits
    ended: Ended | None = None

    def run(self, stage: str, limits: Limits, *, stdin: str = "", test: dict | None = None) -> Ended:  # type: ignore[type-arg]
        ended = super().run(stage, limits, stdin=stdin, test=test)
        if stage != "build":
            self.limits, self.ended = limits, ended
        return ended


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Watched]:
    with Watched() as sandbox:
        if not (sandbox.layers.seccomp and sandbox.layers.landlock >= 3):
            pytest.skip("this kernel has no seccomp filter or no complete Landlock")
        yield sandbox


def judged(sandbox: Sandbox, source: str, language: str = "python") -> str:
    case = Case(stage="run", stdin="a line", expected=SECRET)
    return judge(sandbox, language, source, [case], TERMS)[1]


@pytest.mark.parametrize(("name", "language", "source", "outcome"), HOSTILE, ids=[case[0] for case in HOSTILE])
def test_hostile(sandbox: Watched, name: str, language: str, source: str, outcome: str) -> None:
    if language == "cpp" and shutil.which("g++") is None:
        pytest.skip("no g++")
    server = psutil.Process(sandbox._process.pid)
    judged(sandbox, GOOD)
    files, sandbox.ended = server.num_fds(), None
    assert judged(sandbox, source, language) == outcome, sandbox.ended
    if sandbox.ended is not None:
        assert sandbox.ended.wall_s <= sandbox.limits.wall_s + 1.0
    assert server.children(recursive=True) == []
    assert server.num_fds() == files
    assert set(os.listdir(sandbox._directory)) == {"work", "source"}
    case = Case(stage="run", stdin="a line", expected="a line")
    assert judge(sandbox, "python", GOOD, [case], TERMS) == (1.0, "ok"), "the server must live on"
    assert os.listdir(Path(sandbox._directory, "work")) == []
    assert os.listdir(Path(sandbox._directory, "source")) == ["solution.py"]
    assert not Path("/tmp/r1fast-hostile").exists()


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_nothing_is_left_after_many_programs(sandbox: Watched, count: int) -> None:
    """Processes, file descriptors, files, memory of the server; 1 program in 100 is hostile, each in its turn."""
    server, own = psutil.Process(sandbox._process.pid), psutil.Process()
    hostile = [case for case in HOSTILE if case[1] == "python"]
    case = Case(stage="run", stdin="a line", expected="a line")
    assert judge(sandbox, "python", GOOD, [case], TERMS) == (1.0, "ok")
    before, resident, missed = (server.num_fds(), own.num_fds(), threading.active_count()), server.memory_info().rss, 0
    for number in range(count):
        if number % 100 == 50:
            _, language, source, outcome = hostile[number // 100 % len(hostile)]
            assert judged(sandbox, source, language) == outcome
        else:
            missed += judge(sandbox, "python", GOOD, [case], TERMS) != (1.0, "ok")
    assert missed <= count // 1000, "a loaded machine is slow at times, not often"
    assert (server.num_fds(), own.num_fds(), threading.active_count()) == before
    assert server.children(recursive=True) == []
    assert os.listdir(Path(sandbox._directory, "work")) == []
    assert server.memory_info().rss <= resident + (8 << 20)
