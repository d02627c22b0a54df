"""What a page says of one run, as plain data: read from the run's directory, finished or not, old or new."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from r1fast.config import RL_STAGES, STAGES, ConfigError
from r1fast.intervals import paired_difference
from r1fast.metrics import METRICS_FILE, iter_metrics
from r1fast.report.completions import read_examples, read_groups, read_problems, right_shares
from r1fast.report.curves import read_curves

# What one run may put into a page. `tiny` stays whole within it.
CURVE_VALUES = 60_000
GROUP_BYTES = 2_400_000
PROBLEM_BYTES = 800_000
EXAMPLE_BYTES = 100_000

SUMMARY_KEYS = ("peak_pss_bytes", "world_size", "device", "versions")
DATA_STAGES = ("cold_start", "rejection")

Data = dict[str, Any]


def read_run(run_dir: Path, *, num_runs: int = 1) -> Data:
    """Everything a page shows of a run; `num_runs` share the page's budget.

    Raises ConfigError for a directory that holds no run and for a file of it that cannot be read, ValueError for
    metrics that are not JSON.
    """
    config_file, metrics_file = run_dir / "config.toml", run_dir / METRICS_FILE
    if not any((run_dir / name).exists() for name in ("config.toml", METRICS_FILE, "summary.json")):
        there = "holds no run" if run_dir.is_dir() else "does not exist"
        raise ConfigError(
            f"{run_dir} {there}: there is no config.toml, {METRICS_FILE} or summary.json; "
            "give the directory that --run named, runs/RECIPE by default"
        )
    text = config_file.read_text(encoding="utf-8") if config_file.exists() else ""
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{config_file} is not TOML ({error}); restore it, or remove it to do without") from error
    summary = _read_json(run_dir / "summary.json")
    stages = _stages(run_dir, config)
    curves = read_curves(iter_metrics(metrics_file), CURVE_VALUES // num_runs) if metrics_file.exists() else {}
    table = _table(run_dir, summary, curves)
    directories = {stage["name"]: run_dir / "stages" / stage["folder"] for stage in stages}
    about = config.pop("about", {})
    return {
        "name": str(config.get("run", {}).get("name") or run_dir.resolve().name),
        "folder": run_dir.resolve().name,
        "seed": summary.get("seed", config.get("run", {}).get("seed")),
        "finished": bool(stages) and all(stage["done"] for stage in stages),
        "last_written": _written(metrics_file),
        "wall_s": sum(stage["result"].get("wall_s", 0.0) for stage in stages),
        "summary": {key: summary[key] for key in SUMMARY_KEYS if key in summary},
        "eval": table,
        "pairs": summary.get("pairs", {}),
        "stages": stages,
        "curves": curves,
        "groups": read_groups(
            {stage: path / "samples.jsonl" for stage, path in directories.items() if stage in RL_STAGES},
            GROUP_BYTES // num_runs,
        ),
        "problems": read_problems(_folder(run_dir, "evaluation"), list(table), PROBLEM_BYTES // num_runs),
        "examples": read_examples(
            {stage: path / "examples.jsonl" for stage, path in directories.items() if stage in DATA_STAGES},
            EXAMPLE_BYTES // num_runs,
        ),
        "about": about,
        "config": text,
    }


def compare(first: Path, second: Path, runs: tuple[Data, Data]) -> Data:
    """What two runs have in common and what not: paired differences in pass@1, and settings that differ.

    {"pairs": model -> `paired_difference` (first - second) on the problems both answered,
    "settings": [{"key", "values": of either}]}.
    """
    pairs = {}
    for model in runs[0]["eval"]:
        shares = [right_shares(_folder(run_dir, "evaluation"), model) for run_dir in (first, second)]
        if set(shares[0]) & set(shares[1]):
            pairs[model] = paired_difference(*shares)
    settings = [_leaves(tomllib.loads(run["config"])) for run in runs]
    keys = [key for key in {**settings[0], **settings[1]} if not key.startswith("about.")]
    return {
        "pairs": pairs,
        "settings": [
            {"key": key, "values": [table.get(key, "not set") for table in settings]}
            for key in keys
            if settings[0].get(key) != settings[1].get(key)
        ],
    }


def _stages(run_dir: Path, config: Mapping[str, Any]) -> list[Data]:
    """The stages of the run's pipeline, with what each found if it is done."""
    named = config.get("pipeline", {}).get("stages") or [
        stage for stage in STAGES if (_folder(run_dir, stage)).is_dir()
    ]
    stages = []
    for stage in named:
        folder = _folder(run_dir, stage)
        section = STAGES.get(stage, "")
        own = config.get("stages", {}).get(stage, {}).get(section, {})
        result = _read_json(folder / "result.json")
        stages.append(
            {
                "name": stage,
                "section": section,
                "folder": folder.name,
                "done": bool(result),
                "steps": {**config.get(section, {}), **own}.get("steps") or result.get("steps"),
                "result": {key: value for key, value in result.items() if key not in ("eval", "pairs")},
            }
        )
    return stages


def _table(run_dir: Path, summary: Mapping[str, Any], curves: Mapping[str, Any]) -> Data:
    """The table of models; while evaluation is going on, the models it has read, in its order."""
    if summary.get("eval"):
        return dict(summary["eval"])
    named = dict.fromkeys(name.split("/")[0] for name in curves.get("evaluation", {}).get("series", ()))
    files = {name: _folder(run_dir, "evaluation") / f"reading-{name}.json" for name in named}
    return {name: _read_json(file)["row"] for name, file in files.items() if file.exists()}


def _folder(run_dir: Path, stage: str) -> Path:
    number = list(STAGES).index(stage) if stage in STAGES else len(STAGES)
    return run_dir / "stages" / f"{number:02d}-{stage}"


def _read_json(path: Path) -> Data:
    """A JSON file as a dict, empty where there is none; NaN and infinities become strings."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"), parse_constant=str))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); restore it, or remove it to do without") from error


def _written(path: Path) -> str | None:
    """When a file was last written, in UTC."""
    if not path.exists():
        return None
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key -> value as JSON."""
    found: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value, ensure_ascii=False)
    return found
