"""The plan: counts that can be done by hand, memory that follows the options, and what is printed."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig

from r1fast.config import Config
from r1fast.model_size import ModelSize
from r1fast.options import parse
from r1fast.phase_memory import KEPT, Place, total
from r1fast.plan import Plan, Speed, StagePlan, duration, make_plan, print_plan, probe_speed

TEACHER = ModelSize(
    num_params=1_013_760, vocab_size=231, hidden_size=128, intermediate_size=512, num_layers=4, kv_width=64
)
STUDENT = ModelSize(
    num_params=137_984, vocab_size=231, hidden_size=64, intermediate_size=256, num_layers=2, kv_width=32
)
SPEED = Speed(flops_per_s=1e11)
THIRTY_STEPS = ["--stages.r1_zero.steps", "30"]


def stages(config: Config, **options: Any) -> dict[str, StagePlan]:
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
    limit = parse(argv).config.evaluation.max_tokens
    assert with_dev.generated_tokens - without.generated_tokens == 4 * 100 * limit  # before, and after 10, 20, 30 steps
    argv[argv.index("10")] = "20"
    dev = stages(parse(argv).config)["r1_zero"].work.dev
    assert dev is not None and dev.samples == 300  # before, after 20, and after the last


def test_dev_is_read_at_the_limit_of_the_evaluation() -> None:
    argv = [*THIRTY_STEPS, "--rl.dev_every_steps", "10", "--rl.dev_problems", "100"]
    longer = [*argv, "--stages.r1_zero.evaluation.max_tokens", "4096"]
    short, long = (stages(parse(words).config, prompt_tokens=0)["r1_zero"] for words in (argv, longer))
    assert long.work.dev is not None and long.work.dev.generated_tokens == 4 * 100 * 4096
    assert long.work.limit == short.work.limit == 64
    row_bytes = 4096 * 2 * 4 * 64 * 4
    for phase in ("rollout", "train", "dev"):  # the cache stays
        assert phases(long)[phase]["KV cache"] == 100 * row_bytes > phases(short)[phase]["KV cache"]
    assert long.peak_bytes > short.peak_bytes and long.time_s > short.time_s


def test_the_base_model_and_supervised_stages_read_dev() -> None:
    config = parse(["--sft.dev_every_steps", "50", "--stages.sft_2.steps", "120", "--rl.dev_problems", "20"]).config
    found, limit = stages(config), config.for_stage("sft_2").evaluation.max_tokens
    assert found["sft_2"].work.generated_tokens == 3 * 20 * limit  # after 50, 100 and 120 steps
    dev = phases(found["sft_2"])["dev"]
    assert dev["moments"] == 8 * TEACHER.num_params and dev["KV cache"] > 0
    assert found["base"].work.generated_tokens == 20 * config.for_stage("base").evaluation.max_tokens
    assert list(phases(found["base"])) == ["load", "dev"] and found["base"].time_s > 0
    assert list(phases(stages(parse(["--sft.dev_every_steps", "0"]).config)["sft_2"])) == ["train"]


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


def phases(stage: StagePlan) -> dict[str, dict[str, int]]:
    return {name: dict(items) for name, items in stage.work.phases}


def test_memory_follows_the_options() -> None:
    plain = phases(stages(parse([]).config)["r1_zero"])
    params = TEACHER.num_params
    assert list(plain) == ["rollout", "score", "train", "dev"]
    train = plain["train"]
    assert (train["parameters"], train["gradients"], train["moments"]) == (4 * params, 4 * params, 8 * params)
    assert train["reference"] == 4 * params
    assert "masters" not in train
    assert "reference" not in phases(stages(parse(["--loss.kl", "none"]).config)["r1_zero"])["train"]
    half = phases(stages(parse([]).config, place=Place(on_gpu=False, compute_bytes=2))["r1_zero"])["train"]
    assert half["parameters"] == half["reference"] == 2 * params
    assert half["masters"] == 4 * params
    small = memory(stages(parse(["--optimizer.micro_batch_tokens", "512"]).config)["sft_2"])
    large = memory(stages(parse(["--optimizer.micro_batch_tokens", "4096"]).config)["sft_2"])
    assert large["activations"] / small["activations"] == pytest.approx(8, rel=0.01)
    deep = replace(TEACHER, num_layers=32)
    kept, saving = (
        make_plan(parse(["--optimizer.gradient_checkpointing", flag]).config, deep, student=STUDENT, speed=SPEED)
        for flag in ("false", "true")
    )
    of_sft = [
        next(memory(stage)["activations"] for stage in plan.stages if stage.name == "sft_2") for plan in (kept, saving)
    ]
    assert of_sft[1] < 0.3 * of_sft[0]
    assert phases(stages(parse([]).config)["rl_2"])["train"]["reward models"] == 8 * params


def test_memory_is_that_of_the_largest_phase() -> None:
    work = stages(parse([]).config)["r1_zero"].work
    assert total(work.memory) == max(total(items) for _, items in work.phases)
    assert work.memory in [items for _, items in work.phases]


def test_the_kv_cache_of_long_completions_outgrows_the_activations() -> None:
    argv = ["--rl.max_tokens", "32768", "--rl.dev_every_steps", "0"]
    parts = phases(stages(parse(argv).config, prompt_tokens=0)["r1_zero"])["rollout"]
    assert parts["KV cache"] == 256 * 32_768 * 2 * 4 * 64 * 4  # rows, tokens, K and V, layers, width, bytes
    assert parts["logits chunk"] == int(KEPT * 256 * 231 * 4)


def test_time_falls_with_processes_and_rises_with_steps() -> None:
    config = parse(THIRTY_STEPS).config
    one, two = (
        stages(config)["r1_zero"],
        stages(config, place=Place(on_gpu=False, compute_bytes=4, num_processes=2))["r1_zero"],
    )
    assert one.time_s / 2 < two.time_s < one.time_s  # half the rows are as many decode steps, each as long for the host
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
    for words in ("7,680", "MiB", "moments", "upper bounds", "100 GFLOP/s", "60% of it"):
        assert words in text
    assert plan.time_s == sum(stage.time_s for stage in plan.stages)


def test_the_whole_r1_recipe_can_be_planned() -> None:
    config = parse(["--recipe", "r1", "--model", "m", "--model.student", "s", "--data", "d.jsonl"]).config
    plan: Plan = make_plan(
        config, TEACHER, student=STUDENT, speed=SPEED, place=Place(on_gpu=False, compute_bytes=4, num_processes=8)
    )
    zero = next(stage for stage in plan.stages if stage.name == "r1_zero")
    assert zero.work.samples == 10_400 * 512


def test_the_probe_takes_its_time_and_finds_a_rate() -> None:
    speed = probe_speed(torch.device("cpu"), torch.float32, duration_s=0.05)
    assert speed.flops_per_s > 1e8


def test_durations_in_words() -> None:
    assert [duration(time_s) for time_s in (42, 420, 12_600, 1e6)] == ["42 s", "7 min", "3.5 h", "12 days"]
