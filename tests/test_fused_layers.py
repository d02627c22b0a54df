"""Layers that run fused give what the model's own give, whatever the model, and leave no trace."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from r1fast.attention import PackedContext
from r1fast.policy import Policy
from r1fast.rollout.fused_layers import FusedLayer, PackedLinear, fused_layers
from tests.test_rollout_models import FAMILIES, SIZES, _policy

CONTEXT = PackedContext(torch.tensor([0, 20, 48], dtype=torch.int32))


@torch.no_grad()
def hidden(policy: Policy, context: PackedContext = CONTEXT, seed: int = 0) -> Tensor:
    num_tokens = context.num_tokens
    token_ids = torch.randint(3, 30, (1, num_tokens), generator=torch.Generator().manual_seed(seed))
    output: Any = policy.module.base_model(
        input_ids=token_ids,
        position_ids=torch.arange(num_tokens)[None],
        use_cache=False,
        attention_context=context,
    )
    return cast(Tensor, output.last_hidden_state[0].double())


def layers(policy: Policy) -> list[nn.Module]:
    return list(policy.module.base_model.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_fused_and_gives_the_same(family: str, dtype: torch.dtype) -> None:
    policy = _policy(FAMILIES[family])
    policy.module.to(dtype)
    before = hidden(policy)
    assert all(FusedLayer.of(layer) is not None for layer in layers(policy))
    with fused_layers(policy.module.base_model):
        assert all("forward" in vars(layer) for layer in layers(policy))
        found = hidden(policy)
    assert torch.equal(hidden(policy), before)
    assert not any("forward" in vars(part) for part in policy.module.modules())
    policy.module.double()  # the same weights
    exact = hidden(policy)
    own, fused = ((x - exact).abs().max() / exact.abs().max() for x in (before, found))
    assert fused <= 2 * own + torch.finfo(dtype).eps


def test_biases_and_head_norms_count() -> None:
    for config in (
        LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=4, attention_bias=True, mlp_bias=True),
        Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2),
        Qwen3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=32),
    ):
        policy = _policy(config)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in policy.module.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        before = hidden(policy)
        with fused_layers(policy.module.base_model):
            error = (hidden(policy) - before).abs().max()
        assert error <= 2e-6 * before.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    policy = _policy(FAMILIES["smollm2"])
    policy.module.to(dtype)
    with fused_layers(policy.module.base_model):
        alone = hidden(policy, PackedContext(torch.tensor([0, 16], dtype=torch.int32)))
        together = hidden(policy, PackedContext(torch.tensor([0, 16, 64], dtype=torch.int32)))
    # the same first 16 tokens; the generator draws a longer sequence that begins alike
    same = torch.randint(3, 30, (1, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(same, torch.randint(3, 30, (1, 64), generator=torch.Generator().manual_seed(0))[:, :16])
    assert torch.equal(alone, together[:16])


def test_what_is_not_a_plain_layer_runs_as_it_is() -> None:
    policy = _policy(FAMILIES["llama"])
    first, second = layers(policy)
    handle = first.mlp.register_forward_hook(lambda *_: None)
    cast(Any, second).mlp.act_fn = nn.GELU()
    before = hidden(policy)
    with fused_layers(policy.module.base_model):
        assert not any("forward" in vars(layer) for layer in (first, second))
        assert "forward" in vars(cast(Any, first).self_attn.q_proj)  # but its products are packed
        error = (hidden(policy) - before).abs().max()
    assert 0 < error <= 2e-6 * before.abs().max() or error == 0
    handle.remove()
    assert FusedLayer.of(first) is not None
    window: PretrainedConfig = MistralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=1, sliding_window=32)
    make: Any = AutoModelForCausalLM
    assert all(FusedLayer.of(layer) is None for layer in make.from_config(window).model.layers)
    policy.module.double()
    assert FusedLayer.of(first) is None


def test_one_within_another_leaves_the_outer_one() -> None:
    policy = _policy(FAMILIES["llama"])
    with fused_layers(policy.module.base_model):
        outer = [vars(layer)["forward"] for layer in layers(policy)]
        before = hidden(policy)
        with fused_layers(policy.module.base_model):
            assert torch.equal(hidden(policy), before)
        assert [vars(layer)["forward"] for layer in layers(policy)] == outer
    assert not any("forward" in vars(part) for part in policy.module.modules())


def test_an_exception_within_leaves_no_trace() -> None:
    policy = _policy(FAMILIES["qwen3"])
    with pytest.raises(KeyError), fused_layers(policy.module.base_model):
        raise KeyError
    assert not any("forward" in vars(part) for part in policy.module.modules())


def test_several_linear_layers_become_one_product() -> None:
    torch.manual_seed(0)
    parts = [nn.Linear(32, 48), nn.Linear(32, 16, bias=False), nn.Linear(32, 64)]
    rows = torch.randn(20, 32)
    with torch.no_grad():
        found = PackedLinear(parts)(rows)
        assert torch.allclose(found, torch.cat([part(rows) for part in parts], 1), atol=1e-5)
