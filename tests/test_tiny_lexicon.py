"""The lexicon is one to one, and the tokenizer and templates built on it lose nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.rewards.language import language_share
from r1fast.tiny.lexicon import LANGUAGES, PUNCTUATION, TO_ENGLISH, WORDS, Language, rewrite, say, vocabulary
from r1fast.tiny.templates import CHAT, R1_ZERO, render
from r1fast.tiny.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
words = st.lists(st.sampled_from([word for word in vocabulary() if not word.startswith("<")]), max_size=20)


def test_the_lexicon_is_one_to_one() -> None:
    assert len(set(WORDS.values())) == len(WORDS) == len(TO_ENGLISH)
    assert not set(WORDS) & set(WORDS.values())
    assert all(re.fullmatch(r"[a-z0-9]+|[.?]", word) for word in WORDS)
    assert all(re.fullmatch(r"[\u4e00-\u9fff]+|[。？]", word) for word in WORDS.values())


def test_the_vocabulary_is_distinct_and_lower_case() -> None:
    tokens = vocabulary()
    assert len(set(tokens)) == len(tokens)
    assert all(token == token.lower() and not any(c.isspace() for c in token) and token for token in tokens)
    assert tokens[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]


def test_each_word_counts_in_its_own_language() -> None:
    for english, chinese in WORDS.items():
        if english in PUNCTUATION or len(english) == 1:  # single letters count as variables
            continue
        assert language_share(english, "en")[0] == language_share(english, "en")[1] > 0, english
        assert language_share(chinese, "zh")[0] == language_share(chinese, "zh")[1] > 0, chinese


@given(words, st.sampled_from(LANGUAGES))
def test_rewriting_is_into_one_language_and_idempotent(text: list[str], language: Language) -> None:
    once = rewrite(" ".join(text), language)
    assert rewrite(once, language) == once
    other: Language = "zh" if language == "en" else "en"
    assert rewrite(rewrite(once, other), language) == once
    foreign = TO_ENGLISH if language == "en" else WORDS
    assert not any(word in foreign for word in once.split())


def test_say() -> None:
    assert say("first add 3 + 4 = 7 .", "zh") == "首先 加上 3 + 4 = 7 。"
    assert say("first add 3 .", "en") == "first add 3 ."


@given(words)
def test_tokens_round_trip(text: list[str]) -> None:
    joined = " ".join(text)
    ids = TOKENIZER(joined, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == joined


def test_case_and_unknown_words() -> None:
    assert TOKENIZER("First ADD", add_special_tokens=False)["input_ids"] == TOKENIZER.encode("first add")
    assert TOKENIZER.encode("xyzzy") == [TOKENIZER.unk_token_id]
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("template", [R1_ZERO, CHAT])
def test_the_corpus_shows_what_the_template_writes(template: str) -> None:
    tokenizer = build_tokenizer(template)
    question = "tom has 3 apples ."
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == f"<bos> {render(template, question)}"
    assert tokenizer.unk_token_id not in tokenizer.encode(text)
    answered = [*messages, {"role": "assistant", "content": "7"}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    assert whole == f"<bos> {render(template, question)} 7"
