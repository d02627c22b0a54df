"""Which completions a run keeps, and what is written of each, per token too."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import math_prompt, scored
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from r1fast.records import ScoredRollout
from r1fast.samples import MAX_TOKENS, pick_groups, sample_row, token_texts
from r1fast.tiny.tokenizer import build_tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: every character beyond ASCII takes several."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES = byte_tokenizer()


def with_tokens(item: ScoredRollout, text: str, logp: list[float]) -> ScoredRollout:
    tokenizer = build_tokenizer()
    ids = torch.tensor([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
    values = torch.tensor(logp)
    rollout = replace(item.rollout, token_ids=ids, logp=values, entropy=-values, sample_index=3, text=text)
    return replace(item, rollout=rollout, advantage=0.25, outcome="ok")


def test_a_row_has_the_tokens_their_log_probs_and_their_entropies() -> None:
    text = "first add 首先"
    item = with_tokens(scored(math_prompt("p"), "<think> first </think>"), text, [-0.5, -0.123456, -math.inf, math.nan])
    row = sample_row(item, build_tokenizer())
    assert "".join(row["tokens"]) == "first add 首先 <eos>"
    assert row["logp"] == [-0.5, -0.1235, None, None]  # strict JSON has no number for these
    assert row["entropy"] == [0.5, 0.1235, None, None]
    assert (row["id"], row["sample_index"], row["length"], row["advantage"]) == ("p", 3, 4, 0.25)
    assert (row["prompt"], row["answer"], row["kind"], row["language"]) == (math_prompt().text, "7", "math", "en")
    assert row["parts"] == dict(item.parts) and row["reward"] == item.reward and row["outcome"] == "ok"
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_a_long_sample_keeps_its_first_tokens_and_says_how_many_there_were() -> None:
    item = scored(math_prompt(), "")
    count = MAX_TOKENS + 5
    rollout = replace(
        item.rollout, token_ids=torch.full((count,), 7), logp=torch.zeros(count), entropy=torch.zeros(count)
    )
    row = sample_row(replace(item, rollout=rollout), build_tokenizer())
    assert row["length"] == count
    assert len(row["tokens"]) == len(row["logp"]) == len(row["entropy"]) == MAX_TOKENS


@given(st.text(max_size=30))
def test_the_texts_of_the_tokens_are_the_text(text: str) -> None:
    ids = BYTES(text)["input_ids"]
    texts = token_texts(ids, BYTES)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_a_character_stands_at_its_last_token() -> None:
    assert token_texts(BYTES("a等b")["input_ids"], BYTES) == ["a", "", "", "等", "b"]
    assert "".join(token_texts(BYTES("等等")["input_ids"][:-1], BYTES)) == "等\ufffd"  # cut within a character


@given(st.lists(st.integers(0, 255), max_size=40))
def test_bytes_that_are_no_text_do_not_swallow_what_follows(ids: list[int]) -> None:
    assert "".join(token_texts(ids, BYTES)) == (BYTES.decode(ids) if ids else "")


def rollout_of(kinds: str) -> list[ScoredRollout]:
    """Groups of two; a letter of `kinds` is a group's kind."""
    return [scored(math_prompt(f"{n}", kind=kind), str(k)) for n, kind in enumerate(kinds) for k in range(2)]


@pytest.mark.parametrize(
    ("kinds", "num_samples", "turn", "expected"),
    [
        ("mmm", 4, 0, "01"),  # two whole groups
        ("mmm", 5, 0, "01"),
        ("mmm", 1, 7, "0"),  # one group at least
        ("mmm", 99, 0, "012"),
        ("mmgh", 2, 0, "0"),  # the kinds take turns
        ("mmgh", 2, 1, "2"),
        ("mmgh", 2, 2, "3"),
        ("mmgh", 2, 3, "0"),
        ("mmgh", 8, 1, "2301"),
        ("", 4, 1, ""),
    ],
)
def test_groups_are_whole_and_kinds_take_turns(kinds: str, num_samples: int, turn: int, expected: str) -> None:
    chosen = pick_groups(rollout_of(kinds), group_size=2, num_samples=num_samples, turn=turn)
    assert [(item.rollout.prompt.id, item.rollout.text) for item in chosen] == [
        (n, str(k)) for n in expected for k in range(2)
    ]
