"""A conversation with a model: turns in its template, answers as they are drawn, thinking told from answering."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from r1fast.policy import Policy
from r1fast.records import Prompt
from r1fast.rewards.response import END_THINK, TAGS, THINK, parse_response
from r1fast.rollout.engine import RolloutEngine
from r1fast.sampling import Sampling
from r1fast.templates import render_messages, response_prefix

Part = Literal["thinking", "answer"]
_TAG = re.compile("|".join(map(re.escape, TAGS)))
ROWS = 16  # of the decode batch, the fewest there are
DRAFT_TOKENS = 6  # a lone sequence leaves rows for guesses: a third fewer steps or more, and the same answer
ANSWER_SHARE = 4  # 1 / 4 of the window is kept free for the answer, if that may be so long


@dataclass(frozen=True, kw_only=True)
class Options:
    """How answers are drawn; `max_tokens` of one answer. `remember`: earlier turns are shown to the model."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int = 0
    remember: bool = True


@dataclass(kw_only=True)
class Conversation:
    """Questions and answers so far with one model.

    `keeps_chains`: past answers are shown to the model whole, as R1-Zero's were sampled; else without their chains, as
    R1 is served. `remembers`: the template shows earlier turns at all, and the user wants them.
    """

    policy: Policy
    options: Options
    keeps_chains: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)
    num_questions: int = 0
    cut_off: bool = False  # the last answer reached max_tokens

    def __post_init__(self) -> None:
        self.engine = RolloutEngine(self.policy, rows=ROWS, seed=self.options.seed, draft_tokens=DRAFT_TOKENS)
        self.remembers = self.options.remember and carries_turns(self.policy.tokenizer)

    def forget(self) -> None:
        """Start over."""
        self.messages.clear()

    def ask(self, question: str) -> Iterator[tuple[Part, str]]:
        """The answer in pieces, as it is drawn; an answer that is broken off by the caller is not remembered.

        Earlier turns are forgotten, oldest first, when the model's window is too small for all of them. Raises
        ValueError when it is too small for the question alone.
        """
        if not self.remembers:
            self.forget()
        asked = [*self.messages, {"role": "user", "content": question}]
        token_ids, prefix, room = self._written(asked)
        while room < min(self.options.max_tokens, (len(token_ids) + room) // ANSWER_SHARE) and len(asked) > 1:
            asked = asked[2:]
            token_ids, prefix, room = self._written(asked)
        if room < 1:
            raise ValueError(
                f"the question has {len(token_ids)} tokens, the model's window is {len(token_ids) + room}: ask a "
                "shorter one"
            )
        max_tokens = min(room, self.options.max_tokens)
        prompt = Prompt(id=question, text=question, token_ids=token_ids)
        sampling = Sampling(
            temperature=self.options.temperature,
            top_p=self.options.top_p,
            max_tokens=max_tokens,
            stage="chat",
            visit=self.num_questions,
        )
        self.num_questions += 1
        splitter, decoder = Splitter(), Detokenizer(self.policy)
        yield from splitter.feed(prefix)
        for token in self.engine.stream(prompt, sampling):
            yield from splitter.feed(decoder.feed(token))
        yield from splitter.feed(decoder.rest())
        yield from splitter.rest()
        self.cut_off = decoder.token_ids[-1] not in self.policy.eos_token_ids
        response = prefix + decoder.text()
        said = response if self.keeps_chains else parse_response(response).summary
        self.messages = [*asked, {"role": "assistant", "content": said.strip()}]

    def unknown_words(self, question: str) -> list[str]:
        """The words that the tokenizer has no token for: the model sees a hole in their place."""
        tokenizer: Any = self.policy.tokenizer
        unknown = tokenizer.unk_token_id
        if unknown is None:
            return []
        words = dict.fromkeys(question.split())
        return [word for word in words if unknown in tokenizer.encode(word, add_special_tokens=False)]

    def _written(self, messages: list[dict[str, str]]) -> tuple[tuple[int, ...], str, int]:
        """Token ids of a conversation, what the template begins the answer with, tokens left in the window."""
        text = render_messages(messages, self.policy.tokenizer)
        token_ids = tuple(self.policy.tokenizer.encode(text, add_special_tokens=False))
        window = getattr(self.policy.module.config.get_text_config(), "max_position_embeddings", None)
        room = self.options.max_tokens if window is None else window - len(token_ids)
        return token_ids, response_prefix(text), room


def carries_turns(tokenizer: Any) -> bool:
    """Whether a tokenizer's template shows earlier questions and answers, in order."""
    turns = [("user", "Aone"), ("assistant", "Btwo"), ("user", "Cthree")]
    text = render_messages([{"role": role, "content": content} for role, content in turns], tokenizer)
    places = [text.find(content) for _, content in turns]
    return -1 < places[0] < places[1] < places[2]


class Splitter:
    """Cuts a response that comes in pieces at its tags, which are not shown: `("thinking", text)`, `("answer", text)`.

    White space around a part is dropped.
    """

    def __init__(self) -> None:
        self.part: Part = "answer"
        self._pending = ""  # may be the beginning of a tag
        self._space = ""  # shown only if more of the same part follows
        self._begun = False

    def feed(self, piece: str) -> Iterator[tuple[Part, str]]:
        """What can be shown now."""
        self._pending += piece
        while match := _TAG.search(self._pending):
            yield from self._show(self._pending[: match.start()])
            self._pending = self._pending[match.end() :]
            part: Part = "thinking" if match.group() == THINK else "answer"
            if part != self.part or match.group() in (THINK, END_THINK):
                self.part, self._begun = part, False
            self._space = " " if self._begun else ""
        held = max((n for n in range(1, len(max(TAGS, key=len))) if self._may_begin_tag(n)), default=0)
        shown = len(self._pending) - held
        text, self._pending = self._pending[:shown], self._pending[shown:]
        yield from self._show(text)

    def rest(self) -> Iterator[tuple[Part, str]]:
        """What was held back, at the end of the response."""
        text, self._pending = self._pending, ""
        yield from self._show(text)

    def _may_begin_tag(self, length: int) -> bool:
        tail = self._pending[-length:]
        return len(tail) == length and any(tag.startswith(tail) for tag in TAGS)

    def _show(self, text: str) -> Iterator[tuple[Part, str]]:
        text = self._space + text if self._begun else text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :] if self._begun or kept else ""
        if kept:
            self._begun = True
            yield self.part, kept


class Detokenizer:
    """Text of tokens that come one by one: pieces that add up to the text of all, never half a character."""

    def __init__(self, policy: Policy) -> None:
        self._tokenizer: Any = policy.tokenizer
        self._hidden = {*policy.eos_token_ids, self._tokenizer.pad_token_id}
        self.token_ids: list[int] = []
        self._start = self._shown = 0  # tokens: where the decoded window begins, and what has been shown of it

    def feed(self, token: int) -> str:
        """The text that this token completes; empty inside a character."""
        self.token_ids.append(token)
        return self._advance(whole=False)

    def rest(self) -> str:
        """What is left, at the end."""
        return self._advance(whole=True)

    def text(self) -> str:
        """The text of all tokens so far."""
        return self._decode(0, None)

    def _advance(self, *, whole: bool) -> str:
        before = self._decode(self._start, self._shown)
        now = self._decode(self._start, None)
        if len(now) <= len(before) or (now.endswith("�") and not whole):
            return ""
        self._start, self._shown = self._shown, len(self.token_ids)
        return now[len(before) :]

    def _decode(self, start: int, end: int | None) -> str:
        ids = [token for token in self.token_ids[start:end] if token not in self._hidden]
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text
