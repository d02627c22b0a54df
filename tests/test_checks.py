"""Options against the number of processes; what holds between options alone is in test_options."""

from __future__ import annotations

import re

import pytest

from r1fast.checks import check_device, check_processes
from r1fast.config import ConfigError
from r1fast.options import parse


def test_any_number_of_processes_that_all_have_work_will_do() -> None:
    config = parse([]).config
    for world_size in (1, 2, 3, 5, 7, 24):  # a batch of 24 prompts need not be divisible
        check_processes(config, world_size)


@pytest.mark.parametrize(
    ("words", "world_size", "message"),
    [
        (
            ["--stages.r1_zero.prompts_per_step", "3"],
            4,
            "stages.r1_zero.prompts_per_step: 3 prompts in a rollout for 4 processes would leave 1 of them without "
            "work; start at most 3 processes, or raise it",
        ),
        (["--stages.r1_zero.prompts_per_step", "[[0, 8], [5, 2]]"], 4, "2 prompts in a rollout for 4 processes"),
        (["--stages.sft_2.batch_size", "6"], 8, "stages.sft_2.batch_size: 6 sequences in a batch for 8 processes"),
        (["--reward_model.batch_size", "1"], 2, "stages.reward_models.batch_size: 1 sequences"),
        (["--stages.rl_1.advantage_scale", "batch_std"], 2, "stages.rl_1.advantage_scale = 'batch_std' with 2 proc"),
    ],
)
def test_more_processes_than_work_are_refused(words: list[str], world_size: int, message: str) -> None:
    config = parse(words).config
    check_processes(config, 1)
    with pytest.raises(ConfigError) as error:
        check_processes(config, world_size)
    assert message in str(error.value)


def test_processes_that_share_micro_batches_come_in_groups() -> None:
    words = ["--distributed.sequence_parallel", "2", "--stages.sft_2.batch_size", "6"]
    check_processes(parse(words).config, 12)  # six shares
    with pytest.raises(ConfigError, match=r"6 sequences in a batch for 7 processes would leave 1 of them"):
        check_processes(parse(words).config, 14)
    with pytest.raises(ConfigError, match=r"sequence_parallel = 2 does not divide 3 processes; start a multiple of 2"):
        check_processes(parse(words).config, 3)


def test_slices_are_not_strict() -> None:
    with pytest.raises(ConfigError, match=r"strict = true with distributed\.sequence_parallel = 2"):
        parse(["--rl.strict", "true", "--distributed.sequence_parallel", "2"])


def test_updates_of_one_rollout_count_together() -> None:
    words = ["--rl.prompts_per_step", "2", "--stages.rl_2.prompts_per_step", "2", "--rl.updates_per_rollout", "4"]
    check_processes(parse(words).config, 8)


def test_strict_is_refused_off_the_cpu() -> None:
    config = parse(["--stages.rl_1.strict", "true"]).config
    check_device(config, "cpu")
    check_device(parse([]).config, "cuda")
    with pytest.raises(ConfigError, match=r"stages\.rl_1\.strict = true holds on the CPU, and this run is on cuda"):
        check_device(config, "cuda")


def test_strict_is_the_paged_engines() -> None:
    with pytest.raises(ConfigError, match=r"strict = true makes the paged engine's .* rollout\.backend is 'vllm'"):
        parse(["--rl.strict", "true", "--rollout.backend", "vllm"])


def test_guesses_are_the_paged_engines() -> None:
    parse(["--rollout.draft_tokens", "4", "--rollout.draft_rows", "32"])
    with pytest.raises(ConfigError, match=r"draft_tokens = 4 is of the paged engine, .*; use 'paged', or set"):
        parse(["--rollout.draft_tokens", "4", "--rollout.backend", "vllm"])
    with pytest.raises(ConfigError, match=r"rollout\.draft_rows = 40 must be a multiple of 16 .* give 48"):
        parse(["--rollout.draft_rows", "40"])


@pytest.mark.parametrize("stage", ["base", "cold_start", "rejection", "evaluation"])
def test_what_the_engine_cannot_do_is_refused_for_stages_that_only_sample(stage: str) -> None:
    """Before anything is trained, not when the stage makes its engine."""
    for key in ("rows", "draft_rows"):
        with pytest.raises(ConfigError, match=rf"stages\.{stage}\.rollout\.{key} = 40 must be a multiple of 16 .* 48"):
            parse([f"--stages.{stage}.rollout.{key}", "40"])
    with pytest.raises(ConfigError, match=rf"stages\.{stage}\.rollout\.draft_tokens = 4 is of the paged engine"):
        parse([f"--stages.{stage}.rollout.backend", "vllm", "--rollout.draft_tokens", "4"])


def test_gaps_rise() -> None:
    parse(["--loss.warn_gap", "0.3", "--loss.correct_gap", "0", "--loss.stop_gap", "0.3"])
    with pytest.raises(ConfigError, match=r"warn_gap = 0.05, correct_gap = 0.1, stop_gap = 0.02 must not fall"):
        parse(["--loss.stop_gap", "0.02"])


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--loss.kl_coef", "0.001"], "loss.kl = 'k3' with kl_coef 0.001"),
        (["--loss.kl", "none", "--loss.entropy_coef", "0.1"], "loss.entropy_coef = 0.1"),
        (["--loss.kl", "none", "--loss.objective", "nll"], "loss.objective = 'nll', which raises every completion,"),
    ],
)
def test_samples_without_an_advantage_are_skipped_only_where_nothing_else_moves_them(
    words: list[str], what: str
) -> None:
    parse(["--loss.kl", "none", "--rl.zero_variance", "skip"])
    with pytest.raises(ConfigError, match=re.escape(f"would drop the gradient of {what}")):
        parse(["--rl.zero_variance", "skip", *words])
