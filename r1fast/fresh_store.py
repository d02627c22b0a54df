"""A part of torchrun's store that is this start's own.

torchrun's agents keep one store over restarts, and PyTorch reads the addresses of the other processes under the same
names each time (2.13: `torch.distributed.rendezvous`, "no need to add prefix for each attempt"): after a restart a
process may find, and wait for, one that has died. How often torchrun has restarted is no remedy, since the agents of
several hosts count apart. So the processes agree on a name that none has used before.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Protocol

from torch.distributed.distributed_c10d import PrefixStore, Store

POLL_S = 0.05


class Keys(Protocol):
    """What is asked of a store."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


def fresh_store(store: Store, rank: int, world_size: int, timeout_s: float) -> PrefixStore:
    """The part of `store` for the processes that call this now (collective).

    Raises TimeoutError after `timeout_s` seconds, with the ranks that have not come.
    """
    return PrefixStore(f"r1fast/{agreed_name(store, rank, world_size, timeout_s)}", store)


def agreed_name(store: Keys, rank: int, world_size: int, timeout_s: float) -> str:
    """A name that all ranks have agreed on, whatever earlier ones have left in the store.

    Every rank writes a number of its own that is new. Rank 0 proposes the numbers that it reads as the name, anew when
    one changes; a rank accepts a name that holds its number; what all have accepted is agreed.
    """
    own, place = uuid.uuid4().hex, "r1fast-start"
    store.set(f"{place}/number/{rank}", own)
    end, name, missing = time.monotonic() + timeout_s, "", list(range(world_size))
    while time.monotonic() < end:
        if rank == 0:
            numbers = [_read(store, f"{place}/number/{other}") for other in range(world_size)]
            missing = [other for other, number in enumerate(numbers) if not number]
            proposed = json.dumps(numbers)
            if not missing and proposed != name:
                name = proposed
                store.set(f"{place}/name", name)
        else:
            found = _read(store, f"{place}/name")
            if found and found != name and json.loads(found)[rank : rank + 1] == [own]:
                name = found
                store.set(f"{place}/accepted/{rank}", name)
        if rank == 0 and name:
            missing = [n for n in range(1, world_size) if _read(store, f"{place}/accepted/{n}") != name]
            if not missing:
                store.set(f"{place}/agreed", name)
                return uuid.uuid5(uuid.NAMESPACE_OID, name).hex
        if rank and name and _read(store, f"{place}/agreed") == name:
            return uuid.uuid5(uuid.NAMESPACE_OID, name).hex
        time.sleep(POLL_S)
    waits_for = f"ranks {missing}" if rank == 0 else "rank 0"
    raise TimeoutError(f"rank {rank} has waited {timeout_s:g} s for {waits_for} to start")


def _read(store: Keys, key: str) -> str:
    """Without waiting; empty where there is nothing."""
    return store.get(key).decode() if store.check([key]) else ""
