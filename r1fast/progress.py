"""How far a stage is: saved when it is due, and found again after a kill, the same way for every stage.

A stage with optimizer steps saves its whole state every `run.save_every_steps` steps and on SIGTERM; a stage that
samples saves every part that it has finished. Sampling and shuffling are functions of the seed and a position, so no
generator has a state: what is restored is positions, weights, moments, and what the stage says once or at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from r1fast.checkpoint import read_state
from r1fast.context import RunContext
from r1fast.stop import Stopped


class Progress:
    """Saves and restores one stage. Collective: all ranks call every method in the same order, rank 0 writes.

    `saved_step`: the step of the newest state, None while there is none.
    """

    def __init__(self, context: RunContext, stage: str) -> None:
        self._context, self._stage = context, stage
        self._folder = context.state_folder(stage)
        self._earlier_s, self._started = self._folder.elapsed_s(), time.perf_counter()
        self.saved_step: int | None = None

    def resume(self) -> dict[str, Any] | None:
        """The newest whole state (as `save` was given it, with `step`), or None to start from the beginning.

        What was logged and sampled after it is forgotten: those steps come again.
        """
        context = self._context
        found = context.ranks.broadcast_object(self._folder.newest() if context.ranks.rank == 0 else None)
        context.truncate(self._stage, found[0] + 1 if found else 0)
        if found is None:
            return None
        step, path = found
        state: dict[str, Any] = read_state(path)
        context.console.note(f"{self._stage}: continuing after step {step}")
        if state["world_size"] != context.ranks.world_size:
            context.console.warn(
                f"{self._stage} was saved by {state['world_size']} processes and continues with "
                f"{context.ranks.world_size}: its figures will differ in rounding from those of one launch"
            )
        self.saved_step = step
        return state

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state after `step`, and before it what the steps have logged."""
        context = self._context
        if context.ranks.rank == 0:
            context.sync_logs(self._stage)
            self._folder.save(step, {**state, "step": step, "world_size": context.ranks.world_size})
            self._save_elapsed()
        self.saved_step = step
        context.ranks.barrier()

    def step_done(self, step: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save if it is due. On SIGTERM, which may have reached only some of the ranks, save and raise `Stopped`."""
        every = self._context.config.run.save_every_steps
        requested = self._context.stop.requested
        stopping = self._context.ranks.reduce({"stop_max": float(requested)})["stop_max"] > 0
        if stopping or (every and step // every > (self.saved_step or 0) // every):
            self.save(step, state())
        if stopping:
            raise Stopped

    def save_part(self, name: str, part: Any) -> None:
        """Write a finished part of a stage without optimizer steps: numbers, texts and tensors in containers."""
        if self._context.ranks.rank == 0:
            self._folder.save_part(name, part)
            self._save_elapsed()
        self._context.ranks.barrier()

    def part(self, name: str) -> Any | None:
        """A part that was finished before an interruption, else None."""
        leads = self._context.ranks.rank == 0
        path = self._context.ranks.broadcast_object(self._folder.find_part(name) if leads else None)
        return None if path is None else read_state(path)

    def _save_elapsed(self) -> None:
        self._folder.save_elapsed(self._earlier_s + time.perf_counter() - self._started)
