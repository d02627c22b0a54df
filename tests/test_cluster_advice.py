"""What to change where a plan does not fit: each change tried, and what no change helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_cluster import H100, plan, recipe, zero
from test_model_size import size_of

from r1fast.cluster_advice import advise
from r1fast.config import Config
from r1fast.gpus import GPUS, Gpu
from r1fast.model_size import ModelSize


@pytest.fixture(scope="module")
def size() -> ModelSize:
    return size_of("Qwen/Qwen2.5-7B")


def advice(size: ModelSize, config: Config, num_gpus: int = 8, gpu: Gpu = H100) -> list[str]:
    return advise(plan(size, config, num_gpus, gpu), config, None)


def test_nothing_is_advised_where_everything_fits(size: ModelSize) -> None:
    assert advice(size, recipe(*zero())) == []


def test_each_change_is_tried_and_the_last_one_fits(size: ModelSize) -> None:
    config = recipe("--optimizer.gradient_checkpointing", "false")
    told = advice(size, config)
    assert told[0].startswith("r1_zero, train: ") and "79.10 GiB a GPU (parameters 14.19 GiB" in told[0]
    assert told[1].startswith("optimizer.gradient_checkpointing = true: ")
    assert told[-1].endswith("everything fits")
    followed = recipe(*zero(), "--optimizer.gradient_checkpointing", "true")
    assert not plan(size, followed).over


def test_a_stage_of_its_own_mind_is_overruled(size: ModelSize) -> None:
    words = ("--stages.r1_zero.optimizer.gradient_checkpointing", "false")
    told = advice(size, recipe(*zero(), *words))
    assert told[-1] == "optimizer.gradient_checkpointing = true: everything fits"


def test_one_gpu_is_told_to_use_the_host(size: ModelSize) -> None:
    told = advice(size, recipe(), 1)
    assert any('distributed.offload_optimizer = "cpu" with distributed.engine = "deepspeed"' in line for line in told)


def test_long_sequences_are_shared_by_a_group_that_divides_the_heads(size: ModelSize) -> None:
    config = recipe(*zero(), "--optimizer.gradient_checkpointing", "true", max_tokens=262144)
    told = advice(size, config, 16)
    assert any(line.startswith("distributed.sequence_parallel = 4: ") for line in told)  # 28 heads, 4 of keys
    shorter = recipe(*zero(), "--optimizer.gradient_checkpointing", "true", max_tokens=8192)
    assert not any("sequence_parallel" in line for line in advice(size, shorter, 16))


def test_weights_that_fit_no_gpu_are_said_to(size: ModelSize) -> None:
    large = size_of("meta-llama/Llama-3.3-70B-Instruct")
    told = advice(large, recipe(*zero()), 2)
    assert "every GPU holds the weights whole, 131.42 GiB" in told[-1]
    assert "591.37 GiB a GPU" in told[-1]  # 18 bytes of 70.55 billion parameters over 2
    assert "over 8 GPUs" in told[-1]


def test_weights_that_fit_no_gpu_are_shared_out(size: ModelSize) -> None:
    large = size_of("meta-llama/Llama-3.3-70B-Instruct")
    told = advice(large, recipe(*zero(), "--lora.rank", "8"), 64)
    assert told[1].startswith('distributed.engine = "deepspeed" with zero_stage = 3, rollout.backend = "vllm" with ')
    assert "rollout.tensor_parallel = 8, so that no GPU holds the weights whole, and no adapters: " in told[1]
    assert told[-1].endswith("everything fits")
    shared = recipe(*zero(3), "--rollout.backend", "vllm")  # each process with a whole copy in vLLM
    assert "rollout.tensor_parallel = 8" in advice(large, shared, 64)[1]


def test_changes_that_the_start_would_refuse_are_said_to_be() -> None:
    large = size_of("meta-llama/Llama-3.3-70B-Instruct")
    told = advice(large, recipe("--optimizer.offload_while_generating", "true"), 64)
    assert told[-1].startswith("but then the start refuses: ") and "offload_while_generating" in told[-1]


def test_reward_models_that_fit_no_gpu_have_no_remedy() -> None:
    config = recipe(*zero(3), "--rollout.backend", "vllm", "--rollout.tensor_parallel", "8")
    stages = ("base", "r1_zero", "cold_start", "sft_1", "rl_1", "rejection", "sft_2", "reward_models")
    config = replace(config, pipeline=replace(config.pipeline, stages=stages))
    told = advice(size_of("meta-llama/Llama-3.3-70B-Instruct"), config, 64)
    assert "let a judge grade in RL 2" in told[-1] and len(told) == 2


def test_latent_attention_cannot_be_sampled_and_experts_are_named() -> None:
    told = advice(size_of("deepseek-ai/DeepSeek-V3-Base"), recipe(*zero(3)), 512, GPUS["h800"])
    assert "latent attention (MLA)" in told[0] and "would not start" in told[0]
    told = advice(size_of("Qwen/Qwen3-30B-A3B"), recipe(*zero()), 64, GPUS["b200"])
    assert "experts" in told[0]


def test_weights_in_float32_are_advised_on_as_such(size: ModelSize) -> None:
    large = size_of("meta-llama/Llama-3.3-70B-Instruct")
    told = advice(large, recipe(*zero(), "--run.dtype", "float32"), 2)
    assert "every GPU holds the weights whole, 262.83 GiB" in told[-1]
