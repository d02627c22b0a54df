"""Processes that start again agree on a name, whatever those before them have left in the store."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from r1fast.fresh_store import agreed_name


def together(store: HashStore, ranks: list[int], world_size: int, delays: list[float]) -> list[str]:
    def come(rank: int, delay_s: float) -> str:
        time.sleep(delay_s)
        return agreed_name(store, rank, world_size, 20.0)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(come, ranks, delays))


def test_every_start_has_a_name_of_its_own() -> None:
    """Rank 0 first, in the middle and last: it must not take numbers of the dead for those of the living."""
    store, names = HashStore(), []
    for delays in ([0.0, 0.3, 0.1], [0.3, 0.0, 0.1], [0.1, 0.3, 0.0], [0.0, 0.0, 0.0]):
        found = together(store, [0, 1, 2], 3, delays)
        assert len(set(found)) == 1
        names.append(found[0])
    assert len(set(names)) == 4


def test_a_start_that_was_broken_off_does_not_count() -> None:
    store = HashStore()
    together(store, [0, 1, 2], 3, [0.0] * 3)
    with pytest.raises(TimeoutError):
        agreed_name(store, 1, 3, 0.4)
    assert len(set(together(store, [2, 1, 0], 3, [0.0, 0.5, 0.2]))) == 1


def test_who_does_not_come_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"rank 0 has waited 0.3 s for ranks \[1, 2\] to start"):
        agreed_name(HashStore(), 0, 3, 0.3)
    with pytest.raises(TimeoutError, match=r"rank 2 has waited 0.3 s for rank 0 to start"):
        agreed_name(HashStore(), 2, 3, 0.3)
