"""Updates that are skipped: counted, capped, the same after a resume; spikes against the running median."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from r1fast.bad_step import require_good
from r1fast.faults_config import FaultsConfig
from r1fast.step_guard import StepGuard, Sums


def step(norm: float) -> Callable[[float], Sums]:
    """A trainer's step whose gradient has this norm."""

    def run(most_norm: float) -> Sums:
        require_good({"loss_sum": 1.0}, norm, num_steps=0, version=0, most_norm=most_norm)
        return {"loss_sum": 1.0, "loss_count": 1.0, "grad_norm_sum": norm, "grad_norm_count": 1.0}

    return run


class Guarded:
    """A guard with what it said."""

    def __init__(self, **faults: float | str) -> None:
        self.said: list[str] = []
        self.guard = StepGuard(FaultsConfig(**faults), "rl_1", self.said.append)  # type: ignore[arg-type]

    def run(self, *norms: float) -> list[float]:
        return [self.guard.update(step(norm), number)["grad_norm_sum"] for number, norm in enumerate(norms, start=1)]


def test_what_is_not_finite_is_skipped_and_counted() -> None:
    guarded = Guarded(max_skips=2)
    assert guarded.guard.figures() == {}
    guarded.run(1.0, math.nan, math.inf, 1.0, math.nan, math.nan)
    assert guarded.guard.figures() == {"skipped_updates": 4.0}
    assert guarded.said[0].startswith("rl_1, step 2: the gradient's norm is nan")
    assert guarded.said[1].endswith("The update is skipped, 2 in a row, faults.max_skips = 2")


def test_one_too_many_stops_and_names_the_dump() -> None:
    guarded = Guarded(max_skips=2)
    guarded.run(math.nan, math.nan)
    with pytest.raises(RuntimeError, match=r"skip 3 in a row, faults\.max_skips = 2; .*: r1fast replay D/3$"):
        guarded.guard.update(step(math.nan), 3, lambda bad: Path("D") / str(len(guarded.said) + 1))


def test_no_skip_at_all() -> None:
    with pytest.raises(RuntimeError, match="nothing was updated"):
        Guarded(max_skips=0).run(math.nan)


@pytest.mark.parametrize("spike", ["off", "warn", "skip"])
def test_a_spike_is_measured_by_the_running_median(spike: str) -> None:
    guarded = Guarded(spike=spike, spike_factor=5.0, spike_window=8)
    guarded.run(100.0, *[2.0] * 7)  # the first, large one does not set the measure
    guarded.run(10.0)
    assert guarded.said == []
    guarded.run(10.1)
    assert len(guarded.said) == (spike != "off")
    assert guarded.guard.num_skipped == (spike == "skip")
    assert not guarded.said or "spike above 10" in guarded.said[0]


def test_steps_without_a_gradient_do_not_set_the_measure() -> None:
    guarded = Guarded(spike="skip", spike_factor=5.0, spike_window=8)
    guarded.run(*[2.0, 0.0] * 8, *[0.0] * 8, 3.0)
    assert guarded.guard.num_skipped == 0


def test_a_spike_is_none_before_enough_is_known() -> None:
    guarded = Guarded(spike="skip", spike_factor=2.0)
    guarded.run(*[1.0] * 7, 50.0)
    assert guarded.guard.num_skipped == 0


def test_a_skipped_spike_does_not_move_the_median() -> None:
    guarded = Guarded(spike="skip", spike_factor=2.0, spike_window=8, max_skips=100)
    guarded.run(*[1.0] * 8, *[3.0] * 20)
    assert guarded.guard.num_skipped == 20


def test_a_resumed_guard_decides_alike() -> None:
    first, second = (Guarded(spike="skip", spike_factor=2.0, spike_window=8, max_skips=2) for _ in range(2))
    first.run(*[1.0] * 9, math.nan, 3.0)
    second.guard.load_state_dict(first.guard.state_dict())
    for guarded in (first, second):
        with pytest.raises(RuntimeError, match="skip 3 in a row"):
            guarded.run(3.0)
    assert first.guard.state_dict() == second.guard.state_dict()
