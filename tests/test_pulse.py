"""What the watchdog sees of a process's work."""

from __future__ import annotations

import threading
import time

import pytest

from r1fast.pulse import Pulse


def test_phases_nest_and_every_change_is_progress() -> None:
    pulse = Pulse()
    assert (pulse.phase, pulse.num_beats) == ("loading", 0)
    with pulse.during("rollout"):
        pulse.beat("decode steps")
        with pulse.during("reward"):
            assert (pulse.phase, pulse.doing) == ("reward", "reward began")
        assert pulse.phase == "rollout"
    assert (pulse.phase, pulse.num_beats) == ("loading", 5)
    pulse.beat()
    assert (pulse.doing, pulse.num_beats) == ("rollout ended", 6)


def test_an_error_ends_a_phase_and_a_collective() -> None:
    pulse = Pulse()
    with pytest.raises(RuntimeError), pulse.during("training"), pulse.together("all_reduce"):
        assert (pulse.waits, pulse.collective, pulse.num_collectives) == (True, "all_reduce", 1)
        raise RuntimeError
    assert (pulse.waits, pulse.phase, pulse.num_collectives) == (False, "loading", 1)


def test_what_is_safe_is_saved_once() -> None:
    safe, saved = Pulse().safe, []
    assert safe.save() == "" and not safe.is_there
    safe.offer("step 3", lambda: saved.append(3))
    safe.offer("step 4", lambda: saved.append(4))
    assert safe.is_there and safe.save() == "step 4" and safe.save() == "" and saved == [4]
    safe.offer("step 5", lambda: saved.append(5))
    safe.withdraw()
    assert safe.save() == "" and saved == [4]


def test_nothing_changes_while_it_is_being_saved() -> None:
    safe, order = Pulse().safe, []
    begun, go_on = threading.Event(), threading.Event()

    def save() -> None:
        begun.set()
        go_on.wait(timeout=60)
        order.append("saved")

    safe.offer("step 1", save)
    saver = threading.Thread(target=safe.save)
    saver.start()
    assert begun.wait(timeout=60)
    changer = threading.Thread(target=lambda: (safe.withdraw(), order.append("changed")))
    changer.start()
    time.sleep(0.05)
    assert order == []
    go_on.set()
    saver.join(timeout=60)
    changer.join(timeout=60)
    assert order == ["saved", "changed"]
