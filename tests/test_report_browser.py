"""The page of a real run in a real browser: what it shows equals the run's files, by pointer and by keyboard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from page_reader import DESKTOP, PHONE, choose, focus, legend, texts
from report_run import folder
from test_pipeline import launch

from bench.chromium import Page
from r1fast.context import read_lines
from r1fast.metrics import read_metrics
from r1fast.tiny import source as tiny_source

STAGES = ("base", "r1_zero", "cold_start", "evaluation")
Opener = Callable[..., Page]


@pytest.fixture(scope="module")
def run(chromium: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of a few steps, whose page the pipeline wrote; not made where no browser can look at it."""
    run_dir = tmp_path_factory.mktemp("runs") / "short"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny_source, "GENERAL_HELD_OUT", 8)
        options = {"stages.r1_zero.steps": 3, "cold_start.prompts": 32, "evaluation.high_temperature_samples": 0}
        done = launch(run_dir, **{"pipeline.stages": json.dumps(STAGES), **options})
    assert done.code == 0, done.errors
    return run_dir


def test_the_table_of_models_equals_the_summary(run: Path, opened: Opener) -> None:
    page = opened(run / "report.html")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    cells = page.value(
        """[...document.querySelectorAll('[data-table="models"] tr[data-model] td[data-column]')].map((cell) => [
          cell.closest("tr").dataset.model,
          cell.dataset.column,
          cell.dataset.value,
          cell.querySelector(".value").textContent,
        ])"""
    )
    models = list(dict.fromkeys(model for model, *_ in cells))
    assert models == list(summary["eval"]) == ["base", "r1_zero"]
    columns = {column for _, column, *_ in cells}
    assert {"pass@1", "accuracy_any", "cons@k", "format", "language", "tokens", "refusal"} <= columns
    for model, column, exact, shown in cells:
        value = summary["eval"][model][column]
        if value is None:
            assert (exact, shown) == ("", "–")
        else:
            assert float(exact) == value
            digits = len(shown.partition(".")[2])
            assert abs(float(shown.replace("−", "-")) - value) <= 0.5 * 10**-digits + 1e-12
    brackets = texts(page, '[data-table="models"] .bracket')
    for text, model in zip(brackets, models, strict=True):
        low, high = (min(1.0, max(0.0, end)) for end in summary["eval"][model]["pass@1_ci"])
        shown_low, shown_high = map(float, text.strip(" []").split(", "))
        assert abs(shown_low - low) <= 0.0005001 and abs(shown_high - high) <= 0.0005001
    ((name, pair),) = summary["pairs"].items()
    assert texts(page, ".pairs tr th") == [name.replace(" - ", " − ")]
    assert float(texts(page, ".pairs .value")[0].replace("−", "-")) == pytest.approx(pair["mean"], abs=0.0005001)


@pytest.mark.parametrize("stage", ["r1_zero", "base"])
def test_every_curves_last_value_equals_the_metrics(run: Path, opened: Opener, stage: str) -> None:
    page = opened(run / "report.html")
    choose(page, "Stage", stage, "#curves")
    page.value("document.querySelector('#curves details').open = true")
    page.wait_for(
        "document.querySelector('#curves details').hidden || document.querySelector('#curves details .chart')"
    )
    expected: dict[str, float] = {}
    for line in read_metrics(run):
        if line["stage"] == stage:
            values = {key: value for key, value in line.items() if key not in ("stage", "step")}
            expected |= {key.removeprefix(f"{stage}/"): value for key, value in values.items()}
    shown: dict[str, float | None] = {}
    for chart in page.value("[...document.querySelectorAll('.chart')].map((one) => one.dataset.chart)"):
        shown |= legend(page, chart)
    assert shown == expected  # every figure of the file is somewhere, to the last bit


