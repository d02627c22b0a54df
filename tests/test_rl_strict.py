"""RL with rl.strict: the gap is 0 and the first update's ratio 1, exactly; and what a gap leads to without it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import open_context, save_model, tiny_config

from r1fast.metrics import read_metrics
from r1fast.records import Rollout
from r1fast.rollout.engine import RolloutEngine
from r1fast.stages.rl import RLLoop, run_rl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def run(model: Path, directory: Path, **options: Any) -> list[dict[str, Any]]:
    """The stage's lines in metrics.jsonl."""
    defaults = {"stages__r1_zero__steps": 2, "rl__lr": 1e-2, "rl__dev_every_steps": 0, "data__num_train": 16}
    config = tiny_config(model, **defaults, rewards__math__language_any=1.0, **options)
    run_rl(open_context(config, directory), "r1_zero")
    lines = read_metrics(directory)
    return [{key.removeprefix("r1_zero/"): value for key, value in line.items()} for line in lines if line["step"]]


class Shifted(RolloutEngine):
    """Says other log-probs than those it drew by."""

    shift = 0.0

    def groups(self, *rest: Any) -> Generator[list[Rollout], None, None]:
        for group in super().groups(*rest):
            yield [replace(rollout, logp=rollout.logp + self.shift) for rollout in group]


@pytest.mark.parametrize(("updates", "dtype"), [(1, "bfloat16"), (2, "float32"), (2, "bfloat16")])
def test_strict_is_exact(model: Path, tmp_path: Path, updates: int, dtype: str) -> None:
    lines = run(model, tmp_path, rl__strict="true", rl__updates_per_rollout=updates, run__dtype=dtype)
    assert len(lines) == 2
    for line in lines:
        assert line["logp_gap"] == line["logp_gap_max"] == 0.0
        assert line["rollout_ratio_max"] == 1.0
        assert line["grad_norm"] > 0
    first, second = lines
    assert first["ratio_min"] == first["ratio_max"] == 1.0
    assert first["kl"] == 0.0  # the reference, too, is scored by the same arithmetic
    if updates == 2:
        assert second["ratio_max"] > 1.0


def test_strict_learns_as_training_without_it(model: Path, tmp_path: Path) -> None:
    strict, plain = (run(model, tmp_path / flag, rl__strict=flag) for flag in ("true", "false"))
    assert 0 < plain[0]["logp_gap_max"] < 1e-4
    assert plain[0]["rollout_ratio_max"] > 1.0
    for name in ("loss", "grad_norm", "entropy", "reward"):
        assert strict[0][name] == pytest.approx(plain[0][name], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize(("shift", "strict"), [(2.0, "false"), (1e-6, "true")])
def test_a_gap_ends_the_run_before_an_update(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float, strict: str
) -> None:
    monkeypatch.setattr("r1fast.rollout.backend.RolloutEngine", Shifted)
    monkeypatch.setattr(Shifted, "shift", shift)
    with pytest.raises(RuntimeError, match=r"step 1: rollout and trainer log-probs differ by .* nothing was updated"):
        run(model, tmp_path, rl__strict=strict)
    assert not [line for line in read_metrics(tmp_path) if line["step"]]


def test_a_gap_turns_the_correction_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("r1fast.rollout.backend.RolloutEngine", Shifted)
    monkeypatch.setattr(Shifted, "shift", -0.5)
    config = tiny_config(model, rl__dev_every_steps=0, rewards__math__language_any=1.0, stages__r1_zero__steps=2)
    loop = RLLoop(open_context(config, tmp_path), "r1_zero")
    loop.run()
    assert loop._positions()["logp_gap"] == {"warned": True, "corrects": True}
    for line in read_metrics(tmp_path)[-2:]:
        assert line["r1_zero/correction_weight"] == pytest.approx(1.6487, rel=1e-3)
    assert "truncated importance weights" in " ".join(capsys.readouterr().out.split())
