"""SIGTERM: at once, where the holder looks, or where held work lets it in."""

from __future__ import annotations

import os
import signal

import pytest

from r1fast.stop import Stopped, StopRequest


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_stops_at_once_unless_held() -> None:
    stop, before = StopRequest(), signal.getsignal(signal.SIGTERM)
    with stop.listening():
        with pytest.raises(Stopped):
            terminate()
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_held_work_is_finished_first() -> None:
    stop, done = StopRequest(), []
    with stop.listening(), pytest.raises(Stopped), stop.held():
        with stop.held():
            assert not stop.requested
            terminate()
            assert stop.requested
            done.append("inner")  # the end of an inner hold is not the end
        done.append("outer")
    assert done == ["inner", "outer"]


def test_later_signals_change_nothing() -> None:
    stop, done = StopRequest(), []
    with stop.listening():
        with pytest.raises(Stopped), stop.held():
            terminate()
            terminate()
            done.append("saved")
        terminate()  # while the process cleans up
        done.append("closed")
    assert done == ["saved", "closed"]


def test_held_work_has_interruptible_parts() -> None:
    stop, done = StopRequest(), []
    with stop.listening(), stop.held():
        with pytest.raises(Stopped), stop.interruptible():
            terminate()
            done.append("never")
        done.append("saved")  # held again
        with pytest.raises(Stopped), stop.interruptible():
            done.append("never")  # what had been asked for before counts, too
        stop.requested = False
    assert done == ["saved"]


def test_an_error_in_held_work_is_not_replaced() -> None:
    stop = StopRequest()
    with stop.listening(), pytest.raises(OSError, match="no space"), stop.held():
        terminate()
        raise OSError("no space left")
