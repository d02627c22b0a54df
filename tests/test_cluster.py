"""Plans for GPUs: memory at the edge of what fits, time and network by hand, changes that make a recipe fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_model_size import size_of

from r1fast.cluster import (
    CONTEXT_BYTES,
    FRAGMENTATION,
    PROMPT_TOKENS,
    TRAIN_SHARE,
    ClusterPlan,
    Phase,
    plan_cluster,
)
from r1fast.config import Config, ConfigError
from r1fast.gpus import GIB, GPUS, Gpu
from r1fast.model_size import ModelSize
from r1fast.options import parse

H100 = GPUS["h100"]


@pytest.fixture(scope="module")
def size() -> ModelSize:
    return size_of("Qwen/Qwen2.5-7B")


def recipe(*words: str, max_tokens: int = 8192) -> Config:
    stages = ("--pipeline.stages", "base,r1_zero", "--rl.dev_every_steps", "0")
    given = ("--model", "Qwen/Qwen2.5-7B", "--data", "d.jsonl", "--model.student", "Qwen/Qwen2.5-7B")
    return parse(["--recipe", "r1", *given, *stages, "--rl.max_tokens", str(max_tokens), *words]).config


def zero(stage: int = 2) -> tuple[str, ...]:
    return "--distributed.engine", "deepspeed", "--distributed.zero_stage", str(stage)


def plan(size: ModelSize, config: Config, num_gpus: int = 8, gpu: Gpu = H100) -> ClusterPlan:
    return plan_cluster(config, size, None, gpu, num_gpus)


def phase(found: ClusterPlan, name: str, stage: str = "r1_zero") -> Phase:
    return next(one for one in found.stages[stage].phases if one.name == name)


def test_what_exactly_fits_and_what_does_not(size: ModelSize) -> None:
    train = phase(plan(size, recipe(*zero())), "train")
    assert train.peak == CONTEXT_BYTES + FRAGMENTATION * sum(num_bytes for _, num_bytes in train.memory)
    assert train.fits(replace(H100, memory=train.peak))
    assert not train.fits(replace(H100, memory=train.peak - 1))


def test_the_largest_micro_batch_fits_and_the_next_does_not(size: ModelSize) -> None:
    most = plan(size, recipe(*zero())).stages["r1_zero"].most_tokens
    assert most is not None and most > 8192
    for tokens, fits in ((most, True), (most + 1024, False)):
        train = phase(plan(size, recipe(*zero(), "--optimizer.micro_batch_tokens", str(tokens))), "train")
        assert train.fits(H100) == fits


def test_a_cache_takes_half_of_what_is_free_and_says_how_many_rows_that_is(size: ModelSize) -> None:
    rollout = phase(plan(size, recipe(*zero(), "--rollout.rows", "512")), "rollout")
    row_bytes = (PROMPT_TOKENS + 8192) * 57_344
    held = sum(num_bytes for name, num_bytes in rollout.memory if name != "KV cache")
    free = (H100.memory - CONTEXT_BYTES) / FRAGMENTATION - held
    assert (rollout.rows, rollout.wanted_rows) == (int(free / 2 // row_bytes), 512)
    assert rollout.fits(H100)
    few = phase(plan(size, recipe(*zero(), "--rollout.rows", "16")), "rollout")
    assert dict(few.memory)["KV cache"] == 16 * row_bytes
    assert few.time_s > rollout.time_s  # fewer rows read the weights as often for less


def test_a_cache_without_room_for_one_sample_does_not_fit(size: ModelSize) -> None:
    config = recipe(*zero(), max_tokens=1_000_000)
    found = plan(size, config)
    rollout = phase(found, "rollout")
    assert rollout.rows == 0 and not rollout.fits(H100)


def test_time_of_training_by_hand(size: ModelSize) -> None:
    config = recipe(*zero(), "--rl.steps", "10", "--optimizer.gradient_checkpointing", "true")
    train = phase(plan(size, config), "train")
    tokens = 10 * 512 * (256 + 4096)
    assert train.tokens == tokens
    assert train.flops == pytest.approx(4 * tokens * size.forward_flops(256 + 4096))
    # a mini-batch is 2,228,224 tokens, of a GPU 278,528, in 9 micro-batches of 32,768: each reduces fp32 gradients, and
    # bf16 parameters are gathered once
    assert train.network / 10 == pytest.approx((9 * 4 + 2) * size.num_params * 7 / 8)
    compute_s = train.flops / (8 * 989e12 * TRAIN_SHARE)
    assert train.time_s == pytest.approx(compute_s + train.network / (450e9 * 0.7))


def test_several_nodes_send_over_the_network(size: ModelSize) -> None:
    config = recipe(*zero(), "--rl.steps", "10")
    one, two = phase(plan(size, config, 8), "train"), phase(plan(size, config, 16), "train")
    slower = one.network / 450e9, two.network / 50e9
    assert slower[1] > slower[0]
    with pytest.raises(ConfigError, match="multiple of 8"):
        plan(size, config, 12)


def test_decoding_waits_for_memory_and_does_not_get_cheaper_than_its_arithmetic(size: ModelSize) -> None:
    rollout = phase(plan(size, recipe(*zero(), "--rl.steps", "10")), "rollout")
    at_peak_s = rollout.flops / (8 * H100.flops)
    assert rollout.time_s > 2 * at_peak_s


def test_a_sequence_group_sends_attention_and_must_divide_the_gpus(size: ModelSize) -> None:
    alone = phase(plan(size, recipe(*zero())), "train")
    words = ("--distributed.sequence_parallel", "4", "--optimizer.micro_batch_tokens", "131072")
    shared = phase(plan(size, recipe(*zero(), *words)), "train")
    checkpointing = recipe().for_stage("r1_zero").optimizer.gradient_checkpointing
    # queries and results of 3584 numbers, keys and values of 512, in 28 layers; three quarters go to others
    sent = alone.tokens / 8 * 28 * (2 * 3584 + 2 * 512) * 2 * (2 + checkpointing) * 3 / 4
    assert shared.network - alone.network == pytest.approx(sent, rel=0.02)
    with pytest.raises(ConfigError, match="cannot be divided into groups"):
        plan(size, recipe(*zero(), "--distributed.sequence_parallel", "4"), 2)


def test_zero_3_holds_a_copy_for_rollouts(size: ModelSize) -> None:
    items = dict(phase(plan(size, recipe(*zero(3))), "rollout").memory)
    assert items["rollout copy"] == 2 * size.num_params
    assert items["parameters"] == 2 * size.num_params // 8


def test_a_plan_adds_up(size: ModelSize) -> None:
    found: Any = plan(size, recipe(*zero()))
    assert found.time_s == sum(one.time_s for stage in found.stages.values() for one in stage.phases)
    assert H100.memory == 79.1 * GIB


def test_reward_models_send_gradients_and_where_moments_are_shared_out_weights(size: ModelSize) -> None:
    stages = ("base", "r1_zero", "cold_start", "sft_1", "rl_1", "rejection", "sft_2", "reward_models")
    for words, sent in ((("--distributed.sequence_parallel", "4"), 2), (zero(), 3)):
        config = recipe(*words)
        config = replace(config, pipeline=replace(config.pipeline, stages=stages))
        train = phase(plan(size, config), "train", "reward_models")
        trained = size.num_params - 152064 * 3584 + 3584
        assert train.network == pytest.approx(train.steps * sent * 4 * trained * 7 / 8, rel=1e-6)


def test_readings_of_dev_have_a_phase_with_their_own_limit(size: ModelSize) -> None:
    words = ("--rl.steps", "10", "--stages.r1_zero.dev_every_steps", "5", "--rl.dev_problems", "64")
    config = recipe(*zero(), *words, "--evaluation.max_tokens", "16384")
    found = plan(size, config)
    dev, rollout = phase(found, "dev"), phase(found, "rollout")
    assert dev.tokens == 3 * 64 * 16384 / 2 and rollout.tokens == 10 * 512 * 8192 / 2
    assert dev.wanted_rows == 8 and dev.time_s > 0
    assert phase(found, "dev", "base").tokens == 64 * 16384 / 2
    endless = plan(size, recipe(*zero(), *words, "--evaluation.max_tokens", "1000000"))
    assert (phase(endless, "dev").rows, phase(endless, "rollout").rows) == (0, 32)
    assert not phase(endless, "dev").fits(H100)


def test_float32_takes_twice_the_bytes_of_bfloat16(size: ModelSize) -> None:
    half, whole = (plan(size, recipe(*zero(3), "--run.dtype", dtype)) for dtype in ("auto", "float32"))
    for name, item in (("rollout", "rollout copy"), ("rollout", "parameters"), ("train", "activations")):
        small, large = (dict(phase(found, name).memory)[item] for found in (half, whole))
        assert large == pytest.approx(2 * small, rel=0.35 if item == "activations" else 1e-9)
    sent = [phase(found, "train").network / phase(found, "train").steps for found in (half, whole)]
    assert sent[1] - sent[0] > 2 * size.num_params  # more is gathered; gradients are float32 in any case
    assert phase(whole, "rollout").time_s > 1.5 * phase(half, "rollout").time_s
