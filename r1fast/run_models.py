"""The models of a run by name: rows of the closing table (`r1`), stages (`rl_2`), `base` and `student`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1fast.checks import STUDENT_STAGES
from r1fast.config import Config, ConfigError
from r1fast.context import ROWS
from r1fast.run_dir import stage_directory

# Asked for without a name: the first of these that is finished.
PREFERRED = ("r1", "sft_2", "rl_1", "sft_1", "r1_zero", "student_rl", "student_distilled", "base")


@dataclass(frozen=True, kw_only=True)
class RunModel:
    """A name, the stage whose checkpoint it is (or `base`, `student`), and whether that is there."""

    name: str
    origin: str
    finished: bool


def run_models(config: Config, run_dir: Path) -> Mapping[str, RunModel]:
    """Every model that the run's pipeline makes or starts from, by row and by stage."""
    stages = config.pipeline.stages
    names = {row: origin for row, origin in ROWS.items() if origin in stages or origin == "base"}
    if not STUDENT_STAGES.isdisjoint(stages):
        names |= {"student_base": "student", "student": "student"}
    names |= {origin: origin for origin in ROWS.values() if origin in stages}
    return {
        name: RunModel(name=name, origin=origin, finished=_is_finished(run_dir, origin))
        for name, origin in names.items()
    }


def choose_model(models: Mapping[str, RunModel], name: str = "") -> RunModel:
    """The model of this name; without one the last that the pipeline has finished.

    Raises:
        ConfigError: no such model (near names, and which there are), or not finished yet.
    """
    finished = [model.name for model in models.values() if model.finished]
    if not name:
        return models[next(preferred for preferred in PREFERRED if preferred in finished)]
    if name not in models:
        near = difflib.get_close_matches(name, models, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"model {name!r} is not in this run: {hint}its models are {', '.join(models)}")
    if not models[name].finished:
        raise ConfigError(
            f"model {name!r}: stage {models[name].origin} is not finished, so it has no checkpoint yet; finished are "
            f"{', '.join(finished)}"
        )
    return models[name]


def _is_finished(run_dir: Path, origin: str) -> bool:
    return origin in ("base", "student") or (stage_directory(run_dir, origin) / "result.json").exists()
