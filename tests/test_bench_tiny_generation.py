"""What the bench of tiny's generation reads from a run."""

from __future__ import annotations

import pytest

from bench.tiny_generation import COMMAND, seconds
from r1fast.options import parse


def test_parts_are_summed_over_the_steps() -> None:
    lines = [
        {"time/rollout_s": 1.0, "time/dev_s": 0.5, "time/update_s": 9.0},
        {"time/rollout_s": 2.0},
        {"time/evaluation_s": 4.0},
    ]
    assert seconds(lines) == {"rollouts": 3.0, "dev readings": 0.5, "evaluation": 4.0, "all": 7.5}
    with pytest.raises(RuntimeError, match="no evaluation"):
        seconds(lines[:2])


def test_its_command_is_one() -> None:
    assert parse(COMMAND[2:]).config.pipeline.stages == ("base", "r1_zero", "evaluation")
