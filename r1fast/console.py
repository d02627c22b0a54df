"""What a person sees: progress with ETA and live figures in a terminal, single greppable lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any

from rich import box
from rich.columns import Columns
from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
WIDE = 100  # columns from which the closing table spells its headers out
PLAIN_WIDTH = 120  # of a table in a file


class Console:
    """Prints the run on rank 0; on other ranks (`enabled=False`) every call does nothing.

    In a terminal a live line shows the stage's progress, ETA and figures. Elsewhere a line is printed after a step when
    `every_steps` steps and `every_s` seconds have passed since the last one, and after a stage's last step.
    stream, width: where to write (standard output) and how wide (the terminal's).
    """

    def __init__(
        self,
        enabled: bool = True,
        *,
        every_steps: int = 1,
        every_s: float = 5.0,
        stream: IO[str] | None = None,
        width: int | None = None,
    ) -> None:
        stream = sys.stdout if stream is None else stream
        self._rich = RichConsole(file=stream, width=width, quiet=not enabled, highlight=False)
        if not self._rich.is_terminal and width is None and "COLUMNS" not in os.environ:
            self._rich = RichConsole(file=stream, width=PLAIN_WIDTH, quiet=not enabled, highlight=False)
        self._every_steps, self._every_s = every_steps, every_s
        self._stage: _Stage | None = None

    def stage_start(self, name: str, num_steps: int = 0, title: str = "", *, first_step: int = 0) -> None:
        """A stage begins (at `first_step` when it is resumed); `num_steps` 0: not counted in steps."""
        self._end_live()
        self._stage = _Stage(name, num_steps, first_step)
        heading = Text.assemble((name, "bold"), f"  {title}" if title else "")
        if first_step:
            heading.append(f"  (resumed after step {first_step} of {num_steps})")
        self._line(heading)
        if self._rich.is_terminal and not self._rich.quiet:
            self._stage.live = Live(
                get_renderable=self._stage.render, console=self._rich, transient=True, refresh_per_second=2
            )
            self._stage.live.start()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """`step` steps of the stage are done; shows what `FIGURES` knows of `values`."""
        stage = self._stage
        if stage is None:
            raise RuntimeError(f"step({step}) outside a stage; call stage_start first")
        stage.update(step, values)
        if stage.live is not None:
            return  # it draws itself
        due = step - stage.printed_step >= self._every_steps and time.monotonic() - stage.printed_at >= self._every_s
        if due or step == stage.num_steps:
            stage.printed_step, stage.printed_at = step, time.monotonic()
            self._line(Text("  ".join((f"{stage.name} {stage.progress()}", *figures(values), stage.clock()))))

    def stage_end(self, summary: Mapping[str, Any] | None = None) -> None:
        """The stage is done: its time, and the plain values of its summary."""
        stage = self._stage
        if stage is None:
            raise RuntimeError("stage_end outside a stage; call stage_start first")
        self._end_live()
        shown = ", ".join(
            f"{key.replace('_', ' ')} {_plain(value)}"
            for key, value in (summary or {}).items()
            if isinstance(value, int | float | str)
        )
        done = Text.assemble((f"{stage.name} done", "green"), f" in {duration(time.monotonic() - stage.started)}")
        if shown:
            done.append(f"  {shown}")
        self._line(done)
        self._stage = None

    def note(self, text: str) -> None:
        """A remark."""
        self._line(Text(text, style="dim"))

    def warn(self, text: str) -> None:
        """Something the user should look at."""
        self._line(Text.assemble(("warning: ", "bold yellow"), text))

    def table(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """The closing table: `summary.json["eval"]`, one model a row. None or a missing value shows as `-`."""
        self._end_live()
        wide = self._rich.width >= WIDE
        table = Table(box=box.SIMPLE_HEAD if wide else None, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column("model", no_wrap=True)
        for column in COLUMNS:
            table.add_column(column.header if wide else column.narrow, justify="right", no_wrap=True)
        for name, row in rows.items():
            table.add_row(name, *(Text(column.cell(row, wide)) for column in COLUMNS))
        first = next(iter(rows.values()), {})
        problems, k = first.get("num_problems"), first.get("k")
        if problems and k:
            self._line(
                Text(
                    f"{problems} held-out problems, k = {k} samples each; any: format ignored",
                    "dim",
                )
            )
        self._rich.print(table)

    def sparklines(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Response length and reflective words over the steps of every RL stage; `metrics` as `read_metrics` reads."""
        stages = list(dict.fromkeys(line["stage"] for line in metrics))
        blocks = ASCII_BLOCKS if self._rich.options.ascii_only else BLOCKS
        size = max(8, min(36, (self._rich.width - 50) // 2))
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for header in ("over steps", "response length", "tokens", "reflective words", "per sample"):
            table.add_column(header, no_wrap=True)
        for stage in stages:
            curves = [_curve(metrics, stage, "length"), _curve(metrics, stage, "reflection")]
            if curves[0]:
                cells = [sparkline(curve, size, blocks) for curve in curves]
                table.add_row(stage, cells[0], _ends(curves[0], ".0f"), cells[1], _ends(curves[1], ".2f"))
        if table.row_count:
            self._rich.print(table)

    def close(self) -> None:
        """Give the terminal back; what was printed stays."""
        self._end_live()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self, text: Text) -> None:
        """Print one line; outside a terminal it is never wrapped, so that it can be searched."""
        self._rich.print(text, soft_wrap=not self._rich.is_terminal)

    def _end_live(self) -> None:
        if self._stage is not None and self._stage.live is not None:
            self._stage.live.stop()
            self._stage.live = None


class _Stage:
    """Progress of the running stage."""

    def __init__(self, name: str, num_steps: int, first_step: int) -> None:
        self.name, self.num_steps, self.first_step = name, num_steps, first_step
        self.done = self.printed_step = first_step
        self.started = time.monotonic()
        self.ends_at: float | None = None
        self.printed_at = -float("inf")
        self.values: Mapping[str, float] = {}
        self.live: Live | None = None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[clock]}"),
            expand=True,
        )
        self._task = self._progress.add_task(name, total=num_steps or None, completed=first_step, clock="")

    def update(self, done: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        self.done, self.values = done, values
        if self.num_steps > done > self.first_step:
            self.ends_at = now + (now - self.started) / (done - self.first_step) * (self.num_steps - done)
        else:
            self.ends_at = None

    def progress(self) -> str:
        return f"{self.done}/{self.num_steps}" if self.num_steps else str(self.done)

    def clock(self) -> str:
        """Elapsed time of this stage in this process, and what is left of it."""
        now = time.monotonic()
        left = "" if self.ends_at is None else f", ETA {duration(max(0.0, self.ends_at - now))}"
        return duration(now - self.started) + left

    def render(self) -> Group:
        """The live display, drawn anew twice a second: a long step's clock runs, too."""
        self._progress.update(self._task, completed=self.done, clock=self.clock())
        shown = figures(self.values)
        return Group(self._progress, Padding(Columns(shown, padding=(0, 2)), (0, 0, 0, 2)) if shown else "")


def duration(seconds: float) -> str:
    """`7s`, `1m05s`, `2h03m`, `3d04h`."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02}m"
    return f"{s // 86400}d{s % 86400 // 3600:02}h"


def _share(value: float) -> str:
    return f"{value:.3f}"


def _small(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def _count(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    if value >= 1e4:
        return f"{value / 1e3:.1f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return _count(value) if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# label, the quantities that may be it (the first one present is shown), format
FIGURES: tuple[tuple[str, tuple[str, ...], Callable[[float], str]], ...] = (
    ("loss", ("loss",), _small),
    ("reward", ("reward",), _share),
    ("accuracy", ("accuracy", "gym"), _share),
    ("format", ("format",), _share),
    ("language", ("language_share",), _share),
    ("dev", ("dev_accuracy",), _share),
    ("length", ("length",), _count),
    ("kl", ("kl",), _small),
    ("entropy", ("entropy",), _small),
    ("tok/s", ("time/rollout_tokens_per_s", "time/tokens_per_s"), _count),
)


def figures(values: Mapping[str, Any]) -> list[str]:
    """The figures a person follows, `reward 0.812`, `accuracy 0.640` ...; a loss only where there is no reward."""
    shown = []
    for label, names, form in FIGURES:
        value = next((values[name] for name in names if values.get(name) is not None), None)
        if value is not None and not (label == "loss" and "reward" in values):
            shown.append(f"{label} {form(float(value))}")
    return shown


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """A curve in at most `width` characters, from its lowest to its highest value; each character a mean of steps."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return blocks[0] * width
    return "".join(blocks[min(len(blocks) - 1, int((mean - low) / (high - low) * len(blocks)))] for mean in means)


def _curve(metrics: Sequence[Mapping[str, Any]], stage: str, quantity: str) -> list[float]:
    key = f"{stage}/{quantity}"
    return [float(line[key]) for line in metrics if line["stage"] == stage and key in line]


def _ends(values: Sequence[float], form: str) -> str:
    return f"{values[0]:{form}} -> {values[-1]:{form}}" if values else ""


@dataclass(frozen=True)
class _Column:
    """A column of the closing table: the row's key, its header (full and narrow), and how a value is written."""

    key: str
    header: str
    narrow: str
    form: Callable[[float], str] = _share

    def cell(self, row: Mapping[str, Any], wide: bool) -> str:
        value = row.get(self.key)
        if value is None:
            return "-"
        numbers = [value, *(row.get("pass@1_ci") or ())] if self.key == "pass@1" else [value]
        texts = [self.form(number) if wide else _without_zero(self.form(number)) for number in numbers]
        return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else texts[0]


def _without_zero(text: str) -> str:
    """`0.987` as `.987` and `1.000` as `1.00`: a share in four characters."""
    if text.startswith("0."):
        return text[1:]
    return text[:-1] if text == "1.000" else text


def _score(value: float) -> str:
    return f"{value:.2f}"


COLUMNS = (
    _Column("pass@1", "pass@1 [95% CI]", "pass@1 [95% CI]"),
    _Column("accuracy_any", "acc. any", "any"),
    _Column("cons@k", "cons@k", "cons@k"),
    _Column("format", "format", "format"),
    _Column("language", "language", "lang."),
    _Column("tokens", "tokens", "tokens", _count),
    _Column("refusal", "refusal", "refuse"),
    _Column("reward_model", "reward model", "rm", _score),
)
