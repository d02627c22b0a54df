"""An endless stream over a list: every epoch a fresh permutation, every position a pure function of its number.

The position is all the state there is, so a restart, and every rank, sees the same items.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Stream(Generic[_Item]):
    """`items` in a shuffled order that `key` fixes."""

    def __init__(self, items: Sequence[_Item], key: str) -> None:
        """Raises ValueError for an empty list: a stage would train on nothing."""
        if not items:
            raise ValueError(f"stream {key!r} has no items; give the stage some data or drop it from pipeline.stages")
        self._items = items
        self._key = key
        self._epoch = -1
        self._order: list[int] = []

    def take(self, start: int, count: int) -> list[_Item]:
        """The items at positions start .. start + count - 1."""
        taken = []
        for position in range(start, start + count):
            epoch, place = divmod(position, len(self._items))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(len(self._items), f"{self._key} epoch {epoch}")
            taken.append(self._items[self._order[place]])
        return taken


def permutation(num_items: int, key: str) -> list[int]:
    """A shuffled range, the same for the same key on every machine."""
    order = list(range(num_items))
    random.Random(key).shuffle(order)
    return order
