"""Verifiable problems: a quantity that changes in 2 to 5 steps, asked in English or Chinese.

Splits are disjoint by a stable hash of (start, operations): neither the wording nor the language of a held-out
problem's arithmetic has been seen in training.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from r1fast.tiny.lexicon import LANGUAGES, MAX_NUMBER, Language, say

Split = Literal["train", "dev", "held_out"]
NAMES = ("tom", "amy", "ben", "lily", "jack", "mia")
OBJECTS = ("apples", "books", "coins", "fish", "stars", "cups", "pens", "eggs")
QUESTION_VERBS = {
    "+": ("gains", "finds", "buys"),
    "-": ("loses", "sells", "eats"),
    "*2": ("doubles",),
    "*3": ("triples",),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation on the running quantity: `left operator right = result`."""

    left: int
    operator: str
    right: int

    @property
    def result(self) -> int:
        """The exact value."""
        return {"+": self.left + self.right, "-": self.left - self.right, "*": self.left * self.right}[self.operator]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A start value, its operations `(operator, operand)` and the wording of its question."""

    start: int
    operations: tuple[tuple[str, int], ...]
    language: Language
    name: str
    thing: str
    wording: tuple[str, ...]

    @property
    def key(self) -> str:
        """Identity up to wording and language."""
        return f"{self.start}" + "".join(f"{operator}{operand}" for operator, operand in self.operations)

    @property
    def steps(self) -> list[Step]:
        """The operations with the quantity each one starts from."""
        steps, value = [], self.start
        for operator, operand in self.operations:
            steps.append(Step(left=value, operator=operator, right=operand))
            value = steps[-1].result
        return steps

    @property
    def answer(self) -> int:
        """The final quantity."""
        return self.steps[-1].result

    @property
    def question(self) -> str:
        """The words a user would type."""
        parts = [f"{self.name} has {self.start} {self.thing} ."]
        for (operator, operand), verb in zip(self.operations, self.wording, strict=True):
            parts.append(f"{verb} ." if operator == "*" else f"{verb} {operand} .")
        asked = f"how many {self.thing} ?" if self.language == "en" else f"many {self.thing} ?"
        return say(" ".join([*parts, asked]), self.language)


def split_of(key: str) -> Split:
    """The split a key belongs to, by a hash that is the same on every machine: 80% train, 8% dev, 12% held-out."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 80 else "dev" if bucket < 88 else "held_out"


def draw_problem(rng: random.Random) -> Problem:
    """Draw a problem: start 2..30, 2 to 5 steps of +1..9, -1..9, x2, x3, every value in 0..99."""
    start = rng.randint(2, 30)
    value, operations, wording = start, [], []
    for _ in range(rng.randint(2, 5)):
        while True:
            operator, operand = rng.choice(
                (("+", rng.randint(1, 9)), ("-", rng.randint(1, 9)), ("*", rng.randint(2, 3)))
            )
            step = Step(left=value, operator=operator, right=operand)
            if 0 <= step.result <= MAX_NUMBER and not (operator == "*" and value == 0):
                break
        value = step.result
        operations.append((operator, operand))
        wording.append(rng.choice(QUESTION_VERBS[operator if operator != "*" else f"*{operand}"]))
    return Problem(
        start=start,
        operations=tuple(operations),
        language=rng.choice(LANGUAGES),
        name=rng.choice(NAMES),
        thing=rng.choice(OBJECTS),
        wording=tuple(wording),
    )


def problems(split: Split, rng: random.Random) -> Iterator[Problem]:
    """Endless distinct problems of a split."""
    seen: set[str] = set()
    while True:
        problem = draw_problem(rng)
        if problem.key not in seen and split_of(problem.key) == split:
            seen.add(problem.key)
            yield problem
