"""Adapters: only they train, exactly; completions come from them unmerged; what is saved has them merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from r1fast.adapters import adapted_layers, adapter_parameters, low_rank, merged_weights, without_adapters
from r1fast.config import OptimizerConfig
from r1fast.distributed import Ranks
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.lora import add_adapters, linear_names, save_adapter
from r1fast.lora_config import LoraConfig
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.records import Prompt, Sequence
from r1fast.rollout.cpu_layers import cpu_layers
from r1fast.rollout.engine import RolloutEngine
from r1fast.rollout.fused_layers import FusedLayer, LowRank
from r1fast.rollout.strict import strict_logprobs
from r1fast.sampling import Sampling
from r1fast.trainer import Trainer, micro_batch_loss, score
from tests.test_rollout_models import SIZES, _policy
from tests.test_zero_trainer import flat, train
from tests.tiny_model import NUM_VOCAB, random_sequences, tiny_policy

pytest.importorskip("peft")
LORA = LoraConfig(rank=4, alpha=12.0)
SOME = LoraConfig(rank=3, alpha=7.0, targets=("q_proj", "v_proj", "down_proj"), rank_stabilised=True)
QKV = {"num_attention_heads": 4, "num_key_value_heads": 2}


def adapted(policy: Policy, lora: LoraConfig = LORA, std: float = 0.1) -> Policy:
    """With a B that is not 0."""
    add_adapters(policy, lora, "key")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapter_parameters(policy.module).items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return policy


def test_a_new_adapter_changes_nothing_and_depends_on_its_key_alone() -> None:
    plain, one, same, other = (tiny_policy() for _ in range(4))
    (batch,) = pack(random_sequences(4), micro_batch_tokens=1000)
    torch.manual_seed(1)
    add_adapters(one, LORA, "r1_zero adapters 0")
    drawn = torch.randn(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.randn(3))  # the global generator is where it was
    add_adapters(same, LORA, "r1_zero adapters 0")
    add_adapters(other, LORA, "r1_zero adapters 1")
    assert torch.equal(one.hidden(batch), plain.hidden(batch))
    a, b, c = (adapter_parameters(policy.module) for policy in (one, same, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a if "lora_A" in name)
    trained = {name for name, p in one.module.named_parameters() if p.requires_grad}
    assert trained == set(a) and len(a) == 2 * 7 * 2  # A and B, seven products, two layers
    add_adapters(plain, LoraConfig(), "key")
    assert not adapted_layers(plain.module) and all(p.requires_grad for p in plain.module.parameters())


@pytest.mark.parametrize("lora", [LORA, SOME])
def test_gradients_are_those_of_a_dense_model_by_algebra(lora: LoraConfig) -> None:
    """W' = W + s B A: dA = s B^T dW', dB = s dW' A^T; in float64."""
    policy, dense = adapted(tiny_policy(), lora), tiny_policy()
    policy.module.double()
    dense.module.double()
    dense.module.load_state_dict(
        {
            name: value + (0 if name not in (delta := deltas(policy)) else delta[name])
            for name, value in dense.module.state_dict().items()
        }
    )
    (batch,) = pack(random_sequences(6), micro_batch_tokens=1000)
    losses = []
    for one in (policy, dense):
        logits = one.hidden(batch)[batch.predictor_index] @ one.head_weight.T
        losses.append(torch.nn.functional.cross_entropy(logits, batch.targets))
        losses[-1].backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    weights = dict(dense.module.named_parameters())
    for name, layer in adapted_layers(policy.module).items():
        down, up, scale = low_rank(layer)
        gradient = weights[f"{name}.weight"].grad
        assert gradient is not None and down.grad is not None and up.grad is not None
        assert layer.base_layer.weight.grad is None
        torch.testing.assert_close(down.grad, scale * up.T @ gradient, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(up.grad, scale * gradient @ down.T, rtol=1e-9, atol=1e-13)
    assert {low_rank(layer)[2] for layer in adapted_layers(policy.module).values()} == {scale_of(lora)}


def scale_of(lora: LoraConfig) -> float:
    return lora.alpha / (lora.rank**0.5 if lora.rank_stabilised else lora.rank)


def deltas(policy: Policy) -> dict[str, Tensor]:
    found = {}
    for name, layer in adapted_layers(policy.module).items():
        down, up, scale = low_rank(layer)
        found[f"{name}.weight"] = (scale * up @ down).detach()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_bitwise_and_leaves_the_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    base = flat(tiny_policy(dtype=dtype))

    def fresh() -> tuple[Policy, Trainer]:
        policy = tiny_policy(dtype=dtype)
        add_adapters(policy, LORA, "key")
        return policy, Trainer(policy, OptimizerConfig())

    whole, trainer = fresh()
    metrics = train(trainer, range(4), Ranks())
    assert metrics[-1]["grad_norm_sum"] > 0 and set(trainer.names) == set(adapter_parameters(whole.module))
    first, trainer = fresh()
    train(trainer, range(2), Ranks())
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    second, trainer = fresh()
    trainer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert train(trainer, range(2, 4), Ranks()) == metrics[2:]
    assert torch.equal(flat(second), flat(whole)) and not torch.equal(flat(first), flat(whole))
    with without_adapters(whole.module):
        frozen = [p.detach().float().flatten() for n, p in whole.module.named_parameters() if "lora_" not in n]
    assert torch.equal(torch.cat(frozen), base)
    with pytest.raises(ValueError, match="another model"):  # nor are adapters weights
        Trainer(tiny_policy(dtype=dtype), OptimizerConfig()).load_state_dict(trainer.state_dict())


FAMILIES: dict[str, Any] = {
    "llama": None,
    "qwen2": Qwen2Config(**SIZES, **QKV),
    "qwen3": Qwen3Config(**SIZES, **QKV, head_dim=32),
}


@pytest.mark.parametrize("lora", [LORA, SOME], ids=["all", "some"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_completions_are_those_of_full_forwards(family: str, lora: LoraConfig) -> None:
    policy = adapted(tiny_policy() if FAMILIES[family] is None else _policy(FAMILIES[family]), lora)
    assert all(FusedLayer.of(layer) is not None for layer in policy.module.base_model.layers)
    prompts = [Prompt(id=f"q{n}", text="", token_ids=tuple(range(3, 9 + 5 * n)), language="en") for n in range(3)]
    engine = RolloutEngine(policy, rows=16, seed=0)
    greedy = engine.generate(prompts, 1, Sampling(temperature=1e-4, top_p=1.0, max_tokens=12, stage="t", visit=0))
    for prompt, rollout in zip(prompts, greedy, strict=True):
        tokens = list(prompt.token_ids)
        for token in rollout.token_ids.tolist():
            assert token == int(logits(policy, tokens).argmax())
            tokens.append(token)
    sampled = engine.generate(prompts, 8, Sampling(temperature=1.0, top_p=1.0, max_tokens=12, stage="t", visit=1))
    sequences = [
        Sequence(
            token_ids=torch.cat([torch.tensor(rollout.prompt.token_ids), rollout.token_ids]),
            num_prompt_tokens=len(rollout.prompt.token_ids),
            rollout_logp=rollout.logp,
            log_kept_mass=rollout.log_kept_mass,
        )
        for rollout in sampled
    ]
    (batch,) = pack(sequences, micro_batch_tokens=10_000)
    (found,) = score(policy, [batch], temperature=1.0)
    expected = batch.rollout_logp
    assert expected is not None and len(expected) == sum(len(rollout.token_ids) for rollout in sampled)
    assert float((found - expected).abs().max()) <= 1e-5
    with without_adapters(policy.module):  # else it would be the base that is compared
        (without,) = score(policy, [batch], temperature=1.0)
    assert float((without - expected).abs().max()) > 0.01
    assert torch.equal(strict_logprobs(policy, batch, 1.0)[0].detach(), expected)  # bit by bit


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_completions_on_a_gpu(cuda_graphs: bool) -> None:
    """There peft's own layers run, in the graphs of a decode step too."""
    policy = adapted(tiny_policy())
    policy.module.to("cuda")  # type: ignore[arg-type]
    policy.device = torch.device("cuda")
    prompts = [Prompt(id=f"q{n}", text="", token_ids=tuple(range(3, 9 + 5 * n)), language="en") for n in range(3)]
    engine = RolloutEngine(policy, rows=32, seed=0, cuda_graphs=cuda_graphs)
    for visit in range(2):  # with other adapters the second time: a graph reads them where they are
        sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=24, stage="t", visit=visit)
        sequences = [
            Sequence(
                token_ids=torch.cat([torch.tensor(rollout.prompt.token_ids), rollout.token_ids]),
                num_prompt_tokens=len(rollout.prompt.token_ids),
                rollout_logp=rollout.logp,
                log_kept_mass=rollout.log_kept_mass,
            )
            for rollout in engine.generate(prompts, 8, sampling)
        ]
        (batch,) = pack(sequences, micro_batch_tokens=10_000)
        (found,) = score(policy, [batch], temperature=1.0)
        assert batch.rollout_logp is not None
        assert float((found.cpu() - batch.rollout_logp).abs().max()) < 1e-3
        for parameter in adapter_parameters(policy.module).values():
            parameter.data.mul_(-1.5)


@torch.no_grad()
def logits(policy: Policy, tokens: list[int]) -> Tensor:
    (batch,) = pack([Sequence(token_ids=torch.tensor([*tokens, 0]), num_prompt_tokens=1)], micro_batch_tokens=1000)
    return policy.hidden(batch)[len(tokens) - 1] @ policy.head_weight.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_layers_add_the_low_rank_product(dtype: torch.dtype) -> None:
    policy = adapted(tiny_policy(dtype=dtype))
    (batch,) = pack(random_sequences(8), micro_batch_tokens=1000)
    with torch.no_grad():
        own = policy.hidden(batch).double()
        with cpu_layers(policy.module):
            fused = policy.hidden(batch).double()
        with without_adapters(policy.module), cpu_layers(policy.module):
            base = policy.hidden(batch).double()
        policy.module.double()
        exact = policy.hidden(batch)
    errors = [float((x - exact).norm() / exact.norm()) for x in (own, fused, base)]
    assert errors[1] <= 2 * errors[0] + torch.finfo(dtype).eps and errors[2] > 0.02
    policy = tiny_policy()
    add_adapters(policy, SOME, "key")
    attention: Any = policy.module.base_model.layers[0].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    found = LowRank.of(parts)
    assert found is not None and LowRank.of([attention.k_proj]) is None  # has none
    with without_adapters(policy.module):
        assert LowRank.of(parts) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_merged_and_peft_reads_the_adapter(dtype: torch.dtype, tmp_path: Path) -> None:
    policy, base = adapted(tiny_policy(dtype=dtype)), tiny_policy(dtype=dtype)
    merged = merged_weights(policy.module)
    plain = base.module.state_dict()
    assert merged.keys() == plain.keys()
    delta = deltas(adapted(tiny_policy()))
    for name, value in merged.items():
        expected = (plain[name].float() + delta[name]).to(dtype) if name in delta and dtype == torch.float32 else None
        if name not in delta:
            assert torch.equal(value, plain[name])
        elif expected is not None:
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
        else:  # one rounding of the float32 sum of what the policy has
            down, up, scale = low_rank(adapted_layers(policy.module)[name.removesuffix(".weight")])
            assert torch.equal(value, (plain[name].float() + scale * (up.float() @ down.float())).to(dtype))
    policy.save(tmp_path / "checkpoint")
    assert set(load_file(tmp_path / "checkpoint" / "model.safetensors")) == set(plain) - {"lm_head.weight"}
    (batch,) = pack(random_sequences(4), micro_batch_tokens=1000)
    loaded = Policy.load(tmp_path / "checkpoint", device="cpu", dtype=dtype)
    share = 1e-5 if dtype == torch.float32 else 0.03
    own = policy.hidden(batch).detach()
    assert float((loaded.hidden(batch).detach() - own).norm() / own.norm()) < share
    assert len(adapted_layers(policy.module)) == 14  # it is as it was

    from peft import PeftModel

    base.save(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    save_adapter(policy, LORA, tmp_path / "adapter")
    auto: Any = AutoModelForCausalLM
    read = PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base", dtype=dtype), tmp_path / "adapter")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        theirs = read(input_ids=ids).logits[0, -1].float()
        assert float((theirs - logits(policy, ids[0].tolist()).float()).norm() / theirs.norm()) < share
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4


def test_targets_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"names 'v_prjo', and LlamaForCausalLM has no such layer; .* k_proj, lm_head"):
        add_adapters(tiny_policy(), LoraConfig(rank=2, targets=("q_proj", "v_prjo")), "key")
    policy = tiny_policy()
    with pytest.raises(ValueError, match="not found"):
        add_adapters(policy, LoraConfig(rank=2, targets=("nothing",)), "key")
    assert "q_proj" in linear_names(policy.module) == linear_names(adapted(tiny_policy()).module)


def test_clipping_and_loss_see_adapters_alone() -> None:
    """The gradient's norm is over A and B."""
    policy = adapted(tiny_policy())
    trainer = Trainer(policy, OptimizerConfig())
    batches = pack(random_sequences(4), micro_batch_tokens=1000, num_vocab=NUM_VOCAB)
    sums = trainer.step(batches, loss=PolicyLoss(kl="none"), denominator=4.0, lr=0.0)
    copy = adapted(tiny_policy())
    options = PolicyLoss(kl="none")
    value, _ = micro_batch_loss(copy, batches[0], None, None, options=options, denominator=4.0, temperature=1.0)
    value.backward()  # type: ignore[no-untyped-call]
    norms = [p.grad.norm() for p in adapter_parameters(copy.module).values() if p.grad is not None]
    assert len(norms) == 28
    assert sums["grad_norm_sum"] == pytest.approx(float(torch.stack(norms).norm()), rel=1e-5)
