"""SIGTERM: at once, or where the holder looks."""

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
        with stop.held():
            assert not stop.requested
            terminate()
            assert stop.requested
            with pytest.raises(Stopped):  # somebody is in a hurry
                terminate()
        with pytest.raises(Stopped):
            terminate()
    assert signal.getsignal(signal.SIGTERM) is before
