"""The page in a real browser for runs that are hostile, unfinished, empty, long or two; and at any width."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from page_reader import PHONE, choose, focus, legend, texts
from report_run import (
    HOSTILE,
    eval_row,
    folder,
    log,
    sample,
    write_config,
    write_hostile_run,
    write_json_file,
    write_rows,
)

from bench.chromium import Page
from r1fast.report.page import write_report

Opener = Callable[..., Page]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    write_hostile_run(tmp_path / "hostile")
    return write_report(tmp_path / "hostile")


@pytest.mark.parametrize("compared", [False, True])
def test_no_width_scrolls_sideways(hostile: Path, opened: Opener, compared: bool) -> None:
    write_json_file(hostile.parent / "summary.json", {"eval": {name: eval_row(0.5) for name in (HOSTILE[0], "base")}})
    page = opened(write_report(hostile.parent, other=hostile.parent if compared else None), PHONE)
    for width in (320, 390, 600, 760, 1280):
        page.resize(width, 844)
        page.settle()
        page.value("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        page.settle()
        assert page.value("document.documentElement.scrollWidth") <= width, width


def test_what_a_model_writes_stays_text(hostile: Path, opened: Opener) -> None:
    page = opened(hostile)
    assert page.value("window.hacked === undefined")
    assert texts(page, "#samples .card .response") == list(HOSTILE)
    assert texts(page, "#samples .question") == [HOSTILE[0]]
    for colour in ("language", "logp", "entropy", "advantage"):
        page.value(f"document.querySelector('#samples input[value={colour}]').click()")
    assert "".join(texts(page, "#samples [data-sample='0'] .token")) == HOSTILE[0] + "↵\n"
    assert HOSTILE[0] in texts(page, "#yield th")
    assert page.value("document.querySelectorAll('main img, main script').length") == 0
    assert page.value("window.hacked === undefined")


def test_a_run_in_progress_says_so_and_shows_figures_that_are_no_numbers(hostile: Path, opened: Opener) -> None:
    page = opened(hostile)
    assert texts(page, ".state") == ["unfinished"]
    assert "2 of 5 stages done. rl_1: step 3 of 9." in texts(page, "#overview .notice")[0]
    assert "No model has been evaluated yet" in texts(page, "#models .notice")[0]
    assert "No answers to held-out problems yet" in texts(page, "#problems .notice")[0]
    choose(page, "Stage", "rl_1", "#curves")
    assert legend(page, "kl") == {"kl": 0.25}
    assert "2 values are not finite" in texts(page, '[data-chart="kl"] .remark')[0]
    focus(page, '[data-chart="kl"] .canvas')
    page.press("Home")
    assert texts(page, '[data-chart="kl"] output') == ["NaN"]
    page.press("ArrowRight")
    assert texts(page, '[data-chart="kl"] output') == ["−∞"]
    assert legend(page, "reward") == {"reward": math.inf}  # the charts of a stage read the same step


def test_a_run_of_one_stage_and_one_that_has_not_begun(tmp_path: Path, opened: Opener) -> None:
    write_config(tmp_path / "one", "sft_1")
    log(tmp_path / "one", "sft_1", {1: {"loss": 2.0}})
    page = opened(write_report(tmp_path / "one"))
    assert legend(page, "loss") == {"loss": 2.0}
    write_config(tmp_path / "none", "base", "r1_zero")
    page = opened(write_report(tmp_path / "none"), PHONE)
    assert "No figures yet" in texts(page, "#curves .notice")[0]
    assert texts(page, "#stages td") == ["to do", "", "", "to do", "", ""]


def test_a_long_run_is_thinned_and_says_so(tmp_path: Path, opened: Opener) -> None:
    count = 20_000
    write_config(tmp_path, "rl_1")
    rows = [{"stage": "rl_1", "step": n, "rl_1/reward": 9.0 if n == 7777 else n % 3} for n in range(1, count + 1)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    write_rows(
        folder(tmp_path, "rl_1") / "samples.jsonl",
        [sample(n, k, response="x" * 900) for n in range(1, count + 1, 10) for k in (0, 1)],
    )
    page = opened(write_report(tmp_path))
    remark = texts(page, '[data-chart="reward"] .remark')[0]
    assert "Thinned:" in remark and "of 20,000 points" in remark
    assert legend(page, "reward") == {"reward": rows[-1]["rl_1/reward"]}
    left_out = texts(page, "#samples .remark")[0]
    assert (
        "of 2,000 steps, evenly spaced" in left_out
        and "All 4,000 samples" in left_out
        and "04-rl_1/samples.jsonl" in left_out
    )


def test_two_runs_side_by_side(tmp_path: Path, opened: Opener) -> None:
    for number, name in enumerate(("a", "b")):
        write_config(tmp_path / name, "rl_1", "evaluation", seed=number)
        log(tmp_path / name, "rl_1", {step: {"reward": step + number / 2} for step in (1, 2, 3)})
        write_json_file(
            tmp_path / name / "summary.json", {"eval": {"rl_1": eval_row(0.5 + number / 4)}, "seed": number}
        )
        write_json_file(
            folder(tmp_path / name, "evaluation") / "reading-rl_1.json", {"per_problem": {"p": number, "q": 0.5}}
        )
        write_rows(folder(tmp_path / name, "rl_1") / "samples.jsonl", [sample(1, 0, response=f"of run {name}")])
    page = opened(write_report(tmp_path / "a", other=tmp_path / "b"))
    found = page.value(
        """[...document.querySelectorAll('[data-chart="reward"] .legend button')].map((key) =>
          [key.dataset.run, Number(key.querySelector("output").dataset.value)])"""
    )
    assert found == [["A", 3.0], ["B", 3.5]]
    cells = page.value(
        """[...document.querySelectorAll('tr[data-model="rl_1"]')].map((row) =>
          [row.dataset.run, Number(row.querySelector('[data-column="pass@1"]').dataset.value)])"""
    )
    assert cells == [["A", 0.5], ["B", 0.75]]
    assert texts(page, 'tr[data-pair="rl_1"] .value') == ["−0.500"]
    assert texts(page, 'tr[data-setting="run.seed"] code') == ["0", "1"]
    assert texts(page, "#samples .response") == ["of run a"]
    choose(page, "Run", "1", "#samples")
    assert texts(page, "#samples .response") == ["of run b"]
