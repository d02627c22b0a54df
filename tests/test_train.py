"""The command of the main job: exit codes, near matches, SIGTERM, and two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1fast import train
from r1fast.checkpoint import load_state
from r1fast.metrics import read_metrics
from r1fast.options import parse
from r1fast.stages.rl import RLLoop
from r1fast.train import main, run_directory

SHORT = [
    *("--recipe", "smoke", "--pipeline.stages", '["r1_zero"]', "--stages.r1_zero.steps", "4"),
    *("--rl.prompts_per_step", "2", "--rl.dev_every_steps", "0", "--rl.max_tokens", "16"),
    *("--data.num_train", "32", "--run.tensorboard", "false", "--run.save_every_steps", "0"),
]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rl.stepz", "3"], "rl.steps"),
        (["--recipe", "tinny"], "tiny"),
        (["--rl.steps", "many"], "many"),
        (["--rl.group_size", "1"], "group_size"),
        (["stray"], "stray"),
    ],
)
def test_bad_input_is_2_and_says_what_was_meant(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("r1fast: ") and message in errors


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "rl.updates_per_rollout" in capsys.readouterr().out


def test_only_rank_0_complains(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["--nonsense", "3"]) == 2
    assert capsys.readouterr().err == ""


def test_run_directory() -> None:
    assert run_directory(parse(["--recipe", "smoke"])) == Path("runs/smoke")
    assert run_directory(parse(["--recipe", "smoke", "--run", "/x/y"])) == Path("/x/y")
    assert run_directory(parse(["--recipe", "smoke", "--run.name", "mine"])) == Path("runs/mine")


def test_a_failure_is_not_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves main as an exception: Python prints the trace and exits 1."""

    def broken(self: RLLoop) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(RLLoop, "_rollout_and_update", broken)
    with pytest.raises(RuntimeError, match="broken"):
        main([*SHORT, "--run", str(tmp_path / "run")])


def test_a_directory_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from r1fast.distributed import lock_run_dir

    with lock_run_dir(tmp_path):
        assert main([*SHORT, "--run", str(tmp_path)]) == 1
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_sigterm_saves_and_the_same_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, update, steps = tmp_path / "run", RLLoop._rollout_and_update, []

    def terminated(self: RLLoop) -> None:
        steps.append(self.step)
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # in the middle of a step
        update(self)

    monkeypatch.setattr(RLLoop, "_rollout_and_update", terminated)
    command = [*SHORT, "--run", str(run_dir)]
    before = signal.getsignal(signal.SIGTERM)
    assert main(command) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"the same command continues {run_dir}" in capsys.readouterr().err
    state = load_state(run_dir / "stages" / "01-r1_zero")
    assert state is not None and state["step"] == 2  # what was begun is finished and saved
    assert not (run_dir / "stages" / "01-r1_zero" / "result.json").exists()
    assert main(command) == 0
    assert steps == [0, 1, 2, 3]
    assert [line["step"] for line in read_metrics(run_dir)] == [1, 2, 3, 4]
    assert (run_dir / "stages" / "01-r1_zero" / "checkpoint" / "model.safetensors").exists()


def test_sigterm_elsewhere_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train, "_run", terminated)
    assert main([*SHORT, "--run", str(tmp_path / "run")]) == 0
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_config_toml_is_a_record_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_run", lambda context: 0)
    assert main([*SHORT, "--run", str(tmp_path)]) == 0
    text = (tmp_path / "config.toml").read_text(encoding="utf-8")
    assert "[about]" in text and "save_every_steps = 0" in text
    assert main(["--recipe", str(tmp_path / "config.toml"), "--run", str(tmp_path)]) == 0


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "r1fast.train"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [*command, "--recipe", "smoke", "--run.dir", str(tmp_path / "run")],  # torchrun takes --run for its --run-path
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert '"world_size": 2' in (tmp_path / "run" / "summary.json").read_text(encoding="utf-8")
    assert done.stdout.count("r1_zero done") == 1  # only rank 0 talks
