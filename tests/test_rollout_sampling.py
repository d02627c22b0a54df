"""What may be drawn, and what ends a completion: the engine with every setting of Sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from r1fast.policy import Policy
from r1fast.records import Prompt, Rollout
from r1fast.rollout import engine_calls
from r1fast.rollout.engine import RolloutEngine
from r1fast.sampling import Sampling
from tests.tiny_model import EOS, NUM_VOCAB, tiny_policy

PROMPTS = [Prompt(id=f"p{n}", text="", token_ids=tuple(range(5 + n, 12 + 2 * n))) for n in range(6)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def _generate(policy: Policy, max_tokens: int = 40, **options: Any) -> list[Rollout]:
    sampling = Sampling(**({"temperature": 1.0, "max_tokens": max_tokens, "stage": "rl_1", "visit": 0} | options))
    return RolloutEngine(policy, rows=16, seed=0).generate(PROMPTS, 4, sampling)


def _tokens(rollouts: list[Rollout]) -> list[list[int]]:
    return [r.token_ids.tolist() for r in rollouts]


def test_the_largest_alone_is_greedy(policy: Policy) -> None:
    greedy = _tokens(_generate(policy, temperature=0.0))
    assert _tokens(_generate(policy, top_k=1)) == _tokens(_generate(policy, min_p=0.999)) == greedy
    for rollout in _generate(policy, top_k=1):
        torch.testing.assert_close(rollout.log_kept_mass, rollout.logp)  # what was kept is the token itself


def test_cuts_change_what_is_drawn_and_not_what_it_is_worth(policy: Policy) -> None:
    free = _generate(policy)
    for options in ({"top_k": 5}, {"min_p": 0.3}, {"top_p": 0.5}):
        cut = _generate(policy, **options)
        assert _tokens(cut) != _tokens(free) and all((r.log_kept_mass < 0).all() for r in cut)
        assert all(torch.equal(r.log_kept_mass, torch.zeros_like(r.logp)) for r in free)
        assert all((r.logp <= r.log_kept_mass + 1e-6).all() for r in cut)


def test_bad_tokens_are_never_drawn(policy: Policy) -> None:
    bad = tuple(range(10, NUM_VOCAB, 2))
    drawn = {token for tokens in _tokens(_generate(policy, bad_token_ids=bad)) for token in tokens}
    assert len(drawn) > 20 and drawn.isdisjoint(bad)
    assert not {token for tokens in _tokens(_generate(policy)) for token in tokens}.isdisjoint(bad)


@pytest.mark.parametrize("min_tokens", [1, 2, 25, 40])
def test_nothing_ends_before_min_tokens(policy: Policy, min_tokens: int) -> None:
    assert min(map(len, _tokens(_generate(policy)))) < 25
    for rollout in _generate(policy, min_tokens=min_tokens):
        token_ids = rollout.token_ids.tolist()
        assert len(token_ids) >= min_tokens and EOS not in token_ids[:min_tokens]
        assert (rollout.finish_reason == "stop") == (token_ids[-1] == EOS)


@pytest.mark.parametrize("look_every", [1, 3, 8, 50])
def test_a_stop_string_cuts_exactly(policy: Policy, monkeypatch: pytest.MonkeyPatch, look_every: int) -> None:
    monkeypatch.setattr(engine_calls, "LOOK_EVERY", look_every)
    stop = ("w71", "w33 w", " w12 w")
    stopped = 0
    for rollout, whole in zip(_generate(policy, stop=stop), _generate(policy), strict=True):
        text, count = whole.text, len(rollout.token_ids)
        assert whole.token_ids[:count].tolist() == rollout.token_ids.tolist()
        assert torch.equal(whole.logp[:count], rollout.logp)
        places = [place for string in stop if (place := text.find(string)) >= 0]
        if not places:
            assert (rollout.text, rollout.finish_reason) == (text, whole.finish_reason)
            continue
        stopped += 1
        assert rollout.finish_reason == "stop" and rollout.text == text[: min(places)]
        decoded = [policy.tokenizer.decode(whole.token_ids[:n].tolist()) for n in (count - 1, count)]
        assert [any(string in part for string in stop) for part in decoded] == [False, True]
    assert 4 <= stopped < 24


def test_nothing_left_to_draw_is_an_error(policy: Policy) -> None:
    with pytest.raises(ValueError, match="no token may be drawn"):
        _generate(policy, bad_token_ids=tuple(range(NUM_VOCAB)))


def test_samples_are_shown_before_their_groups_have_ended(policy: Policy) -> None:
    engine = RolloutEngine(policy, rows=32, seed=0)
    shown: dict[tuple[str, int], Rollout] = {}
    engine.on_sample = lambda rollout: shown.update({(rollout.prompt.id, rollout.sample_index): rollout})
    limits = [3, 20, 50, 80] * len(PROMPTS)
    sampling = Sampling(temperature=1.0, max_tokens=80, min_tokens=80, stage="rl_1", visit=0, bad_token_ids=(EOS,))
    early = 0
    for group in engine.groups(PROMPTS, 4, sampling, limits):
        for rollout in group:
            if seen := shown.pop((rollout.prompt.id, rollout.sample_index), None):
                early += 1
                assert seen is rollout
    assert early == 3 * len(PROMPTS)  # all but the last of every group
    assert not shown
