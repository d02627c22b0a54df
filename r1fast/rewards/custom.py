"""A user's own rewards: functions of a Python file, named `my.py:length_penalty` (`--rewards my.py:length_penalty`).

A reward is called with (prompt, rollout), as those of this package are (`score.Reward`), and returns a number or a
`Score`. It runs in the training process and must return at once.
"""

from __future__ import annotations

import inspect
import math
import numbers
import runpy
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1fast.atomic import atomic_file
from r1fast.records import Prompt, Rollout
from r1fast.rewards.score import Check, Score


@dataclass
class CustomReward:
    """A user's function as a `Reward`. What it raises or returns amiss is a `crash`, and `last_error` says what."""

    spec: str
    function: Callable[[Prompt, Rollout], Any]
    last_error: str = ""

    def __call__(self, prompt: Prompt, rollout: Rollout) -> Score | Check:
        try:
            result = self.function(prompt, rollout)
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            self.last_error = f"{self.spec} line {line}: {type(error).__name__}: {error}"[:500]
            return Score(0.0, "crash")
        if isinstance(result, Check):
            return result
        score = result if isinstance(result, Score) else Score(result, "ok")
        if (value := _finite(score.value)) is not None:
            return replace(score, value=value)
        self.last_error = f"{self.spec} returned {result!r}, which is no finite number and no Score of one"[:500]
        return Score(0.0, "crash")


def _finite(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # an integer that no float can hold
        return None
    return number if math.isfinite(number) else None


def split_spec(spec: str) -> tuple[Path, str]:
    """FILE.py:NAME as path and name; ValueError for anything else."""
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise ValueError(f"reward {spec!r} must be FILE.py:NAME, for example my.py:length_penalty")
    return Path(file), name


def load_custom(specs: Sequence[str], taken: Sequence[str] = ()) -> dict[str, CustomReward]:
    """The rewards of `specs` by name; each file is run once.

    Raises:
        ValueError: no such file, the file fails, no such function, one that does not take (prompt, rollout), or a name
            in `taken`; the message gives the fix.
    """
    found: dict[str, CustomReward] = {}
    files: dict[Path, dict[str, Any]] = {}
    for spec in specs:
        path, name = split_spec(spec)
        if name in taken or name in found:
            raise ValueError(f"reward {spec!r}: a reward named {name} exists already; give the function another name")
        if path not in files:
            files[path] = _run(path)
        function = files[path].get(name)
        if not callable(function):
            own = [key for key, value in files[path].items() if inspect.isfunction(value) and not key.startswith("_")]
            raise ValueError(f"{path} has no function {name}; it has {', '.join(own) or 'none'}")
        try:
            inspect.signature(function).bind("prompt", "rollout")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"reward {spec!r} is called with (prompt, rollout), but: {error}; write def {name}(prompt, rollout):"
            ) from None
        found[name] = CustomReward(spec, function)
    return found


def _run(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist (looked in {Path.cwd()}); give the path of a Python file")
    try:
        return runpy.run_path(str(path), run_name=path.stem)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} failed: {type(error).__name__}: {error}; it must run without errors") from error


def record_custom(specs: Sequence[str], run_dir: Path) -> None:
    """Keep the text of every file beside the run, in `rewards/`.

    Raises:
        ValueError: two files of one name, or a run that began with another text.
    """
    kept: dict[str, Path] = {}
    for path in dict.fromkeys(split_spec(spec)[0] for spec in specs):
        if kept.setdefault(path.name, path) != path:
            raise ValueError(f"{kept[path.name]} and {path} have the same name; rename one")
        text, copy = path.read_text(encoding="utf-8"), run_dir / "rewards" / path.name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(copy) as file:
                file.write(text)
        elif copy.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{path} is not what the run in {run_dir} began with ({copy}); restore it, or give --run.dir another "
                "directory"
            )
