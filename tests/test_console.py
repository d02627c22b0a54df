from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as RichConsole

from r1fast.console import BLOCKS, Console, duration, figures, sparkline

MODELS = ["base", "r1_zero", "sft_1", "rl_1", "sft_2", "r1", "student_base", "student_distilled", "student_rl"]
ROW = {
    "pass@1": 0.9954,
    "pass@1_ci": [0.9871, 1.0],
    "cons@k": 1.0,
    "accuracy_any": 0.997,
    "format": 1.0,
    "language": 0.9812,
    "tokens": 35.24,
    "refusal": 0.97,
    "reward_model": -1.234,
    "num_problems": 512,
    "k": 8,
}
STEP = {
    "reward": 0.8123,
    "accuracy": 0.64,
    "format": 0.98,
    "length": 35.2,
    "kl": 0.00123,
    "entropy": 0.61,
    "loss": 0.1,
    "time/rollout_tokens_per_s": 41233.0,
}


def console(**options: Any) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(stream=stream, every_s=0.0, **options), stream


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_lines_one_per_step_never_wrapped() -> None:
    screen, stream = console(width=40)
    screen.stage_start("r1_zero", 2, "GRPO")
    screen.step(1, STEP)
    screen.step(2, STEP)
    screen.stage_end({"steps": 2, "share": 0.12345, "models": ["left", "out"]})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "r1_zero  GRPO"
    assert lines[1].startswith(
        "r1_zero 1/2  reward 0.812  accuracy 0.640  format 0.980  length 35.2  kl 0.0012  entropy 0.610  tok/s 41.2k  "
    )
    assert lines[1].endswith("0s, ETA 0s")
    assert lines[2].startswith("r1_zero 2/2")
    assert lines[3] == "r1_zero done in 0s  steps 2, share 0.1235"
    assert len(lines) == 4


def test_plain_lines_every_few_steps_and_after_the_last() -> None:
    screen, stream = console(every_steps=4)
    screen.stage_start("rl_1", 10)
    for step in range(1, 11):
        screen.step(step, STEP)
    shown = [line.split()[1] for line in stream.getvalue().splitlines()[1:]]
    assert shown == ["4/10", "8/10", "10/10"]


def test_plain_lines_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("r1fast.console.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    screen = Console(stream=stream, every_s=5.0)
    screen.stage_start("rl_1", 100, first_step=10)
    for step in range(11, 21):
        now[0] += 2.0
        screen.step(step, {"reward": 0.5})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "rl_1  (resumed after step 10 of 100)"
    assert [line.split()[1] for line in lines[1:]] == ["11/100", "14/100", "17/100", "20/100"]
    # 2 s a step in this process, whatever was done before it was resumed
    assert lines[-1] == "rl_1 20/100  reward 0.500  20s, ETA 2m40s"


def test_other_ranks_print_nothing() -> None:
    screen, stream = console(enabled=False)
    screen.stage_start("rl_1", 2)
    screen.step(1, STEP)
    screen.warn("x")
    screen.stage_end()
    screen.table({"base": ROW})
    screen.sparklines([{"stage": "rl_1", "step": 1, "rl_1/length": 1.0}])
    assert stream.getvalue() == ""


def test_text_is_not_markup() -> None:
    screen, stream = console()
    screen.note("answer [red]42[/red] [/] :smile:")
    screen.warn("[bold]")
    assert stream.getvalue().splitlines() == ["answer [red]42[/red] [/] :smile:", "warning: [bold]"]


def test_a_terminal_shows_progress_and_figures_live() -> None:
    stream = Terminal()
    with Console(stream=stream, width=80) as screen:
        screen.stage_start("r1_zero", 30, "GRPO")
        screen.step(12, STEP)
        screen._stage.live.refresh()  # type: ignore[union-attr]
        drawn = stream.getvalue()
        screen.warn("careful")
        screen.stage_end({"steps": 30})
    assert "12/30" in drawn
    assert "ETA" in drawn
    assert "reward 0.812" in drawn
    assert "careful" in stream.getvalue()
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_the_cursor_comes_back_when_a_stage_fails() -> None:
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Console(stream=stream, width=80) as screen:
        screen.stage_start("r1_zero", 30)
        raise KeyboardInterrupt
    assert stream.getvalue().count("\x1b[?25h") == 1


def test_a_step_outside_a_stage_is_refused() -> None:
    with pytest.raises(RuntimeError, match="stage_start"):
        console()[0].step(1, {})


@pytest.mark.parametrize("width", [80, 120])
def test_the_closing_table_fits_and_is_whole(width: int) -> None:
    screen, stream = console(width=width)
    screen.table(dict.fromkeys(MODELS, ROW))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in stream.getvalue()
    rows = [line.split() for line in lines if line.split()[0] in MODELS]
    assert [row[0] for row in rows] == MODELS
    expected = (
        "0.995 [0.987, 1.000] 0.997 1.000 1.000 0.981 35.2 0.970 -1.23"
        if width == 120
        else ".995 [.987, 1.00] .997 1.00 1.00 .981 35.2 .970 -1.23"
    )
    assert all(row[1:] == expected.split() for row in rows)


def test_the_closing_table_shows_what_was_not_measured() -> None:
    screen, stream = console(width=120)
    screen.table({"base": {"pass@1": 0.25, "refusal": None}})
    assert stream.getvalue().splitlines()[-1].split() == ["base", "0.250", "-", "-", "-", "-", "-", "-", "-"]


@pytest.mark.parametrize("width", [80, 120])
def test_sparklines_show_rl_stages_only(width: int) -> None:
    metrics: list[dict[str, Any]] = [{"stage": "sft_1", "step": 1, "sft_1/loss": 1.0}]
    for step in range(1, 101):
        metrics.append({"stage": "r1_zero", "step": step, "r1_zero/length": 17.0 + step, "r1_zero/reflection": 0.5})
    screen, stream = console(width=width)
    screen.sparklines(metrics)
    header, row = stream.getvalue().splitlines()
    assert len(row.rstrip()) <= width
    assert row.startswith("r1_zero")
    assert "18 -> 117" in row
    assert "▁▁" in row
    assert "█" in row
    assert "response length" in header


def test_sparklines_without_rl_print_nothing() -> None:
    screen, stream = console()
    screen.sparklines([{"stage": "sft_1", "step": 1, "sft_1/loss": 1.0}])
    assert stream.getvalue() == ""


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(1, 50))
def test_sparkline_shape(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(BLOCKS)
    if len(values) > 1 and len(values) <= width and min(values) < max(values):
        assert line[values.index(max(values))] == BLOCKS[-1]
        assert line[values.index(min(values))] == BLOCKS[0]


def test_sparkline_means_over_steps() -> None:
    assert sparkline([0, 2, 4, 10], 2) == "▁█"
    assert sparkline([5.0] * 9, 4) == "▁▁▁▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == BLOCKS


def test_sparklines_without_unicode() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert RichConsole(file=stream).options.ascii_only
    screen = Console(stream=stream, width=80)
    screen.sparklines([{"stage": "rl_1", "step": s, "rl_1/length": float(s)} for s in range(8)])
    stream.flush()
    assert b"_.-=+*#@" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_loss_is_shown_only_without_a_reward() -> None:
    assert figures({"loss": 2.0, "lr": 1e-3}) == ["loss 2.000"]
    assert figures({"loss": 2.0, "reward": 0.5}) == ["reward 0.500"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (65, "1m05s"), (7380, "2h03m"), (277200, "3d05h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
