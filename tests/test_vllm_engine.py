"""The rollout engine on vLLM, for real where it is installed; else how it is refused.

    OMP_NUM_THREADS=2 vllm/bin/python -m pytest tests/test_vllm_engine.py

in an environment with vLLM (the README: how to make one).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from test_rollout_models import SIZES
from test_vllm_draw import PLAIN, PROMPTS, SETTINGS
from tiny_model import NUM_VOCAB, random_sequences, tiny_policy, tiny_tokenizer
from tiny_run import open_context
from transformers import Qwen2Config, Qwen2ForCausalLM

from r1fast.attention import ATTENTION_NAME, register_attention
from r1fast.config import Config, ConfigError, OptimizerConfig
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.options import parse
from r1fast.packing import pack
from r1fast.plan import ModelSize, Speed, make_plan
from r1fast.policy import Policy
from r1fast.preflight import check_run
from r1fast.records import Prompt, Rollout
from r1fast.rollout.backend import make_engine, release, take_sums
from r1fast.rollout.canary import WeightsDiffer
from r1fast.rollout.engine import RolloutEngine
from r1fast.rollout.vllm_engine import VllmEngine
from r1fast.rollout.vllm_model import VllmModel
from r1fast.stages.rl import run_rl
from r1fast.start import open_source
from r1fast.train import main as train
from r1fast.trainer import Trainer

HERE = util.find_spec("vllm") is not None
without_vllm = pytest.mark.skipif(HERE, reason="vLLM is installed here")
with_vllm = pytest.mark.skipif(not HERE, reason="needs vLLM, in an environment of its own: see the README")
CPU = torch.device("cpu")
R1_ZERO = ["--recipe", "smoke", "--pipeline.stages", "base,r1_zero"]
ON_VLLM = [*R1_ZERO, "--rollout.backend", "vllm"]


@without_vllm
def test_where_it_is_not_installed_every_start_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse(ON_VLLM).config
    with pytest.raises(ConfigError) as refused:
        check_run(config, tmp_path / "run", open_source(config), device=CPU)
    message = str(refused.value)
    assert message.startswith('rollout.backend = "vllm" needs vLLM, which is not installed here: install it into an')
    assert "pip install vllm" in message and 'rollout.backend = "paged"' in message and "\n" not in message
    assert train([*ON_VLLM, "--dry-run"]) == 0
    assert "r1fast: here it would not start: " in (shown := capsys.readouterr().err) and "not installed here" in shown
    with pytest.raises(ValueError, match="not installed here"):
        make_engine(tiny_policy(), config)
    stages = {"r1_zero": {"rollout": {"backend": "vllm"}}}
    only_there = replace(parse(["--recipe", "smoke"]).config, stages=stages)
    with pytest.raises(ConfigError, match="not installed here"):
        check_run(only_there, tmp_path / "run", open_source(only_there), device=CPU)
    assert not list(tmp_path.iterdir())


def test_a_value_that_is_no_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.backend.*sglang"):
        parse(["--rollout.backend", "sglang"])


def test_the_plan_counts_the_second_copy_of_the_weights() -> None:
    size = ModelSize.of(tiny_policy().module.config)
    found = {}
    for backend in ("paged", "vllm"):
        config = parse([*R1_ZERO, "--rollout.backend", backend]).config
        plan = make_plan(config, size, speed=Speed(flops_per_s=1e9))
        found[backend] = {stage.name: dict(stage.work.memory) for stage in plan.stages}["r1_zero"]
    assert "vLLM's weights" not in found["paged"]
    assert found["vllm"]["vLLM's weights"] == size.num_params * 4
    assert found["vllm"]["vLLM's cache"] > 0


def test_the_paged_engine_has_nothing_to_release_or_log() -> None:
    engine = make_engine(tiny_policy(), Config())
    assert isinstance(engine, RolloutEngine)
    release(engine)
    assert take_sums(engine) == {}


# --- for real ---


def served_policy(**options: Any) -> Policy:
    """Heads of 32, the smallest that vLLM's build for a CPU takes."""
    return tiny_policy(**{"hidden_size": 128} | options)


@pytest.fixture(scope="module")
def shared() -> Iterator[VllmEngine]:
    """One start for the tests; each puts its own weights into the policy, which are pushed then."""
    engine = VllmEngine(served_policy(), rows=16, seed=0, cache_bytes=1 << 28)
    yield engine
    release(engine)


