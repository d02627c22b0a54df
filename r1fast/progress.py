"""How far a stage is: saved when it is due, and found again after a kill, the same way for every stage.

A stage with optimizer steps saves its whole state every `run.save_every_steps` steps, while it goes on where
`run.async_save` lets it, and on SIGTERM; a stage that samples saves every part that it has finished. Sampling and
shuffling are functions of the seed and a position, so no generator has a state: what is restored is positions, weights,
moments, and what the stage says once or at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from r1fast.background import snapshot, state_bytes
from r1fast.checkpoint import read_state
from r1fast.context import RunContext
from r1fast.memory import available_bytes
from r1fast.stop import Stopped


class Progress:
    """Saves and restores one stage. Collective: all ranks call every method in the same order, rank 0 writes.

    `saved_step`: the step of the newest state, None while there is none.
    """

    def __init__(self, context: RunContext, stage: str) -> None:
        self._context, self._stage = context, stage
        self._folder = context.state_folder(stage)
        self._earlier_s, self._started = self._folder.elapsed_s(), time.perf_counter()
        self._save_s = 0.0
        self.saved_step: int | None = None

    def resume(self) -> dict[str, Any] | None:
        """The newest whole state (as `save` was given it, with `step`), or None to start from the beginning.

        What was logged and sampled after it is forgotten: those steps come again.
        """
        context = self._context
        context.writer.wait()
        found = context.ranks.broadcast_object(self._folder.newest() if context.ranks.rank == 0 else None)
        context.truncate(self._stage, found[0] + 1 if found else 0)
        if found is None:
            return None
        step, path = found
        # DeepSpeed's engine copies what it needs; torch's may go on with the very tensors
        mapped = context.config.for_stage(self._stage).distributed.engine == "deepspeed"
        state: dict[str, Any] = read_state(path, mapped=mapped)
        context.console.note(f"{self._stage}: continuing after step {step}")
        if state["world_size"] != context.ranks.world_size:
            context.console.warn(
                f"{self._stage} was saved by {state['world_size']} processes and continues with "
                f"{context.ranks.world_size}: its figures will differ in rounding from those of one launch"
            )
        self.saved_step = step
        return state

    def save(self, step: int, state: Mapping[str, Any], *, behind: bool = False) -> None:
        """Write the state after `step`, and before it what the steps have logged; first the state before is whole.

        `behind`: only copy it here where `run.async_save` says so, and write the copy while training goes on. An error
        of that write comes from the next call, or from `RunContext.writer`, which the end of the stage waits for.
        """
        start, context = time.perf_counter(), self._context
        context.ranks.pulse.safe.withdraw()  # this is that state, or a later one
        with context.ranks.pulse.during("save"):
            if context.ranks.rank == 0:
                context.writer.wait()
                self._write(step, state, behind=behind)
                if context.writer.busy:  # should the process have to end before the next update, it waits for that
                    context.ranks.pulse.safe.offer(f"{self._stage} after step {step}", context.writer.wait)
            self.saved_step = step
            context.ranks.barrier()
        self._save_s += time.perf_counter() - start

    def take_save_s(self) -> float:
        """Seconds since the last call of this for which saving stopped the stage: for the log, as `time/save_s`."""
        taken, self._save_s = self._save_s, 0.0
        return taken

    def step_done(self, step: int, state: Callable[[], Mapping[str, Any]], *, alone: bool = False) -> None:
        """Save if it is due. On SIGTERM, which may have reached only some of the ranks, save and raise `Stopped`.

        `alone`: rank 0 may call `state` without the others, so that should they be lost, what is done is saved.
        """
        if alone and self._context.ranks.rank == 0:
            self._context.ranks.pulse.safe.offer(
                f"{self._stage} after step {step}", partial(self._save_alone, step, state)
            )
        every = self._context.config.run.save_every_steps
        requested = self._context.stop.requested
        stopping = self._context.ranks.reduce({"stop_max": float(requested)})["stop_max"] > 0
        if stopping or (every and step // every > (self.saved_step or 0) // every):
            self.save(step, state(), behind=not stopping)
        if stopping:
            raise Stopped

    def save_part(self, name: str, part: Any) -> None:
        """Write a finished part of a stage without optimizer steps: numbers, texts and tensors in containers."""
        with self._context.ranks.pulse.during("save"):
            if self._context.ranks.rank == 0:
                self._folder.save_part(name, part)
                self._folder.save_elapsed(self._elapsed_s())
            self._context.ranks.barrier()

    def part(self, name: str) -> Any | None:
        """A part that was finished before an interruption, else None."""
        leads = self._context.ranks.rank == 0
        path = self._context.ranks.broadcast_object(self._folder.find_part(name) if leads else None)
        return None if path is None else read_state(path)

    def _save_alone(self, step: int, state: Callable[[], Mapping[str, Any]]) -> None:
        failed = None
        try:
            self._context.writer.wait()
        except Exception as error:  # no reason to lose this state, too
            failed = error
            self._context.console.warn(f"the state that was being written is not saved ({error!r})")
        if failed or self.saved_step != step:
            self._write(step, state())

    def _write(self, step: int, state: Mapping[str, Any], *, behind: bool = False) -> None:
        self._context.sync_logs(self._stage)
        whole = {**state, "step": step, "world_size": self._context.ranks.world_size}
        elapsed_s = self._elapsed_s()

        def write(state: Mapping[str, Any]) -> None:
            self._folder.save(step, state)
            self._folder.save_elapsed(elapsed_s)

        if behind and self._copies(whole):
            self._context.writer.start(partial(write, snapshot(whole)))
        else:
            write(whole)

    def _copies(self, state: Mapping[str, Any]) -> bool:
        """Whether there is room for a copy of the state: with `auto` twice of it must be free."""
        wanted = self._context.config.run.async_save
        return wanted == "on" or (wanted == "auto" and available_bytes() > 2 * state_bytes(state))

    def _elapsed_s(self) -> float:
        return self._earlier_s + time.perf_counter() - self._started
