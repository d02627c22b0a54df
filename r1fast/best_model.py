"""`best/`: the model of a stage's best reading on dev, beside the last one in `checkpoint/`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1fast.checks import keeps_best
from r1fast.context import RunContext, write_json

RECORD = "best.json"


class BestModel:
    """Keeps it as a Hugging Face directory with `best.json` (metric, value, step); of equal readings the first stays.

    The directory is its own record: it is replaced as a whole or not at all. After an interruption the readings that
    come again are compared with it, also those of steps that the interruption undid; on the same number of processes
    they are the same. Nothing reads it unless it is named: evaluation and later stages take `checkpoint/`. Collective.
    """

    def __init__(self, context: RunContext, stage: str) -> None:
        self._context, self._stage = context, stage
        self._metric = context.config.run.keep_best if keeps_best(context.config, stage) else "off"
        self._told = False
        value = self._recorded() if self._metric != "off" and context.ranks.rank == 0 else None
        self.value: float | None = context.ranks.broadcast_object(value)

    def offer(
        self, step: int, reading: Mapping[str, float], saver: Callable[[], Callable[[Path], None]]
    ) -> dict[str, float]:
        """Write the model, as `Policy.saver` does, if its reading (`dev/...`) beats all before; what to log of it."""
        if self._metric == "off":
            return {}
        value = reading.get(f"dev/{self._metric}")
        if value is None and not self._told:
            self._context.console.warn(
                f"run.keep_best = '{self._metric}': the dev reading after step {step} of {self._stage} has none, so it "
                "is never the best"
            )
            self._told = True
        if value is None or (self.value is not None and value <= self.value):
            return {}
        start, self.value = time.perf_counter(), value

        def save_all() -> Callable[[Path], None]:
            save = saver()

            def write(directory: Path) -> None:
                save(directory)
                write_json(directory / RECORD, {"metric": self._metric, "value": value, "step": step})

            return write

        self._context.save_model(self._stage, "best", save_all)
        return {"best_step": step, "time/best_s": time.perf_counter() - start}

    def _recorded(self) -> float | None:
        """The value of the directory that is there; one that a kill left aside takes its name again."""
        path = self._context.directory(self._stage) / "best"
        aside = path.with_name("best.old")
        if not path.exists() and aside.exists():
            aside.replace(path)
        if not path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads((path / RECORD).read_text(encoding="utf-8"))
            return float(record["value"]) if record["metric"] == self._metric else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._context.console.warn(f"{path / RECORD} cannot be read ({error!r}): the next reading replaces {path}")
            return None
