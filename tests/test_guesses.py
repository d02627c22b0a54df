"""Guesses speed a sample up and never change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1fast.policy import Policy
from r1fast.records import Prompt, Rollout
from r1fast.rollout.batch import DecodeBatch
from r1fast.rollout.call import Call
from r1fast.rollout.engine import RolloutEngine
from r1fast.rollout.guesses import Guesses, Tally
from r1fast.sampling import Sampling
from tests.test_rollout_models import FAMILIES, _policy
from tests.tiny_model import NUM_VOCAB, tiny_policy


def _sampling(max_tokens: int = 60, **options: Any) -> Sampling:
    return Sampling(**({"temperature": 0.3, "max_tokens": max_tokens, "stage": "x", "visit": 0} | options))


def _prompts(lengths: Sequence[int]) -> list[Prompt]:
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randint(3, NUM_VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return [Prompt(id=f"p{n}", text="", token_ids=tuple(token_ids)) for n, token_ids in enumerate(drawn)]


def _numbers(rollouts: list[Rollout]) -> list[tuple[Any, ...]]:
    columns = ("token_ids", "logp", "log_kept_mass", "entropy")
    return [(r.prompt.id, r.text, r.finish_reason, *(getattr(r, c).tolist() for c in columns)) for r in rollouts]


@pytest.fixture(scope="module", params=[*FAMILIES, "bf16"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return tiny_policy(dtype=torch.bfloat16) if request.param == "bf16" else _policy(FAMILIES[request.param])


def test_samples_are_the_same_in_fewer_steps(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, sampling, steps = _prompts([3, 20, 64]), _sampling(100, temperature=0.0), [0]
    backbone = DecodeBatch.backbone

    def count(self: DecodeBatch, *arguments: Any) -> Any:
        steps[-1] += 1
        return backbone(self, *arguments)

    monkeypatch.setattr(DecodeBatch, "backbone", count)
    expected = _numbers(RolloutEngine(policy, rows=32, seed=0).generate(prompts, 2, sampling))
    steps.append(0)
    engine = RolloutEngine(policy, rows=32, seed=0, draft_tokens=5, draft_rows=48)
    assert _numbers(engine.generate(prompts, 2, sampling)) == expected
    assert engine.tally.num_guessed >= engine.tally.num_drawn > 20 and steps[1] <= steps[0]


@settings(max_examples=25)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 4, 63, 64, 65]), min_size=1, max_size=4),
    group_size=st.integers(1, 3),
    max_tokens=st.sampled_from([1, 2, 3, 4, 63, 64, 66, 90]),
    rows=st.integers(1, 20),
    draft=st.tuples(st.integers(1, 9), st.sampled_from([16, 32])),
    pages=st.sampled_from([5, 6, 8, 40]),
    options=st.sampled_from(
        [
            {},
            {"temperature": 0.0},
            {"min_tokens": 30, "bad_token_ids": (5, 6, 7)},
            {"stop": ("w71", "w33 w", " w12 w")},
            {"top_k": 5, "top_p": 0.9, "min_p": 0.01, "temperature": 0.7},
        ]
    ),
)
def test_samples_are_the_same_whatever_the_call(
    lengths: list[int],
    group_size: int,
    max_tokens: int,
    rows: int,
    draft: tuple[int, int],
    pages: int,
    options: dict[str, Any],
) -> None:
    least = min(max_tokens, options.get("min_tokens", 0))
    policy, prompts = tiny_policy(), _prompts(lengths)
    sampling = _sampling(max_tokens, **options | {"min_tokens": least})
    engine = RolloutEngine(policy, rows=64, seed=0)
    expected = _numbers(engine.generate(prompts, group_size, sampling))
    bytes_of = pages * engine.shape.page_bytes
    engine = RolloutEngine(policy, rows=rows, seed=0, cache_bytes=bytes_of, draft_tokens=draft[0], draft_rows=draft[1])
    assert _numbers(engine.generate(prompts, group_size, sampling)) == expected
    seats = engine._seats
    assert seats is not None and seats.are_empty


def test_a_stream_gives_the_same_tokens() -> None:
    policy, sampling = tiny_policy(), _sampling(200, temperature=0.0)
    (prompt,) = _prompts([9])
    plain = RolloutEngine(policy, rows=16, seed=0).generate([prompt], 1, sampling)[0]
    engine = RolloutEngine(policy, rows=16, seed=0, draft_tokens=6)
    assert list(engine.stream(prompt, sampling)) == plain.token_ids.tolist()
    assert engine.tally.num_drawn > 0.5 * len(plain.token_ids)  # a greedy text goes round in circles


def test_a_poisoned_row_is_named_whoever_guessed() -> None:
    policy, (prompt,) = tiny_policy(), _prompts([9])
    engine = RolloutEngine(policy, rows=16, seed=0, draft_tokens=6)
    real, calls = DecodeBatch._logits, []

    def poisoned(self: DecodeBatch, hidden_RD: torch.Tensor) -> torch.Tensor:
        calls.append(len(hidden_RD))
        logits = real(self, hidden_RD)
        return logits if len(calls) < 20 else torch.full_like(logits, torch.nan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeBatch, "_logits", poisoned)
        with pytest.raises(
            FloatingPointError, match=r"prompt 'p0', sample 0: the model's logits for its token \d+ are"
        ):
            engine.generate([prompt], 1, _sampling(200, temperature=0.0))
    assert engine.tally.num_drawn > 0 and engine._seats is not None and engine._seats.are_empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_tokens": -1}, "draft_tokens = -1 must be at least 0"),
        ({"draft_tokens": 2, "draft_rows": 24}, "draft_rows = 24 must be a multiple of 16"),
        ({"draft_tokens": 2, "draft_rows": 0}, "draft_rows = 0 must be a multiple of 16"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutEngine(tiny_policy(), rows=16, seed=0, **options)  # type: ignore[arg-type]


# --- what is guessed ---


def _guesses(prompt: Sequence[int], group_size: int = 2, most: int = 4, rows: int = 16) -> Guesses:
    call = Call.of([Prompt(id="p", text="", token_ids=tuple(prompt))], group_size, _sampling(), 0, None)
    return Guesses(call, most=most, rows=rows, tally=Tally())


def test_what_followed_before_is_guessed() -> None:
    guesses = _guesses([9, 4, 5, 6, 7, 8])
    guesses.see(0, [1, 4, 5, 6])
    assert guesses.after(0, 4, 4) == [7, 8, 1, 4]  # the prompt's end, and what followed it
    guesses.see(1, [2, 2, 1, 4, 5])
    assert guesses.after(1, 5, 2) == [6, *guesses.after(0, 4, 1)]  # a sibling's
    guesses.see(0, [3])
    assert guesses.after(1, 5, 3) == [6, 3]  # the last time counts, and nothing is known after it


def test_a_text_may_repeat_itself() -> None:
    guesses = _guesses([9], group_size=1)
    guesses.see(0, [1, 2, 3, 1, 2, 3])
    assert guesses.after(0, 6, 7) == [1, 2, 3, 1, 2, 3, 1]


def test_tokens_are_known_once() -> None:
    guesses = _guesses([7, 8])
    assert guesses.num_seen(0) == 0
    guesses.see(0, [1])
    guesses.see(0, [2, 3])
    assert guesses.num_seen(0) == 3
    guesses.end(0)
    assert guesses.num_seen(0) == 3  # its sibling may repeat it
    guesses.see(1, [5])
    guesses.end(1)
    assert guesses.num_seen(0) == guesses.num_seen(1) == 0


def test_first_guesses_of_all_come_before_second_ones() -> None:
    guesses = _guesses([1, 2, 3, 4, 5, 6], group_size=3, most=4)
    for sample in range(3):
        guesses.see(sample, [1, 2, 3])
    rows = {5: (0, 3, 9), 6: (1, 3, 1), 7: (2, 3, 9)}
    assert guesses.of_rows(rows, 0) == {}
    assert guesses.of_rows(rows, 2) == {5: [4], 6: [4]}
    assert guesses.of_rows(rows, 4) == {5: [4, 5], 6: [4], 7: [4]}
    assert guesses.of_rows(rows, 99) == {5: [4, 5, 6, 1], 6: [4], 7: [4, 5, 6, 1]}
    assert guesses.of_rows({5: (0, 3, 0)}, 99) == {}
    assert (guesses.room(10), guesses.room(16), guesses.room(40)) == (6, 0, 0)


def test_an_end_that_was_guessed_ends_the_sample() -> None:
    policy, sampling, (prompt,) = _policy(FAMILIES["qwen2"]), _sampling(60, temperature=0.0), _prompts([5])
    tokens = RolloutEngine(policy, rows=16, seed=0).generate([prompt], 1, sampling)[0].token_ids.tolist()
    end = next(n for n in range(6, 60) if tokens[n] not in tokens[:n])
    policy = replace(policy, eos_token_ids=(tokens[end],))
    engine = RolloutEngine(policy, rows=1, seed=0, draft_tokens=8)
    found = engine.generate([prompt], 3, sampling)  # one after the other, so that the first one tells the others' ends
    assert [rollout.token_ids.tolist() for rollout in found] == [tokens[: end + 1]] * 3
    assert {rollout.finish_reason for rollout in found} == {"stop"}
    assert engine.tally.num_drawn >= 2 * (end - 3) * 0.8