@pytest.fixture
def engine(shared: VllmEngine) -> VllmEngine:
    fresh = served_policy()
    version = shared.policy.version
    shared.policy.copy_weights_(fresh)
    shared.policy.version = version + 1
    return shared


def update(policy: Policy, lr: float = 1e-3) -> None:
    """An optimizer step."""
    trainer = Trainer(policy, OptimizerConfig())
    batches = pack(random_sequences(6, seed=policy.version), micro_batch_tokens=512)
    trainer.step(batches, loss=PolicyLoss(kl="none"), denominator=6.0, lr=lr)


def assert_same(found: list[Rollout], expected: list[Rollout]) -> None:
    for own, other in zip(found, expected, strict=True):
        assert own.token_ids.tolist() == other.token_ids.tolist()
        assert (own.prompt, own.sample_index, own.text) == (other.prompt, other.sample_index, other.text)
        assert (own.finish_reason, own.policy_version) == (other.finish_reason, other.policy_version)
        for column in ("logp", "log_kept_mass", "entropy"):
            torch.testing.assert_close(getattr(own, column), getattr(other, column), atol=2e-5, rtol=0)


@with_vllm
@pytest.mark.parametrize("name", SETTINGS)
def test_samples_and_numbers_are_the_paged_engines(engine: VllmEngine, name: str) -> None:
    paged = RolloutEngine(engine.policy, rows=16, seed=0)
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 3, 40, 129, 200)  # below and above a block
    prompts = [
        Prompt(id=f"p{n}", text="", token_ids=tuple(torch.randint(3, NUM_VOCAB, (n,), generator=generator).tolist()))
        for n in lengths
    ]
    limits = [1 + 7 * n % 20 for n in range(5 * 5)]  # more samples than rows
    limits = [max(limit, SETTINGS[name].min_tokens) for limit in limits]
    expected = paged.generate(prompts, 5, SETTINGS[name], max_tokens=limits)
    assert_same(engine.generate(prompts, 5, SETTINGS[name], max_tokens=limits), expected)
    assert len({len(rollout.token_ids) for rollout in expected}) > 3


@with_vllm
def test_every_step_is_pushed_and_compared(engine: VllmEngine) -> None:
    paged = RolloutEngine(engine.policy, rows=16, seed=0)
    before, texts = engine.num_pushes, []
    for step in range(3):
        found = engine.generate(PROMPTS, 4, PLAIN)
        assert_same(found, paged.generate(PROMPTS, 4, PLAIN))
        engine.generate(PROMPTS, 4, PLAIN)
        assert engine.num_pushes == before + step + 1
        assert take_sums(engine)["canary_gap_max"] == engine.canary.gap < 1e-5
        texts.append([rollout.token_ids.tolist() for rollout in found])
        update(engine.policy)
    assert texts[0] != texts[1] != texts[2]


@with_vllm
def test_a_write_without_a_new_version_is_pushed(engine: VllmEngine) -> None:
    engine.generate(PROMPTS, 1, PLAIN)
    with torch.no_grad():
        engine.policy.head_weight.mul_(1.5)
    paged = RolloutEngine(engine.policy, rows=16, seed=0)
    assert_same(engine.generate(PROMPTS, 4, PLAIN), paged.generate(PROMPTS, 4, PLAIN))


@with_vllm
@pytest.mark.parametrize("lr", [1e-3, 1e-6])
def test_a_push_that_does_not_arrive_stops(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, lr: float) -> None:
    engine.generate(PROMPTS, 1, PLAIN)
    update(engine.policy, lr)
    with monkeypatch.context() as patched:
        patched.setattr(VllmModel, "push", lambda *_: None)
        for _ in range(2):  # it is not taken for done by the next call
            with pytest.raises(WeightsDiffer, match=rf"push of policy version {engine.policy.version} "):
                engine.generate(PROMPTS, 1, PLAIN)
    assert len(engine.generate(PROMPTS, 2, PLAIN)) == 4


