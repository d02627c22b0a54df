"""The engine on a GPU, in bf16: log-probs of the training forward, pages on the host, memory given back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from r1fast.attention import PackedContext
from r1fast.packing import position_ids
from r1fast.policy import Policy
from r1fast.records import Prompt, Rollout
from r1fast.rollout.batch import DecodeBatch
from r1fast.rollout.engine import RolloutEngine
from r1fast.rollout.step_graphs import StepGraphs
from r1fast.sampling import Sampling
from tests.tiny_model import EOS, NUM_VOCAB, tiny_policy

pytestmark = pytest.mark.gpu

SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_tokens=150, stage="x", visit=0)


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Completions never end by themselves."""
    policy = tiny_policy(
        dtype=torch.bfloat16, hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64
    )
    module = policy.module.to("cuda")  # type: ignore[arg-type]
    return replace(policy, module=module, device=torch.device("cuda"), eos_token_ids=(NUM_VOCAB,))


def _prompts(count: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 200, (count,), generator=generator).tolist()
    drawn = [torch.randint(3, NUM_VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return [Prompt(id=f"p{n}", text="", token_ids=tuple(token_ids)) for n, token_ids in enumerate(drawn)]


@torch.no_grad()
def _logp(policy: Policy, rollout: Rollout) -> torch.Tensor:
    token_ids = torch.tensor([*rollout.prompt.token_ids, *rollout.token_ids.tolist()], device="cuda")
    cu_seqlens = torch.tensor([0, len(token_ids)], dtype=torch.int32)
    hidden_TD = policy.module.base_model(
        input_ids=token_ids[None],
        position_ids=position_ids(cu_seqlens).cuda()[None],
        use_cache=False,
        attention_context=PackedContext(cu_seqlens, policy.device),
    ).last_hidden_state[0]
    logits = hidden_TD.float() @ policy.head_weight.float().T / SAMPLING.temperature
    first = len(rollout.prompt.token_ids)
    return logits.log_softmax(-1)[first - 1 : -1].gather(1, token_ids[first:, None])[:, 0].cpu()


def test_log_probs_are_those_of_the_training_forward(policy: Policy) -> None:
    rollouts = RolloutEngine(policy, rows=32, seed=0).generate(_prompts(12), 4, SAMPLING)
    difference = torch.cat([(rollout.logp - _logp(policy, rollout)).abs() for rollout in rollouts])
    assert difference.mean() <= 5e-3


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 20, "min_p": 0.01}, {"bad_token_ids": (5, 6, 7), "min_tokens": 20}], ids=str
)
def test_a_graph_gives_what_its_step_gives(policy: Policy, options: dict[str, Any]) -> None:
    policy = replace(policy, eos_token_ids=(EOS,))
    sampling = replace(SAMPLING, **options)
    graphs, plain = (RolloutEngine(policy, rows=32, seed=0, cuda_graphs=on) for on in (True, False))
    for _ in range(2):
        for one, other in zip(*(e.generate(_prompts(12), 4, sampling) for e in (graphs, plain)), strict=True):
            assert torch.equal(one.token_ids, other.token_ids) and torch.equal(one.logp, other.logp)
    assert len(_graphs(graphs)) == 2  # of 16 and 32 rows
    assert graphs._seats is not None and plain._seats is not None and plain._seats.batch.graphs is None


@pytest.mark.parametrize("options", [{}, {"bad_token_ids": (5, 6, 7), "min_tokens": 20}], ids=str)
def test_guesses_change_no_sample(policy: Policy, options: dict[str, Any]) -> None:
    policy = replace(policy, eos_token_ids=(EOS,))
    sampling = replace(SAMPLING, temperature=0.3, **options)
    plain = RolloutEngine(policy, rows=32, seed=0).generate(_prompts(6), 4, sampling)
    for graphs in (True, False):
        engine = RolloutEngine(policy, rows=32, seed=0, cuda_graphs=graphs, draft_tokens=4, draft_rows=64)
        for one, other in zip(engine.generate(_prompts(6), 4, sampling), plain, strict=True):
            assert torch.equal(one.token_ids, other.token_ids) and torch.equal(one.logp, other.logp)
        assert engine.tally.num_drawn > 0


def _graphs(engine: RolloutEngine) -> StepGraphs:
    assert engine._seats is not None and engine._seats.batch.graphs is not None
    return engine._seats.batch.graphs