def test_values_under_the_arrow_keys_and_under_the_pointer(run: Path, opened: Opener) -> None:
    page = opened(run / "report.html")
    choose(page, "Stage", "r1_zero", "#curves")
    rows = {line["step"]: line["r1_zero/reward"] for line in read_metrics(run) if "r1_zero/reward" in line}
    focus(page, '[data-chart="reward"] .canvas')
    page.press("Home")
    for step, value in rows.items():
        assert legend(page, "reward") == {"reward": value}
        said = page.value("document.activeElement.getAttribute('aria-valuetext')")
        assert said.startswith(f"step {step}: reward ")
        page.press("ArrowRight")
    kl = [line["r1_zero/kl"] for line in read_metrics(run) if "r1_zero/kl" in line]
    page.press("Home")
    assert legend(page, "kl") == {"kl": kl[0]}  # the other charts of the stage follow
    page.point('[data-chart="reward"] .u-over', 0.99)
    assert legend(page, "reward") == {"reward": rows[max(rows)]}
    page.point('[data-chart="reward"] .u-over', 0.01)
    assert legend(page, "reward") == {"reward": rows[min(rows)]}


def test_a_legends_button_hides_its_curve(run: Path, opened: Opener) -> None:
    page = opened(run / "report.html")
    focus(page, '[data-chart="accuracy"] .legend button')
    page.press("Enter")
    assert page.value("document.activeElement.getAttribute('aria-pressed')") == "false"
    page.press("Space")
    assert page.value("document.activeElement.getAttribute('aria-pressed')") == "true"


def test_the_sample_browser_by_keyboard(run: Path, opened: Opener) -> None:
    rows = read_lines(folder(run, "r1_zero") / "samples.jsonl")
    page = opened(run / "report.html")
    focus(page, "#samples input[type=range]")
    for step in (3, 2, 1):
        expected = [row for row in rows if row["step"] == step]
        assert texts(page, "#samples output")[0] == str(step)
        assert texts(page, "#samples .question") == [expected[0]["prompt"]]
        assert texts(page, "#samples .card .response") == [row["response"] for row in expected]
        figures = page.value("[...document.querySelectorAll('#samples .card header b')].map((b) => b.dataset.value)")
        assert [float(text) for text in figures] == [row[key] for row in expected for key in ("reward", "advantage")]
        for row in expected:
            shown = texts(page, f'#samples [data-sample="{row["sample_index"]}"] .parts li')
            assert [text.split(" ")[0] for text in shown] == list(row["parts"])
        page.press("ArrowLeft")


def test_the_tokens_by_keyboard(run: Path, opened: Opener) -> None:
    """To the colours by Tab, to log-prob by arrows, to the first response by Tab, along its tokens by arrows."""
    page = opened(run / "report.html")
    focus(page, "#samples input[type=range]")
    while page.value("document.activeElement.type !== 'radio'"):
        page.press("Tab")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.value("document.activeElement.value") == "logp"
    page.press("Tab")
    group = [row for row in read_lines(folder(run, "r1_zero") / "samples.jsonl") if row["step"] == 3]
    first = group[0]
    assert "".join(texts(page, "#samples [data-sample='0'] .token")) == "".join(first["tokens"])
    for number, logp in enumerate(first["logp"], start=1):
        page.press("ArrowRight")
        said = texts(page, "#samples .readout")[0]
        assert said.startswith(f"token {number} of {first['length']} ")
        shown = float(said.split("log-prob ")[1].split(" ")[0].replace("−", "-"))
        assert shown == pytest.approx(logp, abs=0.00005001)
    strengths = page.value(
        """[...document.querySelectorAll('#samples .card .token')].map((token) =>
          parseFloat(token.style.getPropertyValue('--strength')))"""
    )
    values = [value for row in group for value in row["logp"]]
    assert strengths == pytest.approx([60 * value / min(values) for value in values], abs=0.051)


