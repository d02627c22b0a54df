"""SmolLM2-135M on a CPU: `python -m bench.smollm2 --model DIRECTORY` (the README says how to get it).

Runs the recipe `smollm2-zero`, R1-Zero alone, or with `--recipe smollm2-r1` all stages (or reads a finished run), and
writes the figures to bench/results/RECIPE.json; of R1-Zero alone it draws strict and lenient accuracy over steps beside
it, for which it needs matplotlib, which reasoning-gym brings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.device import describe as describe_device

RESULTS = Path(__file__).parent / "results"
LEAST_GAIN = 0.10
MOST_MINUTES = 60.0
WINDOW = 5  # steps of the moving mean; a step has 128 samples


def moving_mean(values: list[float], window: int = WINDOW) -> list[float]:
    """Mean of each value and the ones before it, at most `window`."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def curve(lines: list[dict[str, Any]], quantity: str) -> tuple[list[int], list[float]]:
    """Steps and values of one quantity of the stage r1_zero."""
    found = [(line["step"], line[f"r1_zero/{quantity}"]) for line in lines if f"r1_zero/{quantity}" in line]
    return [step for step, _ in found], [value for _, value in found]


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Two panels: training samples at T=0.8 (moving mean) and the dev problems at T=0.6."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    panels = (
        ("training samples, T = 0.8, mean of 5 steps", ("accuracy", "accuracy_any", "format")),
        ("dev problems, T = 0.6, top-p 0.95", ("dev/accuracy", "dev/accuracy_any", "dev/format")),
    )
    labels = ("strict accuracy", "lenient accuracy (format ignored)", "format")
    for axis, (title, quantities) in zip(axes, panels, strict=True):
        for quantity, label, style in zip(quantities, labels, ("-", "-", ":"), strict=True):
            steps, values = curve(lines, quantity)
            dev = quantity.startswith("dev/")
            axis.plot(steps, values if dev else moving_mean(values), style, marker="o" if dev else "", label=label)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimizer step")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, loc="lower right")
    figure.suptitle("R1-Zero on SmolLM2-135M-Instruct, sums of three one-digit terms, 2 CPU cores", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def judge_zero(summary: dict[str, Any]) -> dict[str, Any]:
    """What R1-Zero alone must show: the gain in lenient accuracy."""
    base, trained = summary["eval"]["base"], summary["eval"]["r1_zero"]
    gain = trained["accuracy_any"] - base["accuracy_any"]
    return {"gain_accuracy_any": gain, "met": gain >= LEAST_GAIN, "base": base, "r1_zero": trained}


def judge_pipeline(summary: dict[str, Any]) -> dict[str, Any]:
    """Every model's row, every stage's figures."""
    return {"met": True, "eval": summary["eval"], "pairs": summary["pairs"], "stages": summary["stages"]}


JUDGES = {"smollm2-zero": judge_zero, "smollm2-r1": judge_pipeline}


def main() -> None:
    """Run, draw, judge; exit code 1 when accuracy_any rose too little or it took too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("--recipe", choices=tuple(JUDGES), default="smollm2-zero")
    parser.add_argument("--run", type=Path, help="the run's directory; runs/RECIPE")
    parser.add_argument("options", nargs="*", help="further options of r1fast.train, after --")
    arguments = parser.parse_args()
    recipe, run = arguments.recipe, arguments.run or Path("runs") / arguments.recipe
    command = ["-m", "r1fast.train", "--recipe", recipe, "--model", arguments.model, "--run", str(run)]
    subprocess.run([sys.executable, *command, *arguments.options], check=True)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    RESULTS.mkdir(exist_ok=True)
    if recipe == "smollm2-zero":
        with (run / "metrics.jsonl").open(encoding="utf-8") as file:
            draw([json.loads(line) for line in file], RESULTS / f"{recipe}.png")
    minutes = summary["wall_s"] / 60
    judged = JUDGES[recipe](summary)
    result = {**judged, "minutes": minutes, "met": judged["met"] and minutes <= MOST_MINUTES}
    result |= {**describe_device(summary["device"]), "options": arguments.options}
    result |= {key: summary[key] for key in ("peak_pss_bytes", "seed", "versions")}  # those of the run
    (RESULTS / f"{recipe}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("gain_accuracy_any", "minutes", "met") if key in result}))
    sys.exit(0 if result["met"] else 1)


if __name__ == "__main__":
    main()