@with_vllm
def test_writing_into_vllms_parameters_would_not_arrive(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why `push` goes through reload_weights: a CPU computes with packed copies."""
    engine.generate(PROMPTS, 1, PLAIN)
    update(engine.policy)

    def write(model: VllmModel, policy: Policy) -> None:
        names = dict(policy.module.named_parameters())

        def copy(module: Any) -> None:
            for name, parameter in module.named_parameters():
                if name in names and parameter.shape == names[name].shape:
                    parameter.data.copy_(names[name])

        model._llm.apply_model(copy)

    with monkeypatch.context() as patched:
        patched.setattr(VllmModel, "push", write)
        with pytest.raises(WeightsDiffer, match=r"mean -\d.* against -\d.* nats, mean \|difference\|"):
            engine.generate(PROMPTS, 1, PLAIN)


@with_vllm
def test_a_push_with_one_wrong_matrix_stops(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.generate(PROMPTS, 1, PLAIN)
    update(engine.policy)
    real = VllmModel.push

    def corrupted(model: VllmModel, policy: Policy) -> None:
        other = policy.copy()
        other.module.get_parameter("model.layers.1.mlp.down_proj.weight").data[0] = 0.0  # one row of 128
        real(model, other)

    with monkeypatch.context() as patched:
        patched.setattr(VllmModel, "push", corrupted)
        with pytest.raises(WeightsDiffer, match="the weights did not arrive"):
            engine.generate(PROMPTS, 1, PLAIN)
    engine.generate(PROMPTS, 1, PLAIN)
    assert engine.canary.gap < 1e-5


@with_vllm
def test_stop_strings_and_streams(engine: VllmEngine) -> None:
    paged = RolloutEngine(engine.policy, rows=16, seed=0)
    sampling = replace(PLAIN, max_tokens=30)
    words = paged.generate(PROMPTS, 1, sampling)[0].text.split()
    stopping = replace(sampling, stop=(f"{words[3]} {words[4]}", "w7"))
    expected = paged.generate(PROMPTS, 4, stopping)
    assert_same(engine.generate(PROMPTS, 4, stopping), expected)
    assert "stop" in {rollout.finish_reason for rollout in expected}
    assert list(engine.stream(PROMPTS[0], stopping)) == list(paged.stream(PROMPTS[0], stopping))


@with_vllm
def test_groups_come_as_they_end_and_a_call_may_be_broken_off(engine: VllmEngine) -> None:
    limits = [40, 40, 3, 3]
    groups = engine.groups(PROMPTS, 2, replace(PLAIN, max_tokens=40, min_tokens=3, bad_token_ids=(1,)), limits)
    assert next(groups)[0].prompt.id == "b"
    with pytest.raises(RuntimeError, match="not used up"):
        engine.generate(PROMPTS, 1, PLAIN)
    with pytest.raises(RuntimeError, match="before the engine sleeps"):
        engine.sleep()
    groups.close()
    paged = RolloutEngine(engine.policy, rows=16, seed=0)
    assert_same(engine.generate(PROMPTS, 2, PLAIN), paged.generate(PROMPTS, 2, PLAIN))


@with_vllm
def test_bad_calls_are_refused_as_the_paged_engine_does(engine: VllmEngine) -> None:
    long = Prompt(id="long", text="", token_ids=(5,) * 510)
    with pytest.raises(ValueError, match="the model has 512 positions"):
        engine.generate([long], 1, PLAIN)
    with pytest.raises(ValueError, match="group_size must be at least 1"):
        engine.generate(PROMPTS, 0, PLAIN)
    nothing = replace(PLAIN, bad_token_ids=tuple(range(NUM_VOCAB)))
    with pytest.raises(ValueError, match="no token may be drawn as token 1"):
        engine.generate(PROMPTS, 1, nothing)
    assert len(engine.generate(PROMPTS, 1, PLAIN)) == 2  # it has started anew


@with_vllm
def test_weights_that_have_diverged_are_told(engine: VllmEngine) -> None:
    with torch.no_grad():
        engine.policy.head_weight[5:9] = torch.nan
    with pytest.raises(FloatingPointError, match="diverged"):
        engine.generate(PROMPTS, 1, PLAIN)


@with_vllm
def test_it_sleeps_and_wakes_and_leaves_the_random_state_alone(engine: VllmEngine) -> None:
    expected = engine.generate(PROMPTS, 2, PLAIN)
    engine.sleep()
    state = torch.get_rng_state()
    engine.wake()
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(engine.generate(PROMPTS, 2, PLAIN), expected)


@with_vllm
def test_restarts_give_the_memory_back() -> None:
    """vLLM 0.32 keeps references to the layers of every model that was reloaded once."""
    policy = served_policy(hidden_size=1024, intermediate_size=8192)
    weights = sum(parameter.nbytes for parameter in policy.module.parameters())
    assert weights > 200 << 20
    engine = VllmEngine(policy, rows=16, seed=0, cache_bytes=1 << 26)
    asleep = []
    for _ in range(3):
        engine.wake()
        engine.sleep()
        asleep.append(psutil.Process().memory_info().rss)
    assert max(asleep[1:]) - asleep[0] < weights // 2


@with_vllm
def test_the_cache_grows_with_what_calls_can_use() -> None:
    engine = VllmEngine(served_policy(), rows=16, seed=0)
    try:
        first = engine.generate(PROMPTS, 4, PLAIN)
        engine.generate(PROMPTS, 4, PLAIN)
        assert engine.num_pushes == 1
        engine.generate(PROMPTS, 8, replace(PLAIN, max_tokens=400, min_tokens=300))
        assert engine.num_pushes == 2  # it has started anew
        assert_same(engine.generate(PROMPTS, 4, PLAIN), first)
        assert engine.num_pushes == 2
    finally:
        release(engine)


@with_vllm
def test_a_model_with_biases_and_grouped_heads_is_pushed_whole() -> None:
    """Qwen2's shape: vLLM fuses its projections, and their biases."""
    register_attention()
    config = Qwen2Config(**SIZES | {"hidden_size": 224}, num_attention_heads=7, num_key_value_heads=1)
    config._attn_implementation = ATTENTION_NAME
    torch.manual_seed(0)
    module = Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    policy = Policy.wrap(module, tiny_tokenizer())
    engine = VllmEngine(policy, rows=16, seed=0, cache_bytes=1 << 26)
    try:
        for _ in range(2):
            paged = RolloutEngine(policy, rows=16, seed=0)
            assert_same(engine.generate(PROMPTS, 2, PLAIN), paged.generate(PROMPTS, 2, PLAIN))
            update(policy)
    finally:
        release(engine)


@with_vllm
def test_bf16_passes_its_own_tolerance_and_is_scored_as_it_was_drawn() -> None:
    policy = served_policy(dtype=torch.bfloat16)
    engine = VllmEngine(policy, rows=16, seed=0, cache_bytes=1 << 28)
    try:
        for _ in range(2):
            rollouts = engine.generate(PROMPTS, 8, replace(PLAIN, temperature=0.7))
            assert 0 < engine.canary.gap < 0.1
            assert all(rollout.logp.isfinite().all() and (rollout.entropy > 0).all() for rollout in rollouts)
            update(policy)
    finally:
        release(engine)


@with_vllm
def test_a_sample_that_the_cache_cannot_hold_is_refused() -> None:
    policy = served_policy()
    engine = VllmEngine(
        policy, rows=16, seed=0, cache_bytes=3 * 128 * 2 * 2 * 64 * 4
    )  # three blocks, one of them spare
    try:
        with pytest.raises(ValueError, match=r"'long' of 300 tokens and max_tokens = 6 make 306, .* cache_bytes"):
            engine.generate([Prompt(id="long", text="", token_ids=(5,) * 300)], 1, PLAIN)
        assert len(engine.generate(PROMPTS, 4, replace(PLAIN, max_tokens=100, min_tokens=90))) == 8  # by turns
    finally:
        release(engine)


@with_vllm
def test_the_rl_stage_learns_from_it(tmp_path: Path) -> None:
    """R1-Zero on the embedded model, three steps: what it logs is what it logs on the paged engine."""
    words = ["--rl.steps", "3", "--run.tensorboard", "false", "--rl.dev_every_steps", "3"]
    lines = {}
    for backend in ("paged", "vllm"):
        config = parse([*R1_ZERO, *words, "--rollout.backend", backend]).config
        with open_context(config, tmp_path / backend) as context:
            run_rl(context, "r1_zero")
        text = (tmp_path / backend / "metrics.jsonl").read_text(encoding="utf-8")
        lines[backend] = [json.loads(line) for line in text.splitlines()]
    assert len(lines["vllm"]) == len(lines["paged"]) >= 3
    for own, other in zip(lines["vllm"], lines["paged"], strict=True):
        if own["step"]:
            assert 0 < own["r1_zero/canary_gap_max"] < 1e-5
        shown = [key for key in other if "time/" not in key and isinstance(other[key], float)]
        assert len(shown) > 3
        for key in shown:
            assert own[key] == pytest.approx(other[key], rel=1e-3, abs=1e-4), (own["step"], key)
