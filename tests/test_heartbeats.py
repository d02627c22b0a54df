"""Reports and flags through a store, and a store that is out of reach."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from test_stall import report
from torch._C._distributed_c10d import HashStore

from r1fast.heartbeats import Peers, Report


def peers(store: HashStore, rank: int) -> Peers:
    made = Peers(lambda: store, "run", 2, interval_s=0.01)
    made.tell(report(rank))
    return made


def test_a_report_survives_the_store() -> None:
    assert Report.of_text(report(3, doing='"quoted" 中').to_text()) == report(3, doing='"quoted" 中')


def test_reports_are_heard_when_asked_for_and_age_while_they_repeat() -> None:
    store = HashStore()
    one, other = peers(store, 0), peers(store, 1)
    one.exchange(store)
    other.exchange(store)
    assert one.heard() == {}
    one.listens = True
    one.exchange(store)
    before = time.monotonic()
    heard = one.heard(clock=lambda: before + 50.0)
    assert heard[1].report == report(1) and 49.0 < heard[1].silent_s <= 50.5
    one.exchange(store)  # it says the same again
    assert one.heard(clock=lambda: before + 50.0)[1].silent_s > 49.0
    other.tell(replace(report(1), tick=1))
    other.exchange(store)
    time.sleep(0.02)
    one.exchange(store)
    assert one.heard()[1].report.tick == 1 and one.heard()[1].silent_s < one.heard()[0].silent_s
    one.listens = False
    one.exchange(store)
    assert one.heard() == {}


def test_a_flag_reaches_all() -> None:
    store = HashStore()
    one, other = peers(store, 0), peers(store, 1)
    one.raise_flag("ends", "rank 0 is stuck")
    one.exchange(store)
    other.exchange(store)
    assert one.flags == other.flags == {"ends": "rank 0 is stuck"}


def test_a_flag_that_did_not_arrive_is_raised_again() -> None:
    class Deaf:
        """Takes what is set, answers nothing."""

        def set(self, key: str, value: str, /) -> None: ...

        def check(self, keys: list[str], /) -> bool:
            raise RuntimeError("connection reset by peer")

        def get(self, key: str, /) -> bytes: ...

        def multi_get(self, keys: list[str], /) -> list[bytes]: ...

    store = HashStore()
    one, other = peers(store, 0), peers(store, 1)
    one.raise_flag("saves", "")
    with pytest.raises(RuntimeError, match="reset"):
        one.exchange(Deaf())
    one.exchange(store)
    other.exchange(store)
    assert "saves" in other.flags


def test_runs_that_share_a_store_do_not_meet() -> None:
    store = HashStore()
    one, other = peers(store, 0), Peers(lambda: store, "another run", 2, interval_s=0.01)
    one.raise_flag("ends", "x")
    one.exchange(store)
    other.exchange(store)
    assert other.flags == {}


def test_a_connection_that_fails_is_made_again() -> None:
    store, failures = HashStore(), [RuntimeError("refused"), RuntimeError("reset")]
    told = threading.Event()

    def connect() -> HashStore:
        if failures:
            raise failures.pop()
        told.set()
        return store

    made = Peers(connect, "run", 1, interval_s=0.01)
    made.tell(report(0))
    made.start()
    assert told.wait(timeout=60)
    while not store.check(["run/0"]):
        time.sleep(0.01)
    made.stop()


def test_a_store_that_does_not_answer_holds_nobody_up() -> None:
    answers = threading.Event()

    class Slow(HashStore):
        def check(self, keys: list[str]) -> bool:
            answers.wait(timeout=60)
            return False

    made = Peers(Slow, "run", 1, interval_s=0.01)
    made.tell(report(0))
    made.start()
    start = time.monotonic()
    made.tell(report(0, tick=1))
    made.raise_flag("ends", "x")
    assert made.heard() == {} and made.flags == {"ends": "x"}
    made.stop()
    assert time.monotonic() - start < 10.0
    answers.set()
