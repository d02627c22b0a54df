"""The plan: counts that can be done by hand, memory that follows the options, and what is printed."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig

from r1fast.config import Config
from r1fast.ops import checks
from r1fast.options import parse
from r1fast.plan import PAGE_TOKENS, ModelSize, Plan, Speed, StagePlan, duration, make_plan, print_plan, probe_speed

TEACHER = ModelSize(
    num_params=1_013_760, vocab_size=231, hidden_size=128, intermediate_size=512, num_layers=4, kv_width=64
)
STUDENT = ModelSize(
    num_params=137_984, vocab_size=231, hidden_size=64, intermediate_size=256, num_layers=2, kv_width=32
)
SPEED = Speed(flops_per_s=1e11)
THIRTY_STEPS = ["--stages.r1_zero.steps", "30"]


def stages(config: Config, **options: int) -> dict[str, StagePlan]:
    plan = make_plan(config, TEACHER, student=STUDENT, speed=SPEED, **options)
    return {stage.name: stage for stage in plan.stages}


def memory(stage: StagePlan) -> dict[str, int]:
    return dict(stage.work.memory)


def test_an_rl_stage_counts_samples_and_tokens() -> None:
    config = parse(["--rl.dev_every_steps", "0", *THIRTY_STEPS]).config
    work = stages(config, prompt_tokens=35)["r1_zero"].work
    assert (work.steps, work.samples) == (30, 30 * 32 * 8)
    assert work.generated_tokens == 7_680 * 64
    assert work.trained_tokens == 7_680 * (64 + 35)


def test_schedules_count_piece_by_piece() -> None:
    argv = ["--rl.dev_every_steps", "0", *THIRTY_STEPS, "--rl.max_tokens", "[[0, 64], [20, 128]]"]
    work = stages(parse([*argv, "--rl.prompts_per_step", "[[0, 32], [25, 16], [90, 1]]"]).config)["r1_zero"].work
    assert work.samples == (25 * 32 + 5 * 16) * 8
    assert work.generated_tokens == (20 * 32 * 64 + 5 * 32 * 128 + 5 * 16 * 128) * 8


def test_dev_evaluations_are_counted() -> None:
    without = stages(parse([*THIRTY_STEPS, "--rl.dev_every_steps", "0"]).config)["r1_zero"].work
    argv = [*THIRTY_STEPS, "--rl.dev_every_steps", "10", "--rl.dev_problems", "100"]
    with_dev = stages(parse(argv).config)["r1_zero"].work
    assert with_dev.generated_tokens - without.generated_tokens == 4 * 100 * 64  # before, and after 10, 20, 30 steps


def test_supervised_stages_take_steps_or_epochs() -> None:
    by_steps = stages(parse(["--stages.sft_2.steps", "120"]).config)["sft_2"].work
    assert (by_steps.steps, by_steps.samples) == (120, 120 * 64)
    config = parse(["--sft.steps", "0", "--sft.epochs", "2"]).config
    by_epochs = stages(config)
    assert by_epochs["sft_1"].work.steps == 2 * 256 // 64  # max_kept of the cold start
    kept = 1024 * 2 / 0.75  # two a prompt, a quarter general data beside them
    assert by_epochs["sft_2"].work.steps == pytest.approx(2 * kept / 64, abs=1)


def test_evaluation_counts_every_model_of_the_closing_table() -> None:
    work = stages(parse([]).config)["evaluation"].work
    assert work.samples == 9 * 512 * (8 + 4)  # the nine rows of summary.json
    zero = parse(["--pipeline.stages", "base,r1_zero,evaluation"]).config
    assert stages(zero)["evaluation"].work.samples == 2 * 512 * (8 + 4)


def test_memory_follows_the_options() -> None:
    plain = memory(stages(parse([]).config)["r1_zero"])
    params = TEACHER.num_params
    assert (plain["masters"], plain["gradients"], plain["AdamW"]) == (4 * params, 4 * params, 8 * params)
    assert plain["reference"] == 4 * params
    assert "compute copy" not in plain
    assert "reference" not in memory(stages(parse(["--loss.kl", "none"]).config)["r1_zero"])
    half = memory(stages(parse([]).config, compute_bytes=2)["r1_zero"])
    assert half["compute copy"] == half["reference"] == 2 * params
    small = memory(stages(parse(["--optimizer.micro_batch_tokens", "512"]).config)["sft_2"])
    large = memory(stages(parse(["--optimizer.micro_batch_tokens", "4096"]).config)["sft_2"])
    assert 6 < large["activations"] / small["activations"] < 8.01
    saving = memory(stages(parse(["--optimizer.gradient_checkpointing", "true"]).config)["sft_2"])
    assert saving["activations"] < large["activations"] / 2
    rl_2 = memory(stages(parse([]).config)["rl_2"])
    assert rl_2["reward models"] == 8 * params


def test_pages_are_those_of_the_cache() -> None:
    assert PAGE_TOKENS == checks.PAGE_TOKENS


def test_the_kv_cache_of_long_completions_outgrows_the_activations() -> None:
    argv = ["--rl.max_tokens", "32768", "--rl.dev_every_steps", "0"]
    parts = memory(stages(parse(argv).config, prompt_tokens=0)["r1_zero"])
    assert parts["KV cache"] == 256 * 32_768 * 2 * 4 * 64 * 4  # rows, tokens, K and V, layers, width, bytes


def test_time_falls_with_processes_and_rises_with_steps() -> None:
    config = parse(THIRTY_STEPS).config
    one, two = stages(config)["r1_zero"], stages(config, world_size=2)["r1_zero"]
    assert two.time_s == pytest.approx(one.time_s / 2, rel=1e-3)  # a rank cannot take half a row
    longer = stages(parse(["--rl.steps", "60"]).config)["r1_zero"]
    assert longer.time_s == pytest.approx(2 * one.time_s, rel=0.1)


def test_the_students_size_is_needed_for_its_stages() -> None:
    with pytest.raises(ValueError, match="student="):
        make_plan(parse([]).config, TEACHER, speed=SPEED)


@pytest.mark.parametrize("tied", [True, False])
def test_model_size_reads_a_hugging_face_config(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=231,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    size = ModelSize.of(config)
    assert size.num_params == TEACHER.num_params + (0 if tied else 231 * 128)
    assert (size.kv_width, size.num_layers, size.intermediate_size, size.vocab_size) == (64, 4, 512, 231)


def test_the_printed_plan_names_stages_memory_and_assumptions() -> None:
    output = io.StringIO()
    plan = make_plan(parse([]).config, TEACHER, student=STUDENT, speed=SPEED)
    print_plan(plan, Console(file=output, width=140))
    text = output.getvalue()
    for stage in plan.stages:
        assert f" {stage.name} " in text
    for words in ("7,680", "MiB", "masters", "upper bounds", "100 GFLOP/s", "60% of it"):
        assert words in text
    assert plan.time_s == sum(stage.time_s for stage in plan.stages)


def test_the_whole_r1_recipe_can_be_planned() -> None:
    config = parse(["--recipe", "r1", "--model", "m", "--model.student", "s", "--data", "d.jsonl"]).config
    plan: Plan = make_plan(config, TEACHER, student=STUDENT, speed=SPEED, world_size=8)
    zero = next(stage for stage in plan.stages if stage.name == "r1_zero")
    assert zero.work.samples == 10_400 * 512


def test_the_probe_takes_its_time_and_finds_a_rate() -> None:
    speed = probe_speed(torch.device("cpu"), torch.float32, duration_s=0.05)
    assert speed.flops_per_s > 1e8


def test_durations_in_words() -> None:
    assert [duration(time_s) for time_s in (42, 420, 12_600, 1e6)] == ["42 s", "7 min", "3.5 h", "12 days"]
