"""Turns, windows and templates of a conversation; tags and half characters in a stream."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_policy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from r1fast.conversation import Conversation, Detokenizer, Options, Splitter, carries_turns
from r1fast.models import model_path
from r1fast.policy import Policy
from r1fast.rewards.response import TAGS, parse_response
from r1fast.templates import set_template

OPTIONS = Options(temperature=0.6, top_p=0.95, max_tokens=64)
QUESTION = "tom has 3 apples . gains 4 . how many apples ?"


@pytest.fixture(scope="module")
def teacher() -> Policy:
    policy = Policy.load(model_path("tiny-teacher"), device="cpu", dtype=torch.float32)
    set_template(policy.tokenizer, "chat", embedded=True)
    return policy


def said(conversation: Conversation, question: str) -> str:
    return " | ".join(f"{part}: {text}" for part, text in conversation.ask(question))


def test_the_same_seed_gives_the_same_conversation(teacher: Policy) -> None:
    first, second = (Conversation(policy=teacher, options=OPTIONS) for _ in range(2))
    assert [said(first, QUESTION) for _ in range(3)] == [said(second, QUESTION) for _ in range(3)]
    other = Conversation(policy=teacher, options=Options(temperature=2.0, top_p=1.0, max_tokens=64, seed=1))
    assert said(other, QUESTION) != said(Conversation(policy=teacher, options=OPTIONS), QUESTION)


def test_earlier_turns_are_shown_or_not(teacher: Policy) -> None:
    remembering = Conversation(policy=teacher, options=OPTIONS)
    list(remembering.ask(QUESTION))
    list(remembering.ask("hello"))
    assert [message["role"] for message in remembering.messages] == ["user", "assistant"] * 2
    token_ids, _, room = remembering._written([*remembering.messages, {"role": "user", "content": "hello"}])
    assert teacher.tokenizer.decode(token_ids).count("<user>") == 3 and room == 256 - len(token_ids)
    remembering.forget()
    assert remembering.messages == []
    single = Conversation(policy=teacher, options=Options(temperature=0.6, top_p=1.0, max_tokens=8, remember=False))
    list(single.ask(QUESTION))
    list(single.ask("hello"))
    assert [message["content"] for message in single.messages][:1] == ["hello"]


def test_past_chains_are_kept_for_r1_zero_and_dropped_for_r1(teacher: Policy) -> None:
    for keeps_chains in (True, False):
        conversation = Conversation(policy=teacher, options=OPTIONS, keeps_chains=keeps_chains)
        conversation.engine = Scripted(teacher, "<think> 3 + 4 = 7 </think> <answer> 7 </answer>")  # type: ignore[assignment]
        assert list(conversation.ask(QUESTION))[-1] == ("answer", "7")
        kept = conversation.messages[-1]["content"]
        assert kept == ("<think> 3 + 4 = 7 </think> " if keeps_chains else "") + "<answer> 7 </answer>"


def test_the_oldest_turns_go_when_the_window_is_full(teacher: Policy) -> None:
    conversation = Conversation(policy=teacher, options=OPTIONS)
    for number in range(12):
        list(conversation.ask(f"tom has {number} apples . gains 4 . how many apples ?"))
        assert conversation.messages[-2]["content"].startswith(f"tom has {number} ")
    assert 2 < len(conversation.messages) < 24
    assert not conversation.messages[0]["content"].startswith("tom has 0 ")


def test_a_question_longer_than_the_window_is_refused_and_changes_nothing(teacher: Policy) -> None:
    conversation = Conversation(policy=teacher, options=OPTIONS)
    list(conversation.ask(QUESTION))
    before = list(conversation.messages)
    with pytest.raises(ValueError, match=r"the question has 30\d tokens, the model's window is 256: ask a shorter one"):
        list(conversation.ask("tom " * 300))
    assert conversation.messages == before


def test_an_answer_that_is_cut_off_says_so(teacher: Policy) -> None:
    conversation = Conversation(policy=teacher, options=Options(temperature=0.6, top_p=0.95, max_tokens=2))
    list(conversation.ask(QUESTION))
    assert conversation.cut_off
    whole = Conversation(policy=teacher, options=OPTIONS)
    list(whole.ask(QUESTION))
    assert not whole.cut_off


def test_unknown_words_are_named(teacher: Policy) -> None:
    conversation = Conversation(policy=teacher, options=OPTIONS)
    assert conversation.unknown_words("tom has 3 aubergines . how many aubergines ?") == ["aubergines"]
    assert conversation.unknown_words(QUESTION) == []


def test_whether_a_template_carries_turns(tmp_path: Path, teacher: Policy) -> None:
    assert carries_turns(teacher.tokenizer)
    tokenizer: Any = tiny_policy().tokenizer
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    assert not carries_turns(tokenizer)
    tokenizer.chat_template = "{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}"
    assert not carries_turns(tokenizer)


class Scripted:
    """In place of the engine: a fixed answer, token by token."""

    def __init__(self, policy: Policy, text: str) -> None:
        self.token_ids = [*policy.tokenizer.encode(text, add_special_tokens=False), policy.eos_token_ids[0]]

    def stream(self, *_: object) -> list[int]:
        return self.token_ids


def test_an_opened_chain_is_thinking_from_the_start(teacher: Policy, tmp_path: Path) -> None:
    tokenizer: Any = teacher.tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = "{{ messages[-1]['content'] }} <think>"
    conversation = Conversation(policy=teacher, options=OPTIONS)
    conversation.engine = Scripted(teacher, "3 + 4 = 7 </think> <answer> 7 </answer>")  # type: ignore[assignment]
    pieces = list(conversation.ask(QUESTION))
    tokenizer.chat_template = before
    assert "".join(text for part, text in pieces if part == "thinking") == "3 + 4 = 7"
    assert "".join(text for part, text in pieces if part == "answer") == "7"
    assert not conversation.remembers


def parts(text: str, cuts: list[int]) -> dict[str, str]:
    splitter, shown = Splitter(), {"thinking": "", "answer": ""}
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for low, high in pairwise(bounds):
        for part, piece in splitter.feed(text[low:high]):
            shown[part] += piece
    for part, piece in splitter.rest():
        shown[part] += piece
    return shown


@given(st.text(alphabet="ab <\n", max_size=30), st.text(alphabet="ab <\n", max_size=30), st.lists(st.integers(0, 90)))
def test_where_a_stream_is_cut_does_not_matter(chain: str, answer: str, cuts: list[int]) -> None:
    text = f"<think> {chain} </think> <answer> {answer} </answer>"
    assert parts(text, cuts) == {"thinking": chain.strip(), "answer": answer.strip()}
    response = parse_response(text)
    assert response.chain is not None and response.chain.strip() == chain.strip()


@given(st.lists(st.sampled_from([*TAGS, "a", " ", "<", "</", "b\n"]), max_size=20), st.lists(st.integers(0, 90)))
def test_no_text_is_lost_and_no_tag_is_shown(pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    shown = parts(text, cuts)
    assert shown == parts(text, [])
    bare = text
    for tag in TAGS:
        bare = bare.replace(tag, " ")
    for whole, some in ((sorted("".join(bare.split())), sorted("".join("".join(shown.values()).split()))),):
        assert whole == some


def byte_policy() -> Policy:
    """A policy whose tokenizer writes single bytes: a Chinese character is three tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate([*alphabet, "<eos>"])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    policy = tiny_policy()
    policy.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    policy.eos_token_ids = (policy.tokenizer.eos_token_id,)
    return policy


BYTES = byte_policy()


@given(st.text(max_size=30))
def test_pieces_add_up_and_never_hold_half_a_character(text: str) -> None:
    decoder = Detokenizer(BYTES)
    token_ids = BYTES.tokenizer.encode(text, add_special_tokens=False)
    pieces = [decoder.feed(token) for token in [*token_ids, *BYTES.eos_token_ids]]
    assert "".join(pieces) + decoder.rest() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_stream_that_ends_within_a_character_shows_that_it_does() -> None:
    decoder = Detokenizer(BYTES)
    first, second, _ = BYTES.tokenizer.encode("学", add_special_tokens=False)
    assert decoder.feed(first) == decoder.feed(second) == ""
    assert decoder.rest() == "\ufffd"