def test_the_same_problem_by_every_model(run: Path, opened: Opener) -> None:
    kept = {name: read_lines(folder(run, "evaluation") / f"samples-{name}.jsonl") for name in ("base", "r1_zero")}
    page = opened(run / "report.html")
    assert texts(page, "#problems output") == [f"1 of {len(kept['base'])}"]
    focus(page, "#problems .stepper button:last-of-type")
    for number in range(3):
        assert texts(page, "#problems .question") == [kept["base"][number]["prompt"]]
        assert texts(page, "#problems .chain header b") == ["base", "r1_zero"]
        assert texts(page, "#problems .chain .response") == [kept[name][number]["response"] for name in kept]
        verdicts = ["✓ right" if kept[name][number]["right"] >= 1 else "✗ wrong" for name in kept]
        assert texts(page, "#problems .verdict") == verdicts
        page.press("Enter")
    choose(page, "Show", "differ", "#problems")
    differing = sum(a["right"] != b["right"] for a, b in zip(kept["base"], kept["r1_zero"], strict=True))
    shown = texts(page, "#problems output")[0]
    assert shown == (f"1 of {differing}" if differing else "none")


def test_the_yield_equals_the_stages_result(run: Path, opened: Opener) -> None:
    page = opened(run / "report.html")
    result = json.loads((folder(run, "cold_start") / "result.json").read_text(encoding="utf-8"))
    found = page.value(
        """Object.fromEntries([...document.querySelectorAll('[data-yield=cold_start] tr')].map((row) =>
          [row.dataset.reason, Number(row.querySelector('td').dataset.value)]))"""
    )
    assert found == {key.removeprefix("yield/"): value for key, value in result.items() if key.startswith("yield/")}
    assert texts(page, "#yield caption")[0].startswith(f"cold_start {result['samples']:,} samples")
    assert page.value("document.querySelector('#configuration pre').textContent") == (run / "config.toml").read_text(
        encoding="utf-8"
    )
    assert texts(page, "#stages .name") == list(STAGES)


TAB_STOPS = """(() => {
  const node = document.activeElement;
  const shown = node.matches("input[type=radio]") ? node.nextElementSibling : node;
  const style = getComputedStyle(shown);
  const name = node.getAttribute("aria-label") || node.labels?.[0]?.textContent || node.textContent;
  return {
    tag: node.tagName,
    visible: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
    named: Boolean(name.trim()),
    width: shown.getBoundingClientRect().width,
    last: node.closest("footer") !== null,
  };
})()"""


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_everything_is_reached_by_tab_with_a_name_and_a_visible_focus(
    run: Path, opened: Opener, size: tuple[int, int]
) -> None:
    page = opened(run / "report.html", size)
    stops = []
    for _ in range(300):
        page.press("Tab")
        stops.append(page.value(TAB_STOPS))
        if stops[-1]["last"]:
            break
    assert stops[-1]["last"], "the focus never leaves"
    assert {stop["tag"] for stop in stops} >= {"A", "BUTTON", "SELECT", "INPUT", "DIV", "SUMMARY"}
    assert [stop for stop in stops if not (stop["visible"] and stop["named"] and stop["width"] > 0)] == []


LUMINANCE = """(() => {
  const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = (name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(--${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[\\d.]+/g).map((one) => channel(Number(one) / 255));
    probe.remove();
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const names = ["page", "panel", "ink", "soft", "accent", "good", "bad"];
  const series = [1, 2, 3, 4, 5].map((number) => `series-${number}`);
  return Object.fromEntries([...names, ...series].map((name) => [name, luminance(name)]));
})()"""


def test_dark_and_light_by_the_system_and_by_the_button(run: Path, opened: Opener) -> None:
    page = opened(run / "report.html", dark=True)
    seen = []
    for label in ("as the system", "light", "dark"):
        assert label in page.value("document.getElementById('theme').getAttribute('aria-label')")
        seen.append(page.value(LUMINANCE))
        focus(page, "#theme")
        page.press("Enter")
    system, light, dark = seen
    assert system == dark and dark["page"] < 0.05 < 0.8 < light["page"]
    for colours in (light, dark):
        for name, value in colours.items():
            for ground in ("page", "panel"):
                high, low = sorted((value, colours[ground]), reverse=True)
                assert name in ("page", "panel") or (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)  # WCAG AA
