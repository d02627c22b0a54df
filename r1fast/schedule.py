"""A number, or a number that changes at given steps: `[[0, 32768], [8200, 65536]]`, piecewise constant.

R1 needs it: the length limit grows at step 8.2k, the preference reward acts in the last 400 steps only. Steps count
the optimizer steps of one stage, from 0.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeVar, overload

# (first step, value), ...: the first step is 0, the steps rise.
IntPieces = tuple[tuple[int, int], ...]
FloatPieces = tuple[tuple[int, float], ...]

IntSchedule = int | IntPieces
Schedule = float | FloatPieces

_Number = TypeVar("_Number", int, float)


@overload
def at(value: IntSchedule, step: int) -> int: ...
@overload
def at(value: Schedule, step: int) -> float: ...
def at(value: Schedule | IntSchedule, step: int) -> float:
    """The value in force at `step` (optimizer steps of the stage, from 0).

    Raises:
        ValueError: `step` is negative.
    """
    if step < 0:
        raise ValueError(f"step = {step} is negative; steps of a stage count from 0")
    if not isinstance(value, tuple):
        return value
    current = value[0][1]
    for first_step, piece in value:
        if first_step > step:
            break
        current = piece
    return current


def check_pieces(pieces: tuple[tuple[int, _Number], ...]) -> tuple[tuple[int, _Number], ...]:
    """The same pieces, if they are a schedule.

    Raises:
        ValueError: no piece, the first step is not 0, or the steps do not rise.
    """
    steps = [step for step, _ in pieces]
    if not steps or steps[0] != 0:
        raise ValueError(f"a schedule starts at step 0, this one at {steps[0] if steps else 'nothing'}: add [0, value]")
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"the steps of a schedule rise, these do not: {steps}")
    return pieces


def values(value: Schedule | IntSchedule) -> tuple[float, ...]:
    """Every value that a schedule takes, in order; a plain number is one value."""
    return tuple(piece for _, piece in value) if isinstance(value, tuple) else (value,)


def change_steps(*schedules: Schedule | IntSchedule) -> tuple[int, ...]:
    """The steps at which any of the schedules changes, 0 included, rising."""
    steps = {step for value in schedules if isinstance(value, tuple) for step, _ in value}
    return tuple(sorted(steps | {0}))


def total(value: Schedule | IntSchedule, num_steps: int) -> float:
    """The sum of `at(value, step)` over the steps 0 .. num_steps - 1."""
    steps = [step for step in change_steps(value) if step < num_steps]
    ends = [*steps[1:], num_steps]
    return sum(at(value, step) * (end - step) for step, end in zip(steps, ends, strict=True))


def with_warmup(value: float, step: int, warmup_steps: int) -> float:
    """`value` after a linear warm-up: step 0 of `warmup_steps` = 4 gives a quarter; 0 gives no warm-up."""
    return value * (step + 1) / warmup_steps if step < warmup_steps else value


def cosine(first: float, last: float, step: int, num_steps: int) -> float:
    """Cosine from `first` at step 0 to `last` at step `num_steps` - 1."""
    if num_steps <= 1:
        return first
    progress = min(step / (num_steps - 1), 1.0)
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * progress))
