"""A policy that ZeRO 3 has shared out: what it scores, saves, pushes and learns is what a whole one does."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_groups
from safetensors.torch import load_file
from same_training import nothing_persists
from tiny_model import NUM_VOCAB, random_sequences, tiny_policy, tiny_tokenizer
from tiny_model import tiny_config as model_config
from tiny_run import math_prompt, save_model, tiny_config, without_times
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from r1fast.attention import ATTENTION_NAME, register_attention
from r1fast.checks import check_processes
from r1fast.config import Config, ConfigError, OptimizerConfig
from r1fast.context import write_lines
from r1fast.distributed import Ranks, start
from r1fast.distributed_config import DistributedConfig
from r1fast.metrics import read_metrics
from r1fast.options import parse
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.reference import CopiedReference
from r1fast.rollout.vllm_model import by_layer, checkpoint_weights
from r1fast.sequence_parallel import check_tensor_parallel
from r1fast.sharded import Shards
from r1fast.source import Example
from r1fast.stages.sft import NLL, example_row, run_sft
from r1fast.start import open_run
from r1fast.trainer import Trainer, score
from r1fast.weight_sharing import shares_weights
from r1fast.zero_trainer import ZeroTrainer

pytest.importorskip("deepspeed")
CPU = torch.device("cpu")
ZERO3 = DistributedConfig(engine="deepspeed", zero_stage=3)
OPTIMIZER = OptimizerConfig(max_grad_norm=0.5, weight_decay=0.1)
ON_ZERO3 = ["--distributed.engine", "deepspeed", "--distributed.zero_stage", "3"]
ON_VLLM = ["--recipe", "smoke", "--pipeline.stages", "base,r1_zero", "--rollout.backend", "vllm"]
DTYPES = (torch.float32, torch.bfloat16)


def finish(ranks: Ranks, directory: Path) -> None:
    (directory / f"done-{ranks.world_size}-{ranks.rank}").touch()
    ranks.barrier()
    os._exit(0)  # DeepSpeed's own groups end with the process


def shared(policy: Policy, ranks: Ranks, distributed: DistributedConfig = ZERO3) -> Policy:
    """The same policy, loaded as a run does: only rank 0 has its weights before."""
    return Shards.load(lambda: policy, CPU, distributed, ranks)


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    if policy.shards is None:
        return {name: p.detach().clone() for name, p in policy.module.named_parameters()}
    return {name: value.clone() for name, value in policy.shards.parameters()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def moe_policy() -> Policy:
    register_attention()
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(vocab_size=NUM_VOCAB, num_hidden_layers=2, eos_token_id=1, **sizes, **heads)
    config._attn_implementation = ATTENTION_NAME
    torch.manual_seed(0)
    return Policy.wrap(Qwen3MoeForCausalLM(config).float(), tiny_tokenizer())


def _scores_and_weights(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    for dtype in DTYPES:
        policy = tiny_policy(dtype=dtype, tie_word_embeddings=dtype == torch.float32)
        own = shared(tiny_policy(dtype=dtype, tie_word_embeddings=dtype == torch.float32), ranks)
        assert own.shards is not None
        assert (own.num_vocab, own.num_parameters) == (policy.num_vocab, policy.num_parameters)
        assert own.eos_token_ids == policy.eos_token_ids and own.dtype == dtype
        assert_equal(weights_of(own), weights_of(policy))
        held = sum(int(p.ds_tensor.ds_numel) for p in own.module.parameters())
        assert held <= policy.num_parameters / 2 + len(list(own.module.parameters()))  # halves, rounded up
        # as many batches as the rank's number: one has none
        batches = pack(random_sequences(4 * rank), micro_batch_tokens=60)
        found = score(own, batches, temperature=0.7)
        for one, other in zip(found, score(policy, batches, temperature=0.7), strict=True):
            assert torch.equal(one, other)
        state = own.shards.state_dict()
        assert state.keys() == (policy.module.state_dict().keys() if rank == 0 else set())
        own.saver()(directory / f"saved {dtype} {rank}")
        changed = {name: value + 1 for name, value in policy.module.state_dict().items()}
        own.shards.load_state_dict(changed)
        assert_equal(weights_of(own), {name: changed[name] for name in weights_of(policy)})
        with pytest.raises(ValueError, match=r"of another model, it has no \['"):
            own.shards.load_state_dict({})
    finish(ranks, directory)


def test_it_scores_loads_and_saves_as_a_whole_policy_does(tmp_path: Path) -> None:
    run_groups([(2, _scores_and_weights)], tmp_path)
    for dtype in DTYPES:
        policy = tiny_policy(dtype=dtype, tie_word_embeddings=dtype == torch.float32)
        saved = Policy.load(tmp_path / f"saved {dtype} 0", device="cpu", dtype=dtype)
        assert_equal(weights_of(saved), weights_of(policy))


def _pushes_and_references(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    expected = dict(checkpoint_weights(moe_policy()))
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in expected
    assert_equal(dict(checkpoint_weights(shared(moe_policy(), ranks))), expected)
    tied = dict(checkpoint_weights(tiny_policy()))
    assert torch.equal(tied["lm_head.weight"], tied["model.embed_tokens.weight"])
    assert_equal(dict(checkpoint_weights(shared(tiny_policy(), ranks))), tied)

    zero3 = replace(ZERO3, deepspeed_config=str(nothing_persists(directory, ranks)))
    idle = replace(zero3, offload_parameters="cpu")
    policy, reference = shared(tiny_policy(), ranks, zero3), shared(tiny_policy(), ranks, idle)
    kept = CopiedReference(reference)
    trainer = ZeroTrainer(policy, OPTIMIZER, zero3, ranks=ranks)
    batches = pack(ranks.shard(random_sequences(5)), micro_batch_tokens=60)
    alone = CopiedReference(tiny_policy())
    before = kept.score(batches, temperature=1.0)
    for one, other in zip(before, alone.score(batches, temperature=1.0), strict=True):
        assert torch.equal(one, other)
    for _ in range(2):
        trainer.step(batches, loss=NLL, denominator=50.0, lr=1e-2)
        for one, other in zip(kept.score(batches, temperature=1.0), before, strict=True):
            assert torch.equal(one, other)  # it stays what it was
    # after steps a forward alone gathers ahead, for a backward; nothing of it stays
    for _ in range(2):
        score(policy, batches, temperature=1.0)
        assert policy.shards is not None
        assert {p.ds_status.name for p in policy.module.parameters()} == {"NOT_AVAILABLE"}
        assert policy.shards.state_dict().keys() == (policy.module.state_dict().keys() if rank == 0 else set())
    kept.refresh(policy)
    assert kept.version == policy.version == 2
    moved = score(policy, batches, temperature=1.0)
    for one, other, old in zip(kept.score(batches, temperature=1.0), moved, before, strict=True):
        assert torch.equal(one, other) and not torch.equal(one, old)
    state = ranks.broadcast_object(kept.state_dict())  # as a file gives it to every rank
    alone.load_state_dict(state)  # and one process reads what two have saved
    for one, other in zip(alone.score(batches, temperature=1.0), moved, strict=True):
        torch.testing.assert_close(one, other)
    kept.load_state_dict(CopiedReference(tiny_policy()).state_dict())
    for one, other in zip(kept.score(batches, temperature=1.0), before, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="there is no such file"):
        Shards.load(_missing, CPU, ZERO3, ranks)
    finish(ranks, directory)


def _missing() -> Policy:
    raise ValueError("there is no such file")


def test_pushes_and_references_are_those_of_whole_policies(tmp_path: Path) -> None:
    run_groups([(2, _pushes_and_references)], tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 2


EXAMPLES = [
    Example(prompt=math_prompt(), response="<think> first add 3 + 4 = 7 . </think> the answer is \\boxed{ 7 }"),
    Example(prompt=math_prompt("r"), response="7"),
    Example(prompt=math_prompt("s"), response="the answer is 9"),
]


def run_stage(config: Config, run_dir: Path, ranks: Ranks) -> list[Any]:
    """What SFT 1 logs."""
    with open_run(config, run_dir, ranks) as context:
        if ranks.rank == 0:
            rows = [example_row(example) for example in EXAMPLES]
            write_lines(context.directory("cold_start") / "examples.jsonl", rows)
        ranks.barrier()
        run_sft(context, "sft_1")
    return without_times(read_metrics(run_dir))


def stage_config(directory: Path, **options: Any) -> Config:
    return tiny_config(
        directory / "model", sft__steps=4, sft__batch_size=4, sft__lr=1e-2, run__save_every_steps=2, **options
    )


def _stage(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    config = stage_config(directory, distributed__engine="deepspeed", distributed__zero_stage=3)
    assert shares_weights(config, "sft_1")
    whole, step = run_stage(config, directory / "whole", ranks), ZeroTrainer.step

    def dying(self: ZeroTrainer, *arguments: Any, **settings: Any) -> dict[str, float]:
        if self.num_steps == 3:
            raise KeyboardInterrupt
        assert self.policy.shards is not None
        return step(self, *arguments, **settings)

    setattr(ZeroTrainer, "step", dying)  # noqa: B010  # a method
    with pytest.raises(KeyboardInterrupt):
        run_stage(config, directory / "parts", ranks)
    setattr(ZeroTrainer, "step", step)  # noqa: B010
    assert run_stage(config, directory / "parts", ranks) == whole
    with open_run(config, directory / "freed", ranks) as context:
        policy = context.load("base", user="sft_1")
        trainer = ZeroTrainer(policy, OPTIMIZER, ZERO3, ranks=ranks)
        score(policy, pack(random_sequences(2), micro_batch_tokens=60), temperature=1.0)
        left = [weakref.ref(one) for one in (policy.module, trainer, trainer.engine)]
        del policy, trainer
        context.free()
        assert [one() for one in left] == [None] * len(left)
    finish(ranks, directory)


def test_a_stage_learns_resumes_and_leaves_what_one_process_does(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    run_groups([(2, _stage)], tmp_path)
    alone = run_stage(stage_config(tmp_path), tmp_path / "alone", Ranks())
    assert len(alone) == 4
    for found, expected in zip(read_metrics(tmp_path / "whole"), alone, strict=True):
        for key in ("sft_1/loss", "sft_1/grad_norm", "sft_1/tokens"):
            if key in expected:
                assert found[key] == pytest.approx(expected[key], rel=1e-4), key
    weights = [
        load_file(next((tmp_path / name).rglob("*sft_1/checkpoint/model.safetensors")))
        for name in ("alone", "whole", "parts")
    ]
    flat = [torch.cat([own[name].flatten() for name in sorted(own)]) for own in weights]
    # a gradient that is rounding alone moves a weight as far as any other, Adam's eps being small
    assert float((flat[0] - flat[1]).norm() / flat[0].norm()) < 1e-5
    assert torch.equal(flat[1], flat[2])


def test_by_layer_keeps_the_layers_apart() -> None:
    names = ["model.embed.weight", "model.layers.0.a", "model.layers.0.b", "model.layers.10.a", "model.norm.weight"]
    found = [list(part) for part in by_layer((name, torch.zeros(1)) for name in names)]
    assert found == [names[:1], names[1:3], names[3:4], names[4:]]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (ON_ZERO3, False),
        ([*ON_ZERO3, "--rollout.backend", "vllm"], True),
        ([*ON_ZERO3[:3], "2", "--rollout.backend", "vllm"], False),
    ],
)
def test_weights_are_shared_out_where_nothing_but_vllm_samples(words: list[str], expected: bool) -> None:
    config = parse(["--recipe", "smoke", *words]).config
    assert shares_weights(config, "r1_zero") == shares_weights(config, "evaluation") == expected
    assert not shares_weights(config, "reward_models")
    supervised = parse(["--recipe", "smoke", *words, "--sft.dev_every_steps", "0"]).config
    assert shares_weights(supervised, "sft_1") == (words[:3] == ON_ZERO3[:3] and words[3] == "3")


def test_code_of_the_model_is_refused_with_it() -> None:
    words = ["--recipe", "smollm2-zero", "--model", "m", *ON_ZERO3, "--rollout.backend", "vllm"]
    with pytest.raises(ConfigError, match=r"trust_remote_code = true in stage base, .*zero_stage = 2"):
        parse([*words, "--model.trust_remote_code", "true"])


def test_teams_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.tensor_parallel = 4 does not divide 2 processes"):
        check_processes(parse([*ON_VLLM, "--rollout.tensor_parallel", "4"]).config, 2)
    with pytest.raises(ConfigError, match=r"tensor_parallel = 2 is vLLM's, and rollout\.backend is 'paged'"):
        parse([*ON_VLLM[:4], "--rollout.tensor_parallel", "2"])
    with pytest.raises(ConfigError, match=r"rollout\.tensor_parallel = 2 cannot share 3 query and 3 key/value heads"):
        check_tensor_parallel(model_config(hidden_size=66, num_attention_heads=3, num_key_value_heads=3), 2)
    check_tensor_parallel(model_config(), 4)


def _on_a_gpu(rank: int, directory: Path) -> None:
    ranks = start("cuda")
    sizes: dict[str, Any] = {"hidden_size": 256, "dtype": torch.bfloat16}  # heads of 64
    whole = tiny_policy(**sizes)
    whole.module.to(ranks.device)
    whole.device = ranks.device
    own = Shards.load(lambda: tiny_policy(**sizes), ranks.device, ZERO3, ranks)
    assert all(p.ds_tensor.device == ranks.device for p in own.module.parameters())
    trainers = Trainer(whole, OPTIMIZER, ranks=ranks), ZeroTrainer(own, OPTIMIZER, ZERO3, ranks=ranks)
    for step in range(3):
        batches = pack(random_sequences(9, seed=step), micro_batch_tokens=90)
        for one, other in zip(*(score(t.policy, batches, temperature=0.7) for t in trainers), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0.05)  # bfloat16, other orders of sums
        sums = [t.step(batches, loss=NLL, denominator=200.0, lr=1e-3) for t in trainers]
        assert sums[0]["loss_sum"] == pytest.approx(sums[1]["loss_sum"], rel=1e-2)
        assert sums[0]["grad_norm_sum"] == pytest.approx(sums[1]["grad_norm_sum"], rel=5e-2)
    own.saver()(directory / "saved")
    saved = Policy.load(directory / "saved", device=ranks.device, dtype=torch.bfloat16)
    assert_equal(weights_of(saved), weights_of(own))
    finish(ranks, directory)


@pytest.mark.gpu
def test_on_a_gpu_it_scores_learns_and_saves_as_a_whole_policy_does(tmp_path: Path) -> None:
    run_groups([(1, _on_a_gpu)], tmp_path)
    assert (tmp_path / "done-1-0").exists()