def test_graphs_outlive_calls_sampling_and_sleep_and_see_new_weights(policy: Policy) -> None:
    engine = RolloutEngine(policy, rows=32, seed=0, cache_bytes=1 << 28)
    before = engine.generate(_prompts(8), 4, SAMPLING)
    captured = dict(_graphs(engine)._graphs)
    engine.generate(_prompts(3), 2, replace(SAMPLING, temperature=0.0, top_k=3))
    engine.sleep()
    engine.wake()
    again = engine.generate(_prompts(8), 4, SAMPLING)
    assert dict(_graphs(engine)._graphs) == captured
    for one, other in zip(again, before, strict=True):
        assert torch.equal(one.token_ids, other.token_ids) and torch.equal(one.logp, other.logp)
    weight = policy.module.get_input_embeddings().weight
    old = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.1)
    changed = engine.generate(_prompts(8), 4, SAMPLING)
    expected = RolloutEngine(policy, rows=32, seed=0, cuda_graphs=False).generate(_prompts(8), 4, SAMPLING)
    assert dict(_graphs(engine)._graphs) == captured
    for one, other in zip(changed, expected, strict=True):
        assert torch.equal(one.token_ids, other.token_ids) and torch.equal(one.logp, other.logp)
    weight.data = old  # elsewhere now: what was captured reads the old place
    moved = engine.generate(_prompts(8), 4, SAMPLING)
    assert set(captured.values()).isdisjoint(_graphs(engine)._graphs.values())
    for one, other in zip(moved, before, strict=True):
        assert torch.equal(one.token_ids, other.token_ids) and torch.equal(one.logp, other.logp)


def test_a_step_that_needs_the_host_is_refused_by_name() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    policy = tiny_policy(dtype=torch.bfloat16, head_dim=64, rope_parameters=rope)
    policy = replace(policy, module=policy.module.to("cuda"), device=torch.device("cuda"))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"cannot be a CUDA graph: aten.* set rollout.cuda_graphs = false"):
        RolloutEngine(policy, rows=16, seed=0).generate(_prompts(2), 2, SAMPLING)
    assert RolloutEngine(policy, rows=16, seed=0, cuda_graphs=False).generate(_prompts(2), 2, SAMPLING)


def test_a_capture_that_fails_is_said_and_leaves_the_stream(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
    engine, stream = RolloutEngine(policy, rows=16, seed=0), torch.cuda.current_stream()
    real = DecodeBatch._step

    def step(self: DecodeBatch, num_rows: int) -> None:
        real(self, num_rows)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    with monkeypatch.context() as patched:
        patched.setattr(DecodeBatch, "_step", step)
        with pytest.raises(RuntimeError, match=r"captur.*cuda_graphs = false"):
            engine.generate(_prompts(2), 2, SAMPLING)
    assert torch.cuda.current_stream() == stream
    assert engine.generate(_prompts(2), 2, SAMPLING)


def test_a_small_cache_swaps_to_the_host(policy: Policy) -> None:
    whole = RolloutEngine(policy, rows=16, seed=0)
    reference = whole.generate(_prompts(6), 4, SAMPLING)
    small = RolloutEngine(policy, rows=16, seed=0, cache_bytes=14 * whole.shape.page_bytes)
    for one, other in zip(small.generate(_prompts(6), 4, SAMPLING), reference, strict=True):
        assert len(one.token_ids) == len(other.token_ids) == SAMPLING.max_tokens
        assert (one.token_ids[:5] == other.token_ids[:5]).float().mean() >= 0.6  # bf16 sums depend on the batch there
    assert small.store is not None and small.store.num_pages == 14


def test_asleep_the_memory_is_free(policy: Policy) -> None:
    engine = RolloutEngine(policy, rows=16, seed=0, cache_bytes=1 << 30)
    before = engine.generate(_prompts(4), 4, SAMPLING)
    torch.cuda.synchronize()
    awake = torch.cuda.mem_get_info()[0]
    engine.sleep()
    assert engine.store is not None
    freed = torch.cuda.mem_get_info()[0] - awake
    assert freed >= engine.store.num_pages * engine.shape.page_bytes
    after = engine.generate(_prompts(4), 4, SAMPLING)
    assert [r.token_ids.tolist() for r in after] == [r.token_ids.tolist() for r in before]
