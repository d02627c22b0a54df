"""Sizes of models against what their authors and others publish, from configs that come with r1fast."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, Qwen3Config

from r1fast.architectures import known_config
from r1fast.model_size import ModelSize


def size_of(name: str) -> ModelSize:
    config = known_config(name)
    assert config is not None, name
    return ModelSize.of(config)


@pytest.mark.parametrize(
    ("name", "billions", "digits"),
    [  # of the model cards and reports
        ("Qwen/Qwen2.5-1.5B", 1.54, 2),
        ("Qwen/Qwen2.5-7B", 7.62, 2),
        ("Qwen/Qwen2.5-14B", 14.8, 1),
        ("Qwen/Qwen2.5-32B", 32.8, 1),
        ("meta-llama/Llama-3.1-8B", 8.03, 2),
        ("meta-llama/Llama-3.3-70B-Instruct", 70.6, 1),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135, 3),
        ("Qwen/Qwen3-8B", 8.2, 1),
    ],
)
def test_published_sizes_of_dense_models(name: str, billions: float, digits: int) -> None:
    size = size_of(name)
    assert round(size.num_params / 1e9, digits) == billions
    assert size.active_params == size.num_params and size.expert_params == 0


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("Qwen/Qwen3-30B-A3B", 30.5, 3.3), ("mistralai/Mixtral-8x7B-v0.1", 46.7, 12.9)],
)
def test_published_sizes_of_models_with_experts(name: str, total: float, active: float) -> None:
    size = size_of(name)
    assert round(size.num_params / 1e9, 1) == total
    assert size.active_params / 1e9 == pytest.approx(active, abs=0.06)


@pytest.fixture(scope="module")
def deepseek() -> ModelSize:
    return size_of("deepseek-ai/DeepSeek-V3-Base")


def test_deepseek_v3_by_its_report(deepseek: ModelSize) -> None:
    assert round(deepseek.num_params / 1e9) == 671
    assert 37 <= deepseek.active_params / 1e9 < 38  # "37B activated for each token"
    assert deepseek.latent
    # 58 layers of 256 experts of three matrices, 7168 x 2048; of each layer 8 of 256 are visited
    assert deepseek.expert_params == 58 * 256 * 3 * 7168 * 2048
    assert deepseek.expert_share == 8 / 256
    # 61 layers of a latent of 512 numbers and a rotary key of 64: 70.272 KB a token in bf16
    assert deepseek.kv_token_bytes(2) == 70_272


def test_experts_are_touched_as_tokens_come(deepseek: ModelSize) -> None:
    dense = deepseek.num_params - deepseek.expert_params
    assert deepseek.touched_params(1) == pytest.approx(dense + deepseek.expert_params / 32)
    assert deepseek.touched_params(1000) == pytest.approx(deepseek.num_params, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [  # key-value heads x 128 x keys and values x layers x 2 bytes
        ("meta-llama/Llama-3.3-70B-Instruct", 327_680),
        ("meta-llama/Llama-3.1-8B", 131_072),
        ("Qwen/Qwen2.5-7B", 57_344),
        ("Qwen/Qwen2.5-32B", 262_144),
    ],
)
def test_published_cache_bytes_of_a_token(name: str, num_bytes: int) -> None:
    assert size_of(name).kv_token_bytes(2) == num_bytes


def test_flops_of_a_token_by_hand() -> None:
    size = size_of("meta-llama/Llama-3.1-8B")
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4096 * 128256  # products, head too
    assert size.forward_flops(0) == pytest.approx(2 * weights, rel=1e-4)  # norms are in our count
    # half of 8192 tokens are seen, by 32 heads of 128, in two products of two operations
    assert size.forward_flops(8192) - size.forward_flops(0) == 32 * 2 * 2 * 4096 * 4096


def test_norms_of_heads_and_untied_embeddings_are_seen() -> None:
    fields = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 97}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    plain = ModelSize.of(LlamaConfig(**fields, **heads, tie_word_embeddings=True))
    assert (plain.attention_width, plain.score_width, plain.normed_width) == (2 * 128 + 2 * 64, 256, 128)
    normed = ModelSize.of(Qwen3Config(**fields, **heads, tie_word_embeddings=False))
    assert normed.normed_width == 128 + 128 + 64
    assert (plain.looked_up_params, normed.looked_up_params) == (0, 97 * 64)
