"""The engine against a naive loop over full forwards, and a sample against itself in other company."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from r1fast.attention import PackedContext
from r1fast.policy import Policy
from r1fast.records import Prompt, Rollout
from r1fast.rollout import engine_calls, generation
from r1fast.rollout.batch import DecodeBatch
from r1fast.rollout.engine import RolloutEngine
from r1fast.sampling import Sampling
from tests.tiny_model import EOS, NUM_VOCAB, tiny_policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def _prompts(count: int, shortest: int = 1, longest: int = 21) -> list[Prompt]:
    generator = torch.Generator().manual_seed(3)
    prompts = []
    for n in range(count):
        length = int(torch.randint(shortest, longest, (1,), generator=generator))
        token_ids = torch.randint(3, NUM_VOCAB, (length,), generator=generator)
        prompts.append(Prompt(id=f"p{n}", text="", token_ids=tuple(token_ids.tolist())))
    return prompts


def _sampling(max_tokens: int = 12, temperature: float = 1.0, top_p: float = 1.0, visit: int = 0) -> Sampling:
    return Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, stage="rl_1", visit=visit)


def _generate(
    policy: Policy, prompts: list[Prompt], group_size: int, sampling: Sampling, rows: int = 512
) -> list[Rollout]:
    return RolloutEngine(policy, rows=rows, seed=0).generate(prompts, group_size, sampling)


@torch.no_grad()
def _full_logits(policy: Policy, token_ids: list[int]) -> Tensor:
    context = PackedContext(torch.tensor([0, len(token_ids)], dtype=torch.int32))
    ids = torch.tensor([token_ids])
    positions = torch.arange(len(token_ids))[None]
    output = policy.module(input_ids=ids, position_ids=positions, use_cache=False, attention_context=context)
    return cast(Tensor, output.logits[0].float())


def _assert_same(one: Rollout, other: Rollout) -> None:
    assert (one.prompt.id, one.sample_index) == (other.prompt.id, other.sample_index)
    assert one.token_ids.tolist() == other.token_ids.tolist()
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    for name in ("logp", "entropy", "log_kept_mass"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_greedy_equals_full_forwards(policy: Policy) -> None:
    prompts = _prompts(5)
    for rollout in _generate(policy, prompts, 2, _sampling(temperature=0.0)):
        token_ids = list(rollout.prompt.token_ids)
        for token, logp in zip(rollout.token_ids.tolist(), rollout.logp.tolist(), strict=True):
            logits = _full_logits(policy, token_ids)[-1]
            assert token == int(logits.argmax())
            assert abs(logp - float(logits.log_softmax(-1)[token])) < 1e-5
            token_ids.append(token)
        assert token_ids[-1] == EOS or len(rollout.token_ids) == 12


@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (8, 2)])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_logp_equals_the_packed_forward(heads: tuple[int, int], temperature: float, top_p: float) -> None:
    policy = tiny_policy(num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=16)
    cut = 0
    for rollout in _generate(policy, _prompts(4), 5, _sampling(20, temperature, top_p)):
        logits = _full_logits(policy, [*rollout.prompt.token_ids, *rollout.token_ids.tolist()])
        logp = (logits[len(rollout.prompt.token_ids) - 1 : -1] / temperature).log_softmax(-1)
        chosen = logp.gather(1, rollout.token_ids[:, None])[:, 0]
        torch.testing.assert_close(rollout.logp, chosen, atol=1e-4, rtol=0)
        torch.testing.assert_close(rollout.entropy, -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=0)
        ordered = logp.exp().sort(descending=True).values
        before = ordered.cumsum(-1) - ordered
        kept = (ordered * (before < top_p)).sum(-1) if top_p < 1 else torch.ones(len(logp))
        torch.testing.assert_close(rollout.log_kept_mass.exp(), kept, atol=1e-4, rtol=0)
        assert (chosen.exp() >= (ordered * (before < top_p)).masked_fill(before >= top_p, 2).amin(-1) - 1e-6).all()
        cut += int((rollout.log_kept_mass < 0).sum())
    assert (cut > 0) == (top_p < 1)


def test_bf16_logp_is_near_the_packed_forward() -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    for rollout in _generate(policy, _prompts(4), 4, _sampling()):
        assert rollout.logp.dtype == rollout.entropy.dtype == torch.float32
        logits = _full_logits(policy, [*rollout.prompt.token_ids, *rollout.token_ids.tolist()])
        logp = logits[len(rollout.prompt.token_ids) - 1 : -1].log_softmax(-1)
        difference = rollout.logp - logp.gather(1, rollout.token_ids[:, None])[:, 0]
        # sums in another order flip a rounding here and there, and what follows spreads it
        assert difference.abs().max() < 0.1


def test_a_sample_does_not_depend_on_its_company(policy: Policy) -> None:
    prompts = _prompts(10)
    sampling = _sampling(24)
    batch = _generate(policy, prompts, 4, sampling)
    assert [(r.prompt.id, r.sample_index) for r in batch] == [(p.id, n) for p in prompts for n in range(4)]
    by_key = {(r.prompt.id, r.sample_index): r for r in batch}
    assert len({tuple(r.token_ids.tolist()) for r in batch}) >= 38  # an immediate end is the same twice
    for prompt in prompts[:3]:
        _assert_same(_generate(policy, [prompt], 1, sampling)[0], by_key[prompt.id, 0])
    for rollout in _generate(policy, prompts[::-1], 4, sampling, rows=8):
        _assert_same(rollout, by_key[rollout.prompt.id, rollout.sample_index])


@pytest.mark.parametrize("rows", [1, 3, 7, 16, 24])
def test_refill_with_fewer_rows_than_samples(policy: Policy, rows: int) -> None:
    prompts = _prompts(7)
    sampling = _sampling(40)
    reference = _generate(policy, prompts, 5, sampling)
    assert {"stop", "length"} == {r.finish_reason for r in reference}
    for one, other in zip(_generate(policy, prompts, 5, sampling, rows=rows), reference, strict=True):
        _assert_same(one, other)


def test_small_blocks_and_prefills_change_nothing(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = _prompts(6)
    reference = _generate(policy, prompts, 4, _sampling(40))
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 20)
    monkeypatch.setattr(engine_calls, "LOOK_EVERY", 3)
    for one, other in zip(_generate(policy, prompts, 4, _sampling(40), rows=12), reference, strict=True):
        _assert_same(one, other)


@pytest.mark.parametrize("chunk", [16, 64, 70, 200])
def test_a_long_prompt_in_chunks(policy: Policy, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    prompts = _prompts(2, shortest=199, longest=260)
    reference = _generate(policy, prompts, 3, _sampling(20))
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 190)
    monkeypatch.setattr(generation, "CHUNK_TOKENS", chunk)
    for one, other in zip(_generate(policy, prompts, 3, _sampling(20)), reference, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        torch.testing.assert_close(one.logp, other.logp, atol=1e-5, rtol=0)


def test_ends(policy: Policy) -> None:
    rollouts = _generate(policy, _prompts(8), 8, _sampling(40))
    for rollout in rollouts:
        token_ids = rollout.token_ids.tolist()
        assert EOS not in token_ids[:-1] and 1 <= len(token_ids) <= 40
        assert (rollout.finish_reason == "stop") == (token_ids[-1] == EOS)
        assert rollout.finish_reason == "stop" or len(token_ids) == 40
        assert "<eos>" not in rollout.text and "<pad>" not in rollout.text
        words = [f"w{t - 3}" if t > 2 else "<unk>" for t in token_ids if t not in (0, EOS)]
        assert rollout.text.split() == words  # special tokens that are not ends stay
        assert len(rollout.logp) == len(rollout.log_kept_mass) == len(token_ids)
    assert {len(r.token_ids) for r in _generate(policy, _prompts(3), 2, _sampling(1))} == {1}


def test_a_revisit_draws_anew_and_a_repeat_does_not(policy: Policy) -> None:
    prompts = _prompts(4)
    first, again = (_generate(policy, prompts, 2, _sampling()) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.token_ids, other.token_ids) and torch.equal(one.logp, other.logp)
    revisit = _generate(policy, prompts, 2, _sampling(visit=1))
    other_stage = _generate(policy, prompts, 2, replace(_sampling(), stage="rl_2"))
    for others in (revisit, other_stage):
        assert all(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(first, others, strict=True))


def test_first_tokens_follow_the_distribution(policy: Policy) -> None:
    prompt = _prompts(1, shortest=5)[0]
    num = 4000
    rollouts = _generate(policy, [prompt], num, _sampling(1), rows=num)
    p = _full_logits(policy, list(prompt.token_ids))[-1].double().softmax(-1)
    seen = torch.bincount(torch.cat([r.token_ids for r in rollouts]), minlength=NUM_VOCAB).double()
    often = p * num >= 5
    chi = ((seen - num * p)[often] ** 2 / (num * p[often])).sum()
    freedom = int(often.sum()) - 1
    assert abs(chi - freedom) < 5 * (2 * freedom) ** 0.5


def test_the_weights_are_the_trainers_own(policy: Policy) -> None:
    policy = tiny_policy()
    prompts = _prompts(2)
    before = _generate(policy, prompts, 2, _sampling())
    hidden = policy.module.base_model(
        input_ids=torch.tensor([prompts[0].token_ids]),
        use_cache=False,
        attention_context=PackedContext(torch.tensor([0, len(prompts[0].token_ids)])),
    ).last_hidden_state
    hidden.sum().backward()
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    policy.version += 1
    after = _generate(policy, prompts, 2, _sampling())
    assert {r.policy_version for r in before} == {0} and {r.policy_version for r in after} == {1}
    assert any(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(before, after, strict=True))
    assert not any(r.logp.is_inference() or r.logp.requires_grad for r in after)


def test_refusals(policy: Policy) -> None:
    prompt = _prompts(1)[0]
    with pytest.raises(ValueError, match=r"prompt 'p0' has \d+ tokens; with max_tokens = 512 .* 512 positions"):
        _generate(policy, [prompt], 1, _sampling(512))
    with pytest.raises(ValueError, match="has no tokens"):
        _generate(policy, [replace(prompt, token_ids=())], 1, _sampling())
    with pytest.raises(ValueError, match="occurs twice"):
        _generate(policy, [prompt, prompt], 1, _sampling())
    with pytest.raises(ValueError, match="token ids from 97"):
        _generate(policy, [replace(prompt, token_ids=(97,))], 1, _sampling())
    with pytest.raises(ValueError, match="rows must be at least 1"):
        RolloutEngine(policy, rows=0, seed=0)
    assert _generate(policy, [], 4, _sampling()) == []


def test_weights_that_diverged_are_named() -> None:
    policy = tiny_policy()
    with torch.no_grad():
        cast(Tensor, policy.module.get_input_embeddings().weight).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="'p0'"):
        _generate(policy, _prompts(2), 2, _sampling())


def test_a_group_that_ends_in_the_steps_in_which_another_row_fails_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is looked at every few steps: by then the first row has failed, and the second has ended after it."""
    policy = replace(tiny_policy(), eos_token_ids=(NUM_VOCAB,))
    prompts, limits = _prompts(2), [40, 12]
    engine = RolloutEngine(policy, rows=16, seed=0)
    reference = engine.generate(prompts, 1, _sampling(40), max_tokens=limits)
    drawn, real = [0], DecodeBatch._logits

    def fail(self: DecodeBatch, hidden_BD: Tensor) -> Tensor:
        drawn[0] += 1
        logits_BV = real(self, hidden_BD)
        return logits_BV.index_fill(0, torch.tensor([0]), float("nan")) if drawn[0] >= 11 else logits_BV

    finished: list[Rollout] = []
    with monkeypatch.context() as patched:
        patched.setattr(DecodeBatch, "_logits", fail)
        patched.setattr(DecodeBatch, "is_to_be_looked_at", lambda self: False)
        with pytest.raises(FloatingPointError, match=r"prompt 'p0', sample 0: the model's logits for its token 11 "):
            for group in engine.groups(prompts, 1, _sampling(40), limits):
                finished += group
    assert drawn == [12]  # the row that had failed waited for a step
    assert [rollout.prompt.id for rollout in finished] == ["p1"]
    _assert_same(finished[0], reference[1])
    assert engine._seats is not None  # kept, since every page has come back
    for one, other in zip(engine.generate(prompts, 1, _sampling(40), max_tokens=limits), reference, strict=True):
        _assert_same(one, other)


@pytest.mark.parametrize("max_tokens", [1, 12, 300])
def test_a_stream_is_the_sample_of_generate(policy: Policy, max_tokens: int) -> None:
    for prompt in _prompts(4):
        (whole,) = _generate(policy, [prompt], 1, _sampling(max_tokens))
        stream = RolloutEngine(policy, rows=16, seed=0).stream(prompt, _sampling(max_tokens))
        assert list(stream) == whole.token_ids.tolist()


def test_a_stream_checks_like_generate(policy: Policy) -> None:
    with pytest.raises(ValueError, match="the model has 512 positions"):
        next(RolloutEngine(policy, rows=16, seed=0).stream(_prompts(1)[0], _sampling(512)))
