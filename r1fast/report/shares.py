"""How a page's budget is shared out, so that no run, however long, makes a page that nobody opens."""

from __future__ import annotations

from collections.abc import Sequence


def level(sizes: Sequence[int], budget: int) -> int:
    """The largest L for which sum(min(size, L)) <= budget: what is small stays whole, what is large is cut to L."""
    left, sharing = budget, len(sizes)
    for size in sorted(sizes):
        if size * sharing > left:
            return left // sharing
        left -= size
        sharing -= 1
    return max(sizes, default=0)


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers 0 to count - 1, evenly spaced, the first and (from two on) the last included."""
    if wanted >= count:
        return list(range(count))
    if wanted < 2:
        return [0][:wanted]
    return [round(number * (count - 1) / (wanted - 1)) for number in range(wanted)]
