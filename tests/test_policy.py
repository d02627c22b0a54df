"""The policy: packed hidden states, checkpoints that load anywhere, and refusals of models we would get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import copy_teacher, edit_json
from safetensors.torch import load_file, save_file
from tiny_model import EOS, NUM_VOCAB, random_sequences, tiny_config, tiny_policy, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteConfig, GraniteForCausalLM, LlamaForCausalLM

from r1fast.attention import ATTENTION_NAME
from r1fast.packing import pack
from r1fast.policy import Policy


def test_hidden_and_head_give_the_logits_of_each_sequence_alone(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    (batch,) = pack(random_sequences(6), micro_batch_tokens=1000)
    logits_TV = policy.hidden(batch) @ policy.head_weight.T
    for start, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        expected = plain(batch.token_ids[None, start:end]).logits[0]
        torch.testing.assert_close(logits_TV[start:end], expected, rtol=1e-4, atol=1e-5)


def test_saved_checkpoint_loads_with_default_attention_and_again_bitwise(tmp_path: Path) -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    policy.save(tmp_path)
    assert ATTENTION_NAME not in (tmp_path / "config.json").read_text()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config._attn_implementation == "sdpa" and plain.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path)("w3 w4").input_ids == tiny_tokenizer()("w3 w4").input_ids
    again = Policy.load(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert again.eos_token_ids == (EOS,) and again.version == 0
    for (name, a), (_, b) in zip(policy.module.state_dict().items(), again.module.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_gradient_checkpointing_changes_no_gradient() -> None:
    (batch,) = pack(random_sequences(5), micro_batch_tokens=1000)
    grads = []
    for checkpointing in (False, True):
        policy = tiny_policy(gradient_checkpointing=checkpointing)
        policy.hidden(batch).square().mean().backward()
        grads.append({n: p.grad for n, p in policy.module.named_parameters()})
        assert not any(m.training for m in policy.module.modules())
    for name, grad in grads[0].items():
        assert grad is not None and torch.equal(grad, grads[1][name]), name


def test_gradient_checkpointing_recomputes(monkeypatch: pytest.MonkeyPatch) -> None:
    (batch,) = pack(random_sequences(3), micro_batch_tokens=1000)
    policy = tiny_policy(gradient_checkpointing=True)
    calls: list[int] = []
    attention = policy.module.base_model.layers[0].self_attn
    attention.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        policy.hidden(batch)
    assert len(calls) == 1
    policy.hidden(batch).sum().backward()
    assert len(calls) == 3


def test_copy_is_frozen_and_apart() -> None:
    policy = tiny_policy()
    policy.version = 3
    reference = policy.copy()
    assert reference.version == 3 and not any(p.requires_grad for p in reference.module.parameters())
    with torch.no_grad():
        policy.head_weight.add_(1.0)
    assert not torch.equal(policy.head_weight, reference.head_weight)
    policy.version = 5
    reference.copy_weights_(policy)
    assert torch.equal(policy.head_weight, reference.head_weight) and reference.version == 5


def test_copy_weights_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters differ"):
        tiny_policy().copy_weights_(tiny_policy(num_hidden_layers=1))


def _granite(**fields: float) -> GraniteForCausalLM:
    config = GraniteConfig(**(tiny_config().to_dict() | {"model_type": "granite"} | fields))
    config._attn_implementation = ATTENTION_NAME
    torch.manual_seed(0)
    return GraniteForCausalLM(config)


def test_scaled_logits_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"logits_scaling = 4\.0"):
        Policy.wrap(_granite(logits_scaling=4.0), tiny_tokenizer())


def test_neutral_scale_is_accepted() -> None:
    assert Policy.wrap(_granite(logits_scaling=1.0), tiny_tokenizer()).dtype == torch.float32


def test_sequences_that_see_each_other_are_refused() -> None:
    """A model whose state runs on over the packed sequences, as a recurrent layer's would."""
    policy = tiny_policy()
    layer = policy.module.base_model.layers[0].mlp
    layer.register_forward_hook(lambda _module, _inputs, output: output.cumsum(1))
    with pytest.raises(ValueError, match="see each other"):
        Policy.wrap(policy.module, policy.tokenizer)


def test_model_without_an_end_is_refused() -> None:
    config = tiny_config(eos_token_id=None)
    config._attn_implementation = ATTENTION_NAME
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        Policy.wrap(LlamaForCausalLM(config), tokenizer)


def test_a_missing_weight_is_not_drawn_at_random(tmp_path: Path) -> None:
    directory = copy_teacher(tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.0.mlp.down_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 of the model's weights \(model\.layers\.0\.mlp\.down_proj\.weight\)"
    ):
        Policy.load(directory, device="cpu", dtype=torch.float32)


def test_weights_of_another_shape_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = copy_teacher(tmp_path / "model")
    edit_json(directory / "config.json", lambda fields: fields.update(intermediate_size=256))
    with pytest.raises(ValueError, match=r"has shape \[128, 512\], by the config it should have \[128, 256\]"):
        Policy.load(directory, device="cpu", dtype=torch.float32)
    assert "LOAD REPORT" not in capfd.readouterr().err  # the message stands alone


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    directory = copy_teacher(tmp_path / "model")
    (directory / name).write_text('{"version": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"download (it|them) again") as error:
        Policy.load(directory, device="cpu", dtype=torch.float32)
    assert name in str(error.value)


def test_every_end_token_counts() -> None:
    assert tiny_policy(eos_token_id=[7, 9]).eos_token_ids == (EOS, 7, 9)


def test_sliding_window_is_refused_at_load(tmp_path: Path) -> None:
    tiny_policy().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="sliding_window=8"):
        Policy.load(tmp_path, device="cpu", dtype=torch.float32)


def test_head_weight_is_the_tied_parameter() -> None:
    policy = tiny_policy()
    assert policy.head_weight.shape == (NUM_VOCAB, 64)
    assert policy.head_weight is policy.module.get_input_embeddings().weight


def test_without_weights_a_policy_still_reads() -> None:
    policy = tiny_policy()
    reader = policy.without_weights()
    assert {parameter.device.type for parameter in policy.module.parameters()} == {"meta"}
    assert (reader.device, reader.dtype, reader.eos_token_ids) == (policy.device, policy.dtype, policy.eos_token_ids)
    assert reader.device.type == "cpu" and reader.tokenizer is policy.tokenizer
