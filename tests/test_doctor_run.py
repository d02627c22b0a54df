"""The doctor on runs: recorded ones that went wrong by a real misconfiguration (bench/bad_runs.py), a good one, and
runs that are unfinished, running or dead."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from pathlib import Path

import pytest

from bench.bad_runs import RUNS as MISCONFIGURED
from r1fast.config import ConfigError
from r1fast.distributed import lock_run_dir
from r1fast.doctor.line import Line
from r1fast.doctor.run import SILENT_S, ago, check_run, command, num_steps
from r1fast.failure import write_failure
from r1fast.options import parse

RECORDINGS = Path(__file__).parent / "data" / "runs"


def findings(run_dir: Path) -> list[Line]:
    return [line for line in check_run(run_dir) if line.status in ("warn", "fail")]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A finished run of the recipe tiny."""
    run_dir = shutil.copytree(RECORDINGS / "good", tmp_path / "good")
    packed = run_dir / "metrics.jsonl.gz"
    (run_dir / "metrics.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return run_dir


# Recording -> all that is said of it but "the reward did not rise", in order. What causes it is among them, and nothing
# is blamed that only follows from it, or is false.
FINDINGS: dict[str, tuple[str, ...]] = {
    "max_tokens_too_small": (
        "length hits the limit in 49% of the samples (mean length 7), which can hardly earn a reward: raise max_tokens",
        "92% of the groups have equal rewards and teach nothing (mostly all wrong, accuracy 0.01)",
        "none of the completions have the format although 7% have the right number somewhere",
        "72% of the answers cannot be parsed and score 0",
    ),
    "lr_too_high": (
        "KL to the reference grew from 0.000 to 8.844 nats a token: the policy runs away; lower lr",
        "100% of the completions never end (mean length 64), 36% did so at first: the policy has lost its end token",
        "entropy grew from 0.53 to 1.38 nats a token: the policy becomes random; lower lr",
        "r1_zero has pass@1 0.000, base, from which it was trained, 0.176",
        "r1_zero: 100% of the answers hit the length limit and count as wrong",
    ),
    "lr_beyond_reason": (
        "died on 2026-11-22 20:09:37 in stage r1_zero (1 of 1), after step 1 of 20: RuntimeError: the gradient's norm "
        "is nan at step 1",
    ),
    "lr_too_low": (
        "the policy has hardly moved: KL to the reference is 2e-13 nats a token at most; raise lr (it is 1e-09)",
    ),
    "temperature_too_low": (
        "entropy is 0.010 nats a token: samples of a group are nearly the same; raise the temperature",
        "95% of the groups have equal rewards and teach nothing (their samples are nearly the same, accuracy 0.72)",
    ),
    "template_of_unknown_words": (
        "94% of the groups have equal rewards and teach nothing (mostly all wrong, accuracy 0.01)",
        "none of the completions have the format although 3% have the right number somewhere: raise the format "
        "reward's weight, or use a template that the model follows",
        "77% of the answers cannot be parsed and score 0",
    ),
    "answers_of_other_questions": ("the reward rose from 0.04 to 0.16 while accuracy stayed at 0.01 -> 0.01",),
    "answers_that_hang": ("the verifier failed on 1% of the answers (30 timeouts, crashes), which score 0",),
    "rollouts_too_old": (
        "the reward rose from 0.09 to 0.17 while accuracy stayed at 0.03 -> 0.01",
        "KL to the reference grew from 0.000 to 2.860 nats a token: the policy runs away; lower lr",
        "19% of the tokens are clipped and have no gradient in the last of 5 updates of a rollout: the policy moves "
        "too far within one; lower lr or updates_per_rollout",
        "entropy grew from 0.53 to 1.28 nats a token: the policy becomes random; lower lr",
    ),
    "gradient_clipping_too_tight": (
        "the policy has hardly moved: KL to the reference is 4e-06 nats a token at most",
        "the gradient was clipped in 20 of 20 steps (median norm 0.3, limit 1e-08): hardly anything is left of it "
        "beside Adam's epsilon; raise max_grad_norm",
    ),
    "entropy_bonus_too_large": (
        "KL to the reference grew from 0.000 to 4.722 nats a token: the policy runs away",
        "entropy grew from 0.53 to 4.48 nats a token: the policy becomes random; lower entropy_coef (it is 1)",
    ),
    "positions_that_change_with_length": (
        "the log-prob gap between rollout and trainer is 0.329 nats a token (in one precision below 0.001, in bfloat16 "
        "about 0.01): samples are not from this policy; check the dtypes and whether the model's position encoding "
        "changes with length",
    ),
    "killed": ("stopped in stage r1_zero (1 of 1), after step 12 of 20 without a message (SIGTERM, killed",),
    "sft_lr_too_high": ("the loss rose: 0.296 -> 205.807 nats a token over 30 steps",),
    "sft_lr_too_low": ("the loss did not fall: 0.294 -> 0.294 nats a token over 30 steps",),
    "sft_on_four_examples": (
        "the loss is 0.0001 at the end: the examples are learned by heart, every example seen 240 times",
    ),
    "cold_start_cut_off": (
        "died on 2026-11-22 20:51:16 in stage cold_start (2 of 3): RuntimeError: cold_start kept none of 256 samples",
        "max_tokens = 8, but completions of r1_zero have 23 tokens: most are cut off",
    ),
    "reward_models_lr_too_high": (
        "helpful: loss 0.654, 64% right in training, 52% on held-out data; a coin has 0.693 and 50%",
    ),
    "reward_models_by_heart": (
        "helpful: loss 0.000, 100% right in training, 72% on held-out data",
        "safe: loss 0.002, 100% right in training, 84% on held-out data",
    ),
}
GOES_ON = {"answers_that_hang", "positions_that_change_with_length", "sft_on_four_examples", "reward_models_by_heart"}


@pytest.mark.parametrize("name", FINDINGS)
def test_what_went_wrong_is_named_with_figures(name: str) -> None:
    lines = [line for line in findings(RECORDINGS / name) if not line.value.startswith("the reward did not rise: ")]
    assert len(lines) == len(FINDINGS[name]), [line.value for line in lines]
    for line, text in zip(lines, FINDINGS[name], strict=True):
        assert line.value.startswith(text)
    failed = any(line.status == "fail" for line in findings(RECORDINGS / name))
    assert failed == (name not in GOES_ON)  # a stage that has done its job, at a price, is only warned of


def test_every_misconfiguration_is_recorded_as_it_is_made_now() -> None:
    assert {path.name for path in RECORDINGS.iterdir()} == {*MISCONFIGURED, "good"} == {*FINDINGS, "good"}
    for name, words in MISCONFIGURED.items():
        assert command(RECORDINGS / name) == f"python -m r1fast.train {words} --run {name}"


def test_a_good_run_has_nothing_wrong(good: Path) -> None:
    lines = list(check_run(good))
    assert [line for line in lines if line.status != "ok"] == []
    assert {line.name for line in lines} == {
        *("run", "r1_zero", "cold_start", "sft_1", "rl_1", "rejection", "sft_2", "reward_models", "rl_2", "distill"),
        *("student_rl", "evaluation"),
    }
    assert lines[0].value == "finished, 12 stages"


def unfinished(good: Path, stage: str = "08-rl_2") -> Path:
    """The run as if it had ended within a stage: no result of it or of any later one."""
    for folder in (good / "stages").iterdir():
        if folder.name >= stage:
            (folder / "result.json").unlink()
    lines = (good / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if '"stage": "rl_2"' in line)
    (good / "metrics.jsonl").write_text("".join(lines[: last - 4]) + '{"stage": "rl_2", "st', encoding="utf-8")
    return good


def test_a_run_that_stopped_says_where_and_how_to_go_on(good: Path) -> None:
    (line,) = findings(unfinished(good))
    assert line.status == "fail" and line.name == "run"
    assert line.value.startswith("stopped in stage rl_2 (9 of 12), after step 15 of 20 without a message (SIGTERM, ")
    assert line.fix == "it continues with: python -m r1fast.train --run runs/good --run.seed 1"


def test_a_run_that_died_says_of_what(good: Path) -> None:
    try:
        raise RuntimeError("the gradient's norm is inf at step 16\nand more")
    except RuntimeError as error:
        write_failure(unfinished(good), "rl_2", error)
    (line,) = findings(good)
    assert line.status == "fail"
    assert "in stage rl_2 (9 of 12), after step 15 of 20: RuntimeError: the gradient's norm is inf at" in line.value
    assert "test_doctor_run.py:" in line.value and "and more" not in line.value
    assert line.fix.startswith("repair the cause, then: python -m r1fast.train")


def test_a_run_that_is_running_is_not_wrong_unless_it_is_silent(good: Path) -> None:
    with lock_run_dir(unfinished(good)):
        running = next(iter(check_run(good)))
        assert (running.status, findings(good)) == ("ok", [])
        assert running.value.startswith(f"running in process {os.getpid()}: stage rl_2 (9 of 12), after step 15 of 20")
        long_ago = time.time() - 2 * SILENT_S
        os.utime(good / "metrics.jsonl", (long_ago, long_ago))
        (silent,) = findings(good)
        assert silent.status == "warn" and "last figures 30 minutes ago" in silent.value
        assert f"py-spy dump --pid {os.getpid()}" in silent.fix


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    shutil.copy(RECORDINGS / "good" / "config.toml", tmp_path)
    (line,) = check_run(tmp_path)
    assert line.status == "fail" and line.value.startswith("stopped in stage base (1 of 12) without a message")


def test_what_is_no_run_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.toml"):
        check_run(tmp_path)
    shutil.copy(RECORDINGS / "good" / "config.toml", tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{\n", encoding="utf-8")
    (line,) = check_run(tmp_path)
    assert line.status == "fail" and "metrics.jsonl, line 1 is not JSON" in line.value


def test_it_only_reads(good: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unfinished(good).rglob("*")}
    list(check_run(good))
    assert {path: path.stat().st_mtime_ns for path in good.rglob("*")} == before


def test_how_to_go_on_without_a_command(tmp_path: Path) -> None:
    assert command(tmp_path) == f"python -m r1fast.train --recipe {tmp_path}/config.toml --run.dir {tmp_path}"


def test_steps_of_stages() -> None:
    config = parse([]).config
    assert [num_steps(config, stage) for stage in ("rl_1", "sft_2", "reward_models", "evaluation")] == [30, 120, 320, 0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 seconds"), (90, "90 seconds"), (600, "10 minutes"), (9000, "2 hours"), (3e5, "3 days")]
)
def test_ago(seconds: float, text: str) -> None:
    assert ago(seconds) == text
