"""The command of the main job: exit codes, near matches, SIGTERM, and two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from r1fast import train
from r1fast.checkpoint import StateFolder
from r1fast.config import ConfigError
from r1fast.distributed import RankLost, Ranks
from r1fast.metrics import read_metrics
from r1fast.options import parse
from r1fast.stages.rl import RLLoop
from r1fast.train import RefusedByAll, _each, main, run_directory

ROOT = Path(__file__).parents[1]
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


def test_what_one_rank_cannot_use_is_said_by_rank_0() -> None:
    class Rank0:
        rank = 0

        def gather_objects(self, own: str | None) -> list[str | None]:
            return [own, "data.csv: no such file"]

    with pytest.raises(RefusedByAll, match=r"^rank 1: data\.csv: no such file$"):
        _each(Rank0(), lambda: 3)
    assert _each(Ranks(), lambda: 3) == 3

    def refuse() -> None:
        raise ConfigError("no disk")

    with pytest.raises(RefusedByAll, match=r"^no disk$"):
        _each(Ranks(), refuse)


def test_run_directory() -> None:
    assert run_directory(parse(["--recipe", "smoke"])) == Path("runs/smoke")
    assert run_directory(parse(["--recipe", "smoke", "--run", "/x/y"])) == Path("/x/y")
    assert run_directory(parse(["--recipe", "smoke", "--run.name", "mine"])) == Path("runs/mine")
    assert run_directory(parse(["--recipe", "smoke", "--run=~/mine"])) == Path.home() / "mine"


def test_a_failure_is_not_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves main as an exception: Python prints the trace and exits 1."""

    def broken(self: RLLoop) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(RLLoop, "_rollout_and_update", broken)
    with pytest.raises(RuntimeError, match="broken"):
        main([*SHORT, "--run", str(tmp_path / "run")])


@pytest.mark.parametrize(("moment", "saved"), [("_collect", 1), ("_update", 2)])
def test_sigterm_saves_and_the_same_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str, saved: int
) -> None:
    """A rollout is given up, an update is finished; either way nothing that was trained is lost."""
    run_dir, work, steps = tmp_path / "run", getattr(RLLoop, moment), []

    def terminated(self: RLLoop, *arguments: Any) -> Any:
        steps.append(self.step)
        if self.step == 1 and not self.context.stop.requested and len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return work(self, *arguments)

    monkeypatch.setattr(RLLoop, moment, terminated)
    command = [*SHORT, "--run", str(run_dir)]
    before = signal.getsignal(signal.SIGTERM)
    assert main(command) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped by SIGTERM; the same command continues the run" in capsys.readouterr().err
    found = StateFolder(run_dir / "stages" / "01-r1_zero", pytest.fail).newest()
    assert found is not None and found[0] == saved
    assert not (run_dir / "stages" / "01-r1_zero" / "result.json").exists()
    assert main([*command, "--rl.lr", "0.25", "--loss.kl_coef", "0.5"]) == 2
    errors = capsys.readouterr().err
    assert f"{run_dir} holds a run with another recipe; it differs in loss.kl_coef, rl.lr" in errors
    assert main(command) == 0
    assert steps == [0, 1, *range(saved, 4)]
    assert [line["step"] for line in read_metrics(run_dir)] == [1, 2, 3, 4]
    assert (run_dir / "stages" / "01-r1_zero" / "checkpoint" / "model.safetensors").exists()


def test_sigterm_at_the_start_is_no_failure(tmp_path: Path) -> None:
    """From the first moment: while libraries are imported, too."""
    code = (
        "import os, signal, sys\nfrom r1fast import train\n"
        "class Importing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Importing())\n"
        f"sys.exit(train.main({[*SHORT, '--run', str(tmp_path / 'run')]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "r1fast: stopped by SIGTERM; the same command continues the run\n")


def test_a_rank_that_was_stopped_first_is_no_failure_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its collectives break a little before the signal reaches this one; without a signal the loss is an error."""

    def lost(*_: Any) -> None:
        raise RankLost("another rank ended")

    monkeypatch.setattr(train, "_run", lost)
    monkeypatch.setattr(train, "SIGNAL_SPREAD_S", 0.0)
    with pytest.raises(RankLost):
        main([*SHORT, "--run", str(tmp_path / "run")])
    monkeypatch.setattr(train, "SIGNAL_SPREAD_S", 60.0)
    signals = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    signals.start()
    assert main([*SHORT, "--run", str(tmp_path / "run")]) == 0
    signals.join()
    assert "stopped by SIGTERM" in capsys.readouterr().err


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
    done = subprocess.run(
        [*command, "--recipe", "smoke", "--run.dir", str(tmp_path / "run")],  # torchrun takes --run for its --run-path
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert '"world_size": 2' in (tmp_path / "run" / "summary.json").read_text(encoding="utf-8")
    assert done.stdout.count("r1_zero done") == 1  # only rank 0 talks


def test_large_tensors_ask_for_huge_pages_unless_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for before, after in (({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")):
        monkeypatch.setattr(os, "environ", dict(before))
        train._use_huge_pages()
        assert os.environ["THP_MEM_ALLOC_ENABLE"] == after
