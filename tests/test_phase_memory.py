"""The model of memory: against tensors that autograd keeps, against what was measured, and item by item by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_model import tiny_config, tiny_policy
from transformers import Qwen3Config, Qwen3ForCausalLM

from r1fast import replicas
from r1fast.attention import ATTENTION_NAME, register_attention
from r1fast.config import Config
from r1fast.kernels import linear_grpo, linear_logprob
from r1fast.model_size import ModelSize
from r1fast.ops import checks
from r1fast.packing import pack
from r1fast.phase_memory import (
    FREE_SHARE,
    LOSS_BYTES,
    PAGE_TOKENS,
    SCORE_BYTES,
    SUMMED_NUMBERS,
    PhaseMemory,
    Place,
    total,
)
from r1fast.policy import Policy
from r1fast.records import Sequence
from r1fast.rollout import engine

GPU = Place(on_gpu=True, compute_bytes=2)
QWEN_7B = ModelSize(
    num_params=7_615_616_512, vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_layers=28, kv_width=512
)


def memory(size: ModelSize = QWEN_7B, place: Place = GPU, stage: str = "r1_zero", **changes: Any) -> PhaseMemory:
    """`changes`: SECTION__KEY."""
    config = replace(Config(), rewards={})
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return PhaseMemory(config=config, stage=stage, size=size, place=place, prompt_tokens=256, limit=1024, rows=64)


def saved_bytes(policy: Policy, tokens: int, length: int) -> int:
    """Of distinct storages that a forward pass keeps for backward, parameters not counted."""
    vocabulary = policy.head_weight.shape[0]
    sequences = [
        Sequence(token_ids=torch.randint(vocabulary, (length,)), num_prompt_tokens=4) for _ in range(tokens // length)
    ]
    (batch,) = pack(sequences, micro_batch_tokens=tokens)
    storages: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = policy.hidden(batch)
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.module.parameters()}
    assert hidden.requires_grad
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_layers_keep_what_autograd_keeps(family: str, dtype: torch.dtype) -> None:
    fields = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6}
    if family == "llama":
        policy = tiny_policy(dtype=dtype, **fields)
    else:
        register_attention()
        config = Qwen3Config(**{**tiny_config(**fields).to_dict(), "head_dim": 16, "model_type": "qwen3"})
        config._attn_implementation = ATTENTION_NAME
        policy = Policy.wrap(Qwen3ForCausalLM(config).to(dtype), tiny_policy().tokenizer)
    size = ModelSize.of(policy.module.config)
    place = Place(on_gpu=False, compute_bytes=dtype.itemsize)
    layer = memory(size, place)._layer_token_bytes()
    assert saved_bytes(policy, 512, 128) / (512 * 6) == pytest.approx(layer, rel=0.06)


def test_constants_are_those_of_the_code_that_allocates() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (LOSS_BYTES[False], LOSS_BYTES[True]) == (linear_grpo.loss_budget(cpu), linear_grpo.loss_budget(gpu))
    assert (SCORE_BYTES[False], SCORE_BYTES[True]) == (
        linear_logprob.score_budget(cpu),
        linear_logprob.score_budget(gpu),
    )
    assert (PAGE_TOKENS, FREE_SHARE) == (checks.PAGE_TOKENS, engine.FREE_SHARE)
    assert SUMMED_NUMBERS == replicas.BUCKET_NUMBERS


def test_a_training_step_of_7b_on_one_gpu_by_hand() -> None:
    items = dict(memory(loss__kl="none").train())
    assert items["parameters"] == 15_231_233_024  # 2 bytes each
    assert (items["masters"], items["gradients"]) == (30_462_466_048, 30_462_466_048)
    assert items["moments"] == 60_924_932_096
    assert "reference" not in items and "KV cache" not in items  # the cache sleeps
    # 32,768 tokens: fp32 logits and their gradients fill budget and accumulator, and the head's gradient waits
    assert items["logits chunk"] == 600 * 2**20 + (4 + 2) * 152064 * 3584


def test_the_head_of_few_tokens_takes_what_they_need() -> None:
    one = memory()
    assert one.chunk_bytes(8) == 8 * 152064 * (4 + 2) + 2 * 152064 * 3584
    assert one.chunk_bytes(10**6) == one.chunk_bytes(10**5)


def test_checkpointing_keeps_a_hidden_state_a_layer() -> None:
    saving = memory(optimizer__gradient_checkpointing=True)
    keeping = memory(optimizer__gradient_checkpointing=False)
    of_token = (saving.activation_bytes(65536) - saving.activation_bytes(32768)) / 32768
    # its layers' inputs; the layer in work, made again and differentiated; four hidden states at the end
    assert of_token >= 28 * 3584 * 2
    assert of_token < 28 * 3584 * 2 + 8 * 3584 + saving._layer_token_bytes() + saving._backward_token_bytes() + 1
    assert keeping.activation_bytes(8192) > 28 * 8192 * keeping._layer_token_bytes()


@pytest.mark.parametrize(
    ("stage", "gradients", "parameters", "whole_copy"),
    [(1, 4, 2, 0), (2, 4 / 64, 2, 0), (3, 4 / 64, 2 / 64, 2)],
)
def test_what_zero_shares_out(stage: int, gradients: float, parameters: float, whole_copy: float) -> None:
    place = Place(on_gpu=True, compute_bytes=2, num_processes=64)
    items = dict(memory(place=place, distributed__engine="deepspeed", distributed__zero_stage=stage).train())
    params = QWEN_7B.num_params
    expected = {"gradients": gradients, "parameters": parameters, "rollout copy": whole_copy}
    for name, bytes_each in expected.items():
        assert items.get(name, 0) == pytest.approx(bytes_each * params, abs=1)
    assert items["masters"] + items["moments"] == pytest.approx(12 / 64 * params, abs=2)
    offloaded = memory(place=place, distributed__engine="deepspeed", distributed__offload_optimizer="cpu")
    assert not {"masters", "moments"} & dict(offloaded.train()).keys()


def test_zero_0_shares_nothing_out() -> None:
    place = Place(on_gpu=True, compute_bytes=4, num_processes=64)  # it is for fp32 alone
    plain = dict(memory(place=place).train())
    whole = dict(memory(place=place, distributed__engine="deepspeed", distributed__zero_stage=0).train())
    assert whole.pop("buckets") == 4 * 5e8
    assert "masters" not in whole and whole == plain


def test_a_sequence_group_shares_the_tokens_of_a_micro_batch() -> None:
    alone, four = memory(), memory(distributed__sequence_parallel=4)
    for part in ("train", "score"):
        mine, shared = dict(getattr(alone, part)()), dict(getattr(four, part)())
        assert {name for name in mine if mine[name] != shared[name]} <= {"activations", "logits chunk"}
        assert shared["activations"] < mine["activations"] / 3
    assert four.activation_bytes(4 * 8192) == alone.activation_bytes(8192)
    assert four.chunk_bytes(4 * 1000) == alone.chunk_bytes(1000)


def test_a_copy_of_the_state_is_counted_where_it_is_always_made() -> None:
    cpu = Place(on_gpu=False, compute_bytes=2)
    assert "saved copy" not in dict(memory(place=cpu).train())
    assert dict(memory(place=cpu, run__async_save="on").train())["saved copy"] == 12 * QWEN_7B.num_params
    assert "saved copy" not in dict(memory(run__async_save="on").train())  # a GPU's is on the host


def test_phases_hold_what_they_need() -> None:
    both = memory(loss__kl="k3")
    assert dict(both.rollout())["KV cache"] == 64 * (256 + 1024) * 57_344
    assert dict(both.rollout())["reference"] == dict(both.score())["reference"] == both.copy_bytes
    assert "gradients" not in dict(both.rollout()) and "gradients" not in dict(both.score())
    away = dict(memory(optimizer__offload_while_generating=True).rollout())
    assert not {"masters", "moments"} & away.keys()
    sampling = dict(memory(stage="evaluation").rollout())
    assert sampling.keys() == {"parameters", "KV cache", "logits chunk"}


def test_a_cpu_keeps_the_cache_and_packs_weights() -> None:
    cpu = memory(place=Place(on_gpu=False, compute_bytes=4))
    assert dict(cpu.rollout())["packed weights"] == cpu.copy_bytes
    assert dict(cpu.train())["KV cache"] == cpu.cache_bytes()
    assert "masters" not in dict(cpu.train())  # fp32 parameters are their own


def test_a_cpu_without_bf16_products_packs_in_fp32() -> None:
    cpu = memory(place=Place(on_gpu=False, compute_bytes=2, packed_bytes=4))
    assert dict(cpu.rollout())["packed weights"] == 2 * cpu.copy_bytes


def test_reward_models_are_counted_one_by_one() -> None:
    config = replace(memory().config, rewards={"general": {"helpful": 1.0, "format": 1.0}, "harmful": {"safe": 1.0}})
    loaded = replace(memory(), config=config)
    assert dict(loaded.held())["reward models"] == 2 * loaded.copy_bytes
    assert total(loaded.held()) - total(memory().held()) == 2 * loaded.copy_bytes
    off = replace(config, rewards={"general": {"helpful": ((0, 0.0), (9, 1.0)), "safe": 0.0}})
    assert dict(replace(loaded, config=off).held())["reward models"] == loaded.copy_bytes


UNTIED_7B = replace(QWEN_7B, looked_up_params=152064 * 3584)


@pytest.mark.parametrize(
    ("engine_name", "zero_stage", "share"),
    [("torch", 2, 1), ("deepspeed", 0, 1), ("deepspeed", 1, 8), ("deepspeed", 3, 8)],
)
def test_a_reward_model_of_7b_by_hand(engine_name: str, zero_stage: int, share: int) -> None:
    place = Place(on_gpu=True, compute_bytes=2, num_processes=8)
    options: dict[str, Any] = {
        "distributed__engine": engine_name,
        "distributed__zero_stage": zero_stage,
        "distributed__sequence_parallel": 4,  # of policies alone
        "optimizer__gradient_checkpointing": True,
        "optimizer__micro_batch_tokens": 8192,
    }
    found = memory(UNTIED_7B, place, stage="reward_models", **options)
    trained = 7_615_616_512 - 152064 * 3584 + 3584  # a scalar head in the place of the vocabulary's
    items = dict(found.train())
    assert items.pop("parameters") == items.pop("gradients") == 4 * trained
    assert items.pop("moments") == 8 * trained // share
    assert items.pop("buckets") == 4 * 2**26
    # of a token in fp32: 28 layers' inputs; one layer made again (two norms; queries, keys, values, output in two
    # orders, keys and values for all heads; the MLP's four) and its gradients; four hidden states at the end
    layer = 2 * 3584 * 12 + 5 * 3584 * 4 + 4 * 18944 * 4
    of_token = 28 * 3584 * 4 + layer + (4 * 18944 + 2 * 3584) * 4 + 4 * 3584 * 4
    assert items == {"activations": 8192 * of_token}


def test_a_reward_model_alone_exchanges_nothing_and_in_8_bits_holds_less() -> None:
    alone = dict(memory(UNTIED_7B, stage="reward_models", distributed__engine="deepspeed").train())
    assert "buckets" not in alone and alone["moments"] == 2 * alone["parameters"]
    small = dict(memory(UNTIED_7B, stage="reward_models", optimizer__name="adamw_8bit").train())
    assert small["moments"] == alone["moments"] // 4
    many = Place(on_gpu=True, compute_bytes=2, num_processes=512)  # the embedding is dealt out whole
    spread = dict(memory(UNTIED_7B, many, stage="reward_models", distributed__engine="deepspeed").train())
    assert spread["moments"] == 8 * 152064 * 3584
    cpu = dict(memory(UNTIED_7B, Place(on_gpu=False, compute_bytes=2), stage="reward_models").train())
    assert cpu["parameters"] == alone["parameters"] and cpu["runtime"] > 0  # bf16 is the policies'


def test_idle_models_are_on_the_gpu_while_they_score() -> None:
    config = replace(memory().config, rewards={"general": {"helpful": 1.0}, "harmful": {"safe": 1.0}})
    config = replace(config, optimizer=replace(config.optimizer, offload_idle_models=True))
    idle = replace(memory(), config=config)
    assert not {"reference", "reward models"} & dict(idle.train()).keys()
    assert dict(idle.score())["reference"] == dict(idle.rollout())["reward models"] == idle.copy_bytes
    cpu = replace(idle, place=Place(on_gpu=False, compute_bytes=2))
    assert dict(cpu.train())["reference"] == cpu.copy_bytes  # there they stay


def test_adapters_are_all_that_is_trained() -> None:
    described = tiny_config(num_hidden_layers=2)
    size = ModelSize.of(described)
    # q, o: 64 + 64; k, v: 64 + 32; gate, up, down: 64 + 128
    all_linear = 2 * (2 * 128 + 2 * 96 + 3 * 192)
    assert size.adapter_params(8, ("all-linear",)) == 8 * all_linear
    assert size.adapter_params(8, ("q_proj", "v_proj")) == 8 * 2 * (128 + 96)
    items = dict(memory(size, lora__rank=8).train())
    trained = 8 * all_linear
    assert (items["masters"], items["moments"], items["gradients"]) == (4 * trained, 8 * trained, 4 * trained)
    assert items["parameters"] == 2 * (size.num_params + trained)
    assert items["reference"] == 2 * trained  # earlier adapters on the same weights
    assert memory(size, lora__rank=8).chunk_bytes(64) == 64 * 97 * 6  # the head has no gradient
    whole = memory(size, stage="reward_models", lora__rank=8)
    assert whole.trained_params == size.num_params + 64  # the scalar head


def test_peft_makes_as_many_parameters() -> None:
    peft = pytest.importorskip("peft")
    policy = tiny_policy()
    size = ModelSize.of(policy.module.config)
    adapted = peft.get_peft_model(policy.module, peft.LoraConfig(r=4, target_modules="all-linear"))
    made = sum(parameter.numel() for name, parameter in adapted.named_parameters() if "lora_" in name)
    assert made == size.adapter_params(4, ("all-linear",))


def test_eight_bits_and_activations_on_the_host() -> None:
    assert dict(memory(optimizer__name="adamw_8bit").train())["moments"] == 2 * QWEN_7B.num_params
    here = memory(optimizer__gradient_checkpointing=True)
    away = memory(optimizer__gradient_checkpointing=True, optimizer__offload_activations=True)
    # of 28 hidden states a token one stays
    saved = here.activation_bytes(32768) - away.activation_bytes(32768)
    assert saved == pytest.approx(27 * 32768 * 3584 * 2, rel=0.01)
