"""Which rank trains on which sequence: like tokens on all ranks, in equal numbers of micro-batches.

As DeepSeek-R1's training (its supplement, on infrastructure): sorted by length, spread over the data-parallel ranks,
packed best-fit into chunks, the numbers of chunks made equal. Here a chunk is never padded and is no longer than it has
to be: the budget says how many of them there are, then they are filled to one level, which is what a step waits for
where the ranks meet in every micro-batch (ZeRO 3), and what activations need.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

Plan = list[list[list[int]]]
"""By rank and micro-batch: numbers of items."""

MAX_IMBALANCE = 0.02  # of the busiest rank, above which one more micro-batch is the lesser evil
MOST_BITS = 1 << 36  # that `_fill` may look at, about a second
LEVELS = 64  # a micro-batch's level is looked for in steps of this part of the budget


@dataclass(frozen=True)
class Size:
    """A sequence as packing sees it; sequences of one `group` have the same prompt."""

    group: int
    num_prompt: int
    num_completion: int


def spread(costs: Sequence[int], *, num_ranks: int, micro_batch_tokens: int) -> Plan:
    """Spread items of `costs` tokens over ranks and micro-batches of at most `micro_batch_tokens`.

    The longest go first, each to the rank with the fewest tokens that has room for it, there into the fullest
    micro-batch that takes it; where that needs more micro-batches than can be, these are filled first and then dealt
    out. Every rank gets the same number of micro-batches, the fewest that this finds, the longest first; only a rank
    with fewer items than that has fewer. An item over the budget has a micro-batch of its own. Depends on the arguments
    alone. Raises ValueError for a budget below 1.
    """
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens = {micro_batch_tokens} must be at least 1; raise optimizer's value")
    if not costs:
        return [[] for _ in range(num_ranks)]
    order = sorted(range(len(costs)), key=lambda n: (-costs[n], n))
    total, budget = sum(costs), micro_batch_tokens
    best = _place(costs, order, num_ranks, len(costs), budget)
    assert best is not None  # a micro-batch for each item takes all
    low, high = max(1, -(-total // (num_ranks * budget))), max(map(len, best))
    while low < high:
        middle = (low + high) // 2
        found = _place(costs, order, num_ranks, middle, budget) or _pool(costs, order, num_ranks, middle, budget)
        best, low, high = (best, middle + 1, high) if found is None else (found, low, middle)
    longest = max((cost for cost in costs if cost <= budget), default=budget)
    level, feasible = max(longest, -(-total // (num_ranks * high))), budget
    while feasible - level > max(1, budget // LEVELS):
        middle = (level + feasible) // 2
        found = _place(costs, order, num_ranks, high, middle)
        best, level, feasible = (best, middle, feasible) if found is None else (found, level, middle)
    count = max(map(len, best))
    return [sorted(_split(bins, count, costs), key=lambda bin_: -_tokens(bin_, costs)) for bins in best]


def spread_sequences(
    sizes: Sequence[Size], *, num_ranks: int, micro_batch_tokens: int, share_prompts: bool = False
) -> Plan:
    """`spread` for sequences; with `share_prompts` those of one prompt stay together, for as long as that is faster.

    A group that is divided has its prompt computed more than once, one that is not may leave ranks waiting: of groups
    whole, in halves, quarters, ... those are taken with which the busiest rank has the fewest tokens.
    """
    if not share_prompts:
        costs = [size.num_prompt + size.num_completion for size in sizes]
        return spread(costs, num_ranks=num_ranks, micro_batch_tokens=micro_batch_tokens)
    groups = _by_group(range(len(sizes)), sizes)
    largest = max(map(len, groups), default=1)
    best: tuple[int, Plan] | None = None
    pieces = 1
    while best is None or (num_ranks > 1 and pieces < 2 * largest):
        units = [u for g in groups for u in _units(g, sizes, -(-len(g) // pieces), micro_batch_tokens)]
        costs = [_unit_cost(unit, sizes) for unit in units]
        plan = spread(costs, num_ranks=num_ranks, micro_batch_tokens=micro_batch_tokens)
        busiest = max(sum(_tokens(bin_, costs) for bin_ in bins) for bins in plan)
        if best is None or busiest < best[0]:
            best = busiest, [[[n for u in bin_ for n in units[u]] for bin_ in bins] for bins in plan]
        pieces *= 2
    return best[1]


def packed_tokens(plan: Plan, sizes: Sequence[Size], *, share_prompts: bool = False) -> list[list[int]]:
    """Tokens by rank and micro-batch; with `share_prompts` a prompt counts once in each."""
    if share_prompts:
        return [[sum(_unit_cost(unit, sizes) for unit in _by_group(bin_, sizes)) for bin_ in bins] for bins in plan]
    return [[sum(sizes[n].num_prompt + sizes[n].num_completion for n in bin_) for bin_ in bins] for bins in plan]


def balance_figures(tokens: list[list[int]], micro_batch_tokens: int) -> dict[str, float]:
    """Of tokens by rank and micro-batch; none without tokens.

    `utilisation`: the share of all micro-batches' budgets that is filled, one over the budget counts as full.
    `imbalance`: by how much of the mean the busiest rank has more tokens than the mean.
    """
    per_rank = [sum(counts) for counts in tokens]
    total, num_slots = sum(per_rank), len(tokens) * max(map(len, tokens))
    if not total:
        return {}
    beyond = sum(max(0, count - micro_batch_tokens) for counts in tokens for count in counts)
    return {
        "utilisation": total / (num_slots * micro_batch_tokens + beyond),
        "imbalance": max(per_rank) * len(tokens) / total - 1.0,
    }


def _place(
    costs: Sequence[int], order: Sequence[int], num_ranks: int, num_bins: int, level: int
) -> list[list[list[int]]] | None:
    """By rank at most `num_bins` micro-batches of at most `level` tokens, or None where an item finds no room."""
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    rooms: list[list[tuple[int, int]]] = [[] for _ in range(num_ranks)]  # (tokens left, micro-batch), ascending
    loads = [(0, rank) for rank in range(num_ranks)]
    for number in order:
        cost, full = costs[number], []
        while loads:
            load, rank = heappop(loads)
            tightest = bisect_left(rooms[rank], (cost, 0))
            if tightest < len(rooms[rank]):
                room, place = rooms[rank].pop(tightest)
                ranks[rank][place].append(number)
                break
            if len(ranks[rank]) < num_bins:
                room, place = level, len(ranks[rank])
                ranks[rank].append([number])
                break
            full.append((load, rank))
        else:
            return None
        if room > cost:
            insort(rooms[rank], (room - cost, place))
        loads += [*full, (load + cost, rank)]
        heapify(loads) if full else heappush(loads, loads.pop())
    return ranks


def _pool(
    costs: Sequence[int], order: Sequence[int], num_ranks: int, num_bins: int, level: int
) -> list[list[list[int]]] | None:
    """As `_place`, all micro-batches filled first and then dealt out: where nearly all of them must be full.

    None too where ranks would then differ by more than MAX_IMBALANCE.
    """
    placed = _place(costs, order, 1, num_ranks * num_bins, level)
    pooled = placed[0] if placed else _fill(costs, order, num_ranks * num_bins, level)
    if pooled is None:
        return None
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for bin_ in sorted(pooled, key=lambda bin_: -_tokens(bin_, costs)):
        rank = min((r for r in range(num_ranks) if len(ranks[r]) < num_bins), key=lambda r: loads[r])
        ranks[rank].append(bin_)
        loads[rank] += _tokens(bin_, costs)
    return ranks if max(loads) * num_ranks <= (1 + MAX_IMBALANCE) * sum(loads) else None


def _fill(costs: Sequence[int], order: Sequence[int], num_bins: int, level: int) -> list[list[int]] | None:
    """One micro-batch after the other filled as full as any choice makes it, beginning with the longest that is left.

    What sums the others have is a bit mask, one for each of them (subset sums; Gupta and Ho's minimum bin slack). None
    where `num_bins` do not take all, or where finding out would take longer than it is worth.
    """
    left, bins = list(order), list[list[int]]()
    if len(left) * num_bins * level > MOST_BITS:
        return None
    while left:
        if len(bins) == num_bins or costs[left[0]] > level:
            return None
        room = level - costs[left[0]]
        others = [number for number in reversed(left[1:]) if costs[number] <= room]  # ascending
        sums, mask = [1], (1 << (room + 1)) - 1
        for number in others:
            sums.append((sums[-1] | sums[-1] << costs[number]) & mask)
        total, chosen = sums.pop().bit_length() - 1, [left[0]]
        for number in reversed(others):  # the longest that are part of some way to that sum
            without = sums.pop()
            if costs[number] <= total and without >> (total - costs[number]) & 1:
                chosen.append(number)
                total -= costs[number]
        bins.append(chosen)
        taken = set(chosen)
        left = [number for number in left if number not in taken]
    return bins


def _split(bins: list[list[int]], count: int, costs: Sequence[int]) -> list[list[int]]:
    """`count` micro-batches of what is in fewer, as far as there are items for them: the longest are halved."""
    bins = list(bins)
    while len(bins) < count:
        divisible = [bin_ for bin_ in bins if len(bin_) > 1]
        if not divisible:
            break
        longest = max(divisible, key=lambda bin_: _tokens(bin_, costs))
        bins.remove(longest)
        halves: tuple[list[int], list[int]] = ([], [])
        for number in longest:  # descending
            min(halves, key=lambda half: _tokens(half, costs)).append(number)
        bins += halves
    return bins


def _tokens(numbers: Sequence[int], costs: Sequence[int]) -> int:
    return sum(costs[number] for number in numbers)


def _by_group(numbers: Iterable[int], sizes: Sequence[Size]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(sizes[number].group, []).append(number)
    return list(groups.values())


def _units(group: list[int], sizes: Sequence[Size], most: int, budget: int) -> list[list[int]]:
    """A group's sequences in units of at most `most`, none over the budget that could be smaller."""
    units: list[list[int]] = []
    for number in group:
        if not units or len(units[-1]) == most or _unit_cost([*units[-1], number], sizes) > budget:
            units.append([])
        units[-1].append(number)
    return units


def _unit_cost(unit: list[int], sizes: Sequence[Size]) -> int:
    return sizes[unit[0]].num_prompt + sum(sizes[number].num_completion for number in unit)
