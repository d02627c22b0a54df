"""How a question is written for a model: Jinja chat templates that travel with a checkpoint's tokenizer.

`set_template` chooses one for a tokenizer, `write_prompts` fills in token ids. A question's `text` stays as asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from jinja2 import TemplateError

from r1fast.records import Prompt
from r1fast.rewards.response import END_THINK, THINK
from r1fast.tiny.templates import CHAT as TINY_CHAT
from r1fast.tiny.templates import R1_ZERO as TINY_R1_ZERO

# The DeepSeek-R1 paper, table 1.
INSTRUCTION = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think> <answer> answer here </answer>."
)
R1_ZERO = (
    INSTRUCTION + "{% for message in messages %}{{ ' User: ' if message['role'] == 'user' else ' Assistant: ' }}"
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %} Assistant:{% endif %}"
)
# The same instruction as the system message of a model that knows conversations; its own template follows.
R1_ZERO_CHAT = (
    "{% if messages[0]['role'] != 'system' %}"
    "{% set messages = [{'role': 'system', 'content': '" + INSTRUCTION + "'}] + messages %}{% endif %}"
)
NONE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

NAMES = ("r1_zero", "r1_zero_chat", "chat", "none")
RECIPES = Path(__file__).parent / "recipes"
# `metadata` key: text that the template puts at the start of the answer, so that rewards see the answer whole.
RESPONSE_PREFIX = "response_prefix"
_OPEN_CHAIN = re.compile(re.escape(THINK) + r"\s*$")


def set_template(tokenizer: Any, name: str, *, embedded: bool = False) -> None:
    """Make `tokenizer` (of transformers) write conversations in the template `name`, also after it is saved.

    `r1_zero`: the paper's text; `r1_zero_chat`: the same as the system message of the tokenizer's own template;
    `chat`: the tokenizer's own; `none`: the question as it is. `embedded`: the tiny world's versions of the first and
    the third. A name ending in `.jinja` is a file: a path, or one that lies with the recipes. Raises ValueError for an
    unknown name, a missing file, or a tokenizer without the template it needs.
    """
    if name.endswith(".jinja"):
        tokenizer.chat_template = _read(name)
        return
    if name not in NAMES:
        raise ValueError(f"model.template = {name!r} must be one of {', '.join(NAMES)}, or a file ending in .jinja")
    if name in ("chat", "r1_zero_chat") and not embedded and not tokenizer.chat_template:
        raise ValueError(
            f"model.template = {name!r} needs a tokenizer with a chat template, this one has none; use r1_zero or none"
        )
    if embedded:
        tokenizer.chat_template = {"r1_zero": TINY_R1_ZERO, "chat": TINY_CHAT}.get(name, NONE)
    elif name == "r1_zero":
        tokenizer.chat_template = _bos(tokenizer) + R1_ZERO
    elif name == "none":
        tokenizer.chat_template = _bos(tokenizer) + NONE
    elif name == "r1_zero_chat" and not tokenizer.chat_template.startswith(R1_ZERO_CHAT):
        tokenizer.chat_template = R1_ZERO_CHAT + tokenizer.chat_template


def write_prompts(prompts: Sequence[Prompt], tokenizer: Any) -> list[Prompt]:
    """The prompts with the token ids of their templated text, in order.

    A template that opens the answer with `<think>` is noted in `metadata`, so that rewards add it back. Raises
    ValueError for a prompt of no tokens.
    """
    return [_written(prompt, render(prompt.text, tokenizer), tokenizer) for prompt in prompts]


def write_answered(
    prompts: Sequence[Prompt], responses: Sequence[str], tokenizer: Any
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Token ids of each prompt, as `write_prompts` has them, and of what its whole response adds (`continuation`)."""
    written, added = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        text = render(prompt.text, tokenizer)
        written.append(_written(prompt, text, tokenizer).token_ids)
        added.append(continuation(text, response))
    return list(zip(written, tokenizer(added, add_special_tokens=False)["input_ids"], strict=True))


def continuation(text: str, response: str) -> str:
    """What a whole response adds to the templated text before it.

    Unless the text has opened the chain, as the templates of R1's distilled models do, that is the response. Else a
    `<think>` that the response begins with is not repeated, nor white space behind it that the template wrote; a
    response that begins inside the chain goes on there; and one without a chain closes the one that was opened, for
    it speaks to the reader: left inside, it would teach never to leave the chain.
    """
    opened = _OPEN_CHAIN.search(text)
    if opened is None:
        return response
    rest = response.lstrip()
    if rest.startswith(THINK):
        rest = rest.removeprefix(THINK)
    elif END_THINK not in rest.partition(THINK)[0]:
        rest = f"\n\n{END_THINK}\n\n{rest}"
    space = opened.group().removeprefix(THINK)
    return rest.removeprefix(space) if rest.startswith(space) else rest.lstrip()


class WrittenPrompts(Sequence[Prompt]):
    """`write_prompts` of a sequence too long to be written at once: an item when it is asked for, a slice as a list."""

    def __init__(self, prompts: Sequence[Prompt], tokenizer: Any) -> None:
        self._prompts, self._tokenizer = prompts, tokenizer

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return write_prompts(self._prompts[index], self._tokenizer)
        return write_prompts([self._prompts[index]], self._tokenizer)[0]


def render(question: str, tokenizer: Any) -> str:
    """The templated text of a question, up to where the answer starts."""
    return render_messages([{"role": "user", "content": question}], tokenizer)


def render_messages(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> str:
    """The templated text of a conversation that ends in a question, up to where the answer starts."""
    return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the template writes behind an answer; None where it writes text, or nothing.

    A model trained on the template ends its answers with it, whatever its config calls the end of a sequence.
    """
    probe = "r1fast"
    messages = [{"role": "user", "content": probe}, {"role": "assistant", "content": probe}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError:  # a template for questions alone
        return None
    ids = tokenizer.encode(text.rpartition(probe)[2].strip(), add_special_tokens=False)
    if not ids:
        return None
    # `all_special_ids` has those with a role (eos, pad, ...) only: not Llama 3's <|eot_id|>
    added = tokenizer.added_tokens_decoder.get(ids[0])
    return int(ids[0]) if ids[0] in tokenizer.all_special_ids or (added is not None and added.special) else None


def response_prefix(text: str) -> str:
    """The `<think>` that a templated text ends in, as part of the answer; empty without one."""
    return THINK if _OPEN_CHAIN.search(text) else ""


def _written(prompt: Prompt, text: str, tokenizer: Any) -> Prompt:
    """The prompt with the token ids of its templated text."""
    token_ids = tuple(int(token) for token in tokenizer.encode(text, add_special_tokens=False))
    if not token_ids:
        raise ValueError(f"prompt {prompt.id!r} has no tokens: {prompt.text!r}")
    prefix = response_prefix(text)
    metadata = {**prompt.metadata, RESPONSE_PREFIX: prefix} if prefix else prompt.metadata
    return replace(prompt, token_ids=token_ids, metadata=metadata)


def _read(name: str) -> str:
    for path in (Path(name).expanduser(), RECIPES / name):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    known = ", ".join(sorted(path.name for path in RECIPES.glob("*.jinja")))
    raise ValueError(f"model.template = {name!r}: no such file; give a path, or one that comes with r1fast ({known})")


def _bos(tokenizer: Any) -> str:
    """`{{ bos_token }}` for a tokenizer that starts every text with it."""
    ids = tokenizer.encode("a")
    return "{{ bos_token }}" if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else ""
