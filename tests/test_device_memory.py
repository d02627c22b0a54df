"""Models that no GPU of a run could hold are refused with the numbers and a way out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_cluster import recipe, zero
from test_model_size import size_of

from r1fast.architectures import known_config
from r1fast.config import STAGES, Config, ConfigError
from r1fast.device_memory import check_cache, check_device_memory, check_gpu, sampling
from r1fast.gpus import GIB
from r1fast.model_size import ModelSize
from r1fast.options import parse
from r1fast.phase_memory import Place
from r1fast.plan import stage_works


@pytest.fixture(scope="module")
def size() -> ModelSize:
    return size_of("Qwen/Qwen2.5-7B")


def check(config: Config, size: ModelSize, memory_gib: float, processes: int = 8) -> None:
    place = Place(on_gpu=True, compute_bytes=2, num_processes=processes)
    check_device_memory(config, config.pipeline.stages, size, None, place, int(memory_gib * GIB))


def test_what_is_certain_is_counted_to_the_byte(size: ModelSize) -> None:
    config = recipe()
    # parameters and reference 2 + 2 bytes, masters 4, moments 8, gradients 4
    certain = 20 * size.num_params
    check(config, size, certain / GIB)
    with pytest.raises(ConfigError, match=r"stage r1_zero would hold 141\.85 GiB on every GPU whatever the lengths"):
        check(config, size, (certain - GIB) / GIB)


def test_the_way_out_is_named(size: ModelSize) -> None:
    with pytest.raises(ConfigError, match=r'engine = "deepspeed" shares.*loss.kl = "none".*r1fast plan --gpu'):
        check(recipe(), size, 79.1)
    check(recipe(*zero()), size, 79.1)


def test_weights_that_are_too_large_have_no_other_way_out() -> None:
    large = size_of("meta-llama/Llama-3.3-70B-Instruct")
    with pytest.raises(ConfigError, match=r"stage base would hold 131\.42 GiB.*take a smaller model"):
        check(recipe(*zero()), large, 79.1, 64)


def test_weights_that_are_shared_out_are_counted_to_the_byte() -> None:
    large = size_of("meta-llama/Llama-3.3-70B-Instruct")
    shared = recipe(*zero(3), "--rollout.backend", "vllm", "--rollout.tensor_parallel", "8")
    place = Place(on_gpu=True, compute_bytes=2, num_processes=64)
    ((_, _, work),) = (one for one in stage_works(shared, large, None, place, 0) if one[0] == "r1_zero")
    params, phases = large.num_params, {name: dict(items) for name, items in work.phases}
    for phase in phases.values():
        assert phase["parameters"] == phase["reference"] == 2 * params // 64 and "rollout copy" not in phase
        assert phase["vLLM's weights"] == 2 * params // 8
    ends = 2 * large.vocab_size * large.hidden_size  # embedding and head, and a layer
    assert phases["score"]["gathered layers"] == 2 * (ends + (params - ends) // large.num_layers)
    check(shared, large, 79.1, 64)
    alone = recipe(*zero(3), "--rollout.backend", "vllm")
    with pytest.raises(ConfigError, match=r"vLLM's weights 131\.42 GiB.*tensor_parallel = 1 processes share"):
        check(alone, large, 79.1, 64)


def test_a_reward_model_is_counted_as_it_is_trained(size: ModelSize) -> None:
    place = Place(on_gpu=True, compute_bytes=2, num_processes=8)
    stages = ("base", "r1_zero", "cold_start", "sft_1", "rl_1", "rejection", "sft_2", "reward_models")
    whole, shared = (
        replace(config, pipeline=replace(config.pipeline, stages=stages)) for config in (recipe(), recipe(*zero()))
    )
    # a vocabulary's head less: 28 GB of weights, as much of gradients, twice that or an eighth of it of moments
    check_device_memory(shared, stages, size, None, place, int(59.6 * GIB))
    with pytest.raises(ConfigError, match=r"stage reward_models would hold 59\.52 GiB.*a smaller model, or GPUs"):
        check_device_memory(shared, ["reward_models"], size, None, place, int(59.4 * GIB))
    with pytest.raises(ConfigError, match=r"hold 105\.\d+ GiB.*deepspeed\" shares the moments"):
        check_device_memory(whole, ["reward_models"], size, None, place, int(79.1 * GIB))


def test_only_stages_that_are_left_count(size: ModelSize) -> None:
    place = Place(on_gpu=True, compute_bytes=2, num_processes=1)
    check_device_memory(recipe(), ["base"], size, None, place, 16 * GIB)


def test_the_gpu_at_hand_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, config = torch.device("cuda", 0), recipe()
    described = {"base": known_config("HuggingFaceTB/SmolLM2-135M-Instruct")}
    properties = SimpleNamespace(total_memory=3 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    check_gpu(config, config.pipeline.stages, described, gpu, 1)  # 134.5 million parameters of 20 bytes: 2.51 GiB
    properties.total_memory = 2 * GIB
    with pytest.raises(ConfigError, match=r"would hold 2\.51 GiB on every GPU .* and one has 2\.00 GiB"):
        check_gpu(config, config.pipeline.stages, described, gpu, 1)


def test_a_model_that_is_not_sampled_need_not_fit_the_cache() -> None:
    latent, cpu = known_config("deepseek-ai/DeepSeek-V3-Base"), torch.device("cpu")
    check_cache(recipe(), latent, ["sft_1", "reward_models"], cpu)
    with pytest.raises(ValueError, match=r"DeepseekV3ForCausalLM keeps one latent vector.*MLA"):
        check_cache(recipe(), latent, ["r1_zero"], cpu)


def test_a_supervised_stage_samples_where_it_reads_dev() -> None:
    words = ["--stages.sft_2.dev_every_steps", "10"]
    drawing = sampling(parse(words).config, STAGES)
    assert set(STAGES) - set(drawing) == {"sft_1", "reward_models", "distill"}
