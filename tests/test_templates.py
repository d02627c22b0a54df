"""Prompt templates: what a model reads, token by token, and what travels with the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from r1fast.records import Prompt
from r1fast.templates import (
    INSTRUCTION,
    RESPONSE_PREFIX,
    continuation,
    end_of_turn,
    render,
    render_messages,
    response_prefix,
    set_template,
    write_answered,
    write_prompts,
)
from r1fast.tiny.tokenizer import build_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    """Characters as tokens, with a conversation template of its own."""
    alphabet = {chr(code): code for code in range(128)}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="\x00", bos_token="\x01")
    fast.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    return fast


def test_the_paper_template(tokenizer: Any, tmp_path: Path) -> None:
    set_template(tokenizer, "r1_zero")
    assert render("2 + 3 ?", tokenizer) == INSTRUCTION + " User: 2 + 3 ? Assistant:"
    tokenizer.save_pretrained(tmp_path)
    saved: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert render("2 + 3 ?", saved) == INSTRUCTION + " User: 2 + 3 ? Assistant:"


def test_templates_of_the_tokenizer(tokenizer: Any) -> None:
    set_template(tokenizer, "chat")
    assert render("hi", tokenizer) == "[user]hi[assistant]"
    set_template(tokenizer, "r1_zero_chat")
    assert render("hi", tokenizer) == f"[system]{INSTRUCTION}[user]hi[assistant]"
    set_template(tokenizer, "r1_zero_chat")  # a checkpoint that has it already
    assert render("hi", tokenizer) == f"[system]{INSTRUCTION}[user]hi[assistant]"
    set_template(tokenizer, "none")
    assert render("hi", tokenizer) == "hi"


def test_an_end_of_turn_that_the_tokenizer_gives_no_role(tokenizer: Any, tmp_path: Path) -> None:
    """As Llama 3's <|eot_id|>: a special token, and not among the tokenizer's `all_special_ids`."""
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("<word>", special=False)])
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for end, expected in (("<turn>", again.convert_tokens_to_ids("<turn>")), ("<word>", None)):
        again.chat_template = "{% for m in messages %}{{ m['content'] }}" + end + "{% endfor %}"
        assert end_of_turn(again) == expected


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (
            "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\x02\n{% endfor %}",
            2,
        ),  # not its end token
        ("{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}", 0),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", None),
        ("{{ messages[0]['content'] }}", None),
        ("{% if messages|length > 1 %}{{ raise_exception('questions alone') }}{% endif %}", None),
    ],
)
def test_the_token_behind_an_answer(tokenizer: Any, template: str, end: int | None) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["\x02"]})
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) == end


def test_the_embedded_templates() -> None:
    tokenizer: Any = build_tokenizer()
    set_template(tokenizer, "r1_zero", embedded=True)
    question = "tom has 3 apples ."
    assert (
        render(question, tokenizer)
        == f"<bos> <instruction> <think> </think> <answer> </answer> <user> {question} <assistant>"
    )
    set_template(tokenizer, "chat", embedded=True)
    assert render(question, tokenizer) == f"<bos> <user> {question} <assistant>"


def test_a_bos_is_written_where_the_tokenizer_writes_one() -> None:
    tokenizer: Any = build_tokenizer()
    set_template(tokenizer, "none")
    assert render("tom", tokenizer) == "tom"
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<bos> $A", special_tokens=[("<bos>", bos)])
    set_template(tokenizer, "none")
    (prompt,) = write_prompts([Prompt(id="a", text=" tom", token_ids=())], tokenizer)
    assert prompt.token_ids == (bos, tokenizer.convert_tokens_to_ids("tom"))


def test_write_prompts_notes_an_opened_chain(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("Q: {{ messages[0]['content'] }} A: <think>\n")
    set_template(tokenizer, str(file))
    (prompt,) = write_prompts([Prompt(id="a", text="1+1", token_ids=(), metadata={"x": "y"})], tokenizer)
    assert "".join(map(chr, prompt.token_ids)).rstrip() == "Q: 1+1 A: <think>"
    assert prompt.text == "1+1"
    assert prompt.metadata == {"x": "y", RESPONSE_PREFIX: "<think>"}
    set_template(tokenizer, "none")
    with pytest.raises(ValueError, match="no tokens"):
        write_prompts([Prompt(id="a", text="", token_ids=())], tokenizer)


@pytest.mark.parametrize(
    ("text", "response", "added"),
    [
        ("A:", "<think>\na\n</think>\nb", "<think>\na\n</think>\nb"),
        ("A:", "b", "b"),
        ("A: <think>\n", "<think>\na\n</think>\nb", "a\n</think>\nb"),
        ("A: <think>\n", "\n<think> a </think> b", "a </think> b"),
        ("A: <think>", "<think> a </think> b", " a </think> b"),  # white space that the template did not write
        ("A: <think>\n", "a\n</think>\nb", "a\n</think>\nb"),  # begins inside the chain
        ("A: <think>\n", "<think> a", "a"),  # never left it
        ("A: <think>\n", "b", "\n</think>\n\nb"),  # has none
        ("A: <think>", "b", "\n\n</think>\n\nb"),
        ("A: <think>\n", "it thinks in <think> a </think>", "\n</think>\n\nit thinks in <think> a </think>"),
        ("A: <think>\n", "", "\n</think>\n\n"),
    ],
)
def test_a_response_goes_on_where_the_template_ends(text: str, response: str, added: str) -> None:
    assert continuation(text, response) == added


def test_answered_prompts_are_the_written_ones_and_what_follows(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("Q: {{ messages[0]['content'] }} A: <think>")
    set_template(tokenizer, str(file))
    prompts = [Prompt(id="a", text="1+1", token_ids=()), Prompt(id="b", text="hi", token_ids=())]
    answered = write_answered(prompts, ["<think> a </think> 2", "hello"], tokenizer)
    assert [ids for ids, _ in answered] == [prompt.token_ids for prompt in write_prompts(prompts, tokenizer)]
    assert ["".join(map(chr, ids)) for _, ids in answered] == [" a </think> 2", "\n\n</think>\n\nhello"]


def test_a_conversation_in_a_template(tokenizer: Any) -> None:
    set_template(tokenizer, "chat")
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert render_messages(messages, tokenizer) == "[user]one[assistant]two[user]three[assistant]"
    assert render_messages(messages[:1], tokenizer) == render("one", tokenizer)


@pytest.mark.parametrize(("text", "prefix"), [("a <think>\n", "<think>"), ("a <think> b", ""), ("a", "")])
def test_what_a_template_begins_the_answer_with(text: str, prefix: str) -> None:
    assert response_prefix(text) == prefix


def test_the_smollm2_template_shows_three_examples(tokenizer: Any) -> None:
    set_template(tokenizer, "smollm2-zero.jinja")
    text = render("5 - 1 =", tokenizer)
    assert text.count("<|im_start|>user\n") == 4 and text.count("</answer><|im_end|>\n") == 3
    assert text.startswith("<|im_start|>user\nState the final answer")
    assert text.endswith("<|im_start|>user\n5 - 1 =<|im_end|>\n<|im_start|>assistant\n<think>")


def test_what_cannot_be_honoured_raises(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        set_template(tokenizer, "r1-zero")
    with pytest.raises(ValueError, match=r"no such file.*smollm2-zero\.jinja"):
        set_template(tokenizer, "missing.jinja")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has none"):
        set_template(tokenizer, "chat")
