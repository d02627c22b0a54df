"""The run's figures: one JSON line per step in `metrics.jsonl`, the same in TensorBoard, ratios formed once.

A line is `{"stage": ..., "step": ..., "STAGE/QUANTITY": value, ..., "time/QUANTITY": value, ...}`; whatever may differ
between two identical runs (times, speeds, memory) lives under `time/`. A stage's steps count from 1: line n
is written when n steps are done.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r1fast.atomic import atomic_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"

# A sum whose quantity is not simply its name without `_sum`.
_RENAMED = {"ratio_sum": "ratio_mean", "logp_gap_abs_sum": "logp_gap", "logp_gap_abs_max": "logp_gap_max"}


def ratios(sums: Mapping[str, float]) -> dict[str, float]:
    """Reported quantities from sums that have been reduced over micro-batches and ranks.

    `X_sum` becomes X = X_sum / its count: X_count, else tokens_count. `_min` and `_max`
    pass through, and counts that are not one quantity's own. A quantity whose count is 0 (no
    token was trained on) is left out, with its extremes. Raises ValueError for a key without a reduction suffix (its
    reduction over ranks is not defined) and for a sum without a count.
    """
    quantities: dict[str, float] = {}
    for key, value in sums.items():
        stem, _, reduction = key.rpartition("_")
        if not stem or reduction not in ("sum", "count", "min", "max"):
            raise ValueError(
                f"metric {key!r} does not name its reduction; end it in _sum, _count, _min or _max "
                "(times and settings are logged after the reduction, not reduced)"
            )
        if reduction == "count":
            if f"{stem}_sum" not in sums:
                quantities[key] = value
            continue
        count = sums.get(f"{stem}_count", sums.get("tokens_count"))
        if reduction == "sum" and count is None:
            raise ValueError(f"metric {key!r} has no denominator; give {stem}_count or tokens_count with it")
        if count != 0:
            name = _RENAMED.get(key, stem if reduction == "sum" else key)
            quantities[name] = value / count if reduction == "sum" and count is not None else value
    return quantities


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl` (or of the run directory that holds one), in order; a torn last line is left out.

    Values are floats, NaN and infinities included. Raises FileNotFoundError without a file, ValueError on a bad line.
    """
    return list(iter_metrics(path))


def iter_metrics(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """`read_metrics` a line at a time: a long run's file need not fit in memory."""
    file = Path(path)
    if file.is_dir():
        file = file / METRICS_FILE
    with file.open("rb") as lines:
        for number, text in enumerate(lines, start=1):
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{file}, line {number} is not JSON ({error}); remove that line") from error
            yield {key: _decoded(key, value) for key, value in line.items()}


class MetricsLog:
    """Appends to `run_dir/metrics.jsonl`, and to one TensorBoard run per stage under `run_dir/tensorboard/`.

    Make it on rank 0 only. A file that is there is continued; a stage that is resumed says so with `truncate`.
    """

    def __init__(self, run_dir: str | os.PathLike[str], tensorboard: bool = True) -> None:
        self._dir = Path(run_dir)
        self._dir.mkdir(parents=True, exist_ok=True)
        self._path = self._dir / METRICS_FILE
        self._tensorboard = tensorboard
        self._writers: dict[str, SummaryWriter] = {}
        self._purge_step: dict[str, int] = {}
        self._rewrite(read_metrics(self._path) if self._path.exists() else [])

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Write one line; `values` maps a quantity, or `time/QUANTITY`, to a number.

        Raises ValueError when that stage has logged this step or a later one, TypeError when a value is not a number.
        """
        if step <= self._last_step.get(stage, -1):
            raise ValueError(
                f"step {step} of {stage} comes after step {self._last_step[stage]}: steps must increase; "
                f"call truncate({stage!r}, {step}) when a stage is resumed or repeated"
            )
        for key, value in values.items():
            if not isinstance(value, int | float):
                raise TypeError(f"metric {key!r} is {value!r}; metrics are Python numbers: call .item() on a tensor")
        line: dict[str, Any] = {"stage": stage, "step": step}
        line |= {_full_name(stage, key): float(values[key]) for key in sorted(values)}
        self._file.write(_encoded(line))
        self._file.flush()  # a killed process loses nothing that it has logged
        self._last_step[stage] = step
        if self._tensorboard:
            writer = self._writer(stage)
            for key, value in values.items():
                writer.add_scalar(key, value, step)

    def truncate(self, stage: str, step: int) -> None:
        """Forget what `stage` logged at `step` and after it: those steps are about to be repeated."""
        self._file.close()
        lines = read_metrics(self._path)
        self._rewrite([line for line in lines if line["stage"] != stage or line["step"] < step])
        self._purge_step[stage] = step
        if stage in self._writers:
            self._writers.pop(stage).close()

    def sync(self) -> None:
        """Bring what was logged to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        """Replace the file at once, so that a kill leaves the old one or the new one, and open it to append."""
        with atomic_file(self._path) as file:
            file.writelines(map(_encoded, lines))
        self._last_step = {str(line["stage"]): int(line["step"]) for line in lines}
        self._file = self._path.open("a", encoding="utf-8")

    def _writer(self, stage: str) -> SummaryWriter:
        """One TensorBoard run per stage: stages overlay in one chart, and purging a stage leaves the others alone."""
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # half a second that a run without events need not pay

            directory = str(self._dir / "tensorboard" / stage)
            self._writers[stage] = SummaryWriter(directory, purge_step=self._purge_step.get(stage), flush_secs=10)
        return self._writers[stage]


def _full_name(stage: str, key: str) -> str:
    return key if key.startswith("time/") else f"{stage}/{key}"


def _encoded(line: Mapping[str, Any]) -> str:
    """One strict JSON line: what JSON has no number for is written as the string "nan", "inf" or "-inf"."""
    plain = {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"


def _decoded(key: str, value: Any) -> Any:
    return value if key in ("stage", "step") else float(value)
