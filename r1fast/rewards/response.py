r"""The two structures of a response, and its parts.

R1-Zero: `<think> chain </think> <answer> answer </answer>`. Readable (cold start and later):
`<think> chain </think> summary ... \boxed{answer}`. White space between the parts does not matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from r1fast.records import Prompt, Rollout

THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
TAGS = (THINK, END_THINK, ANSWER, END_ANSWER)
BOXED = "\\boxed"
_EMPTY_CHAIN = re.compile(rf"\A\s*{THINK}\s*{END_THINK}")
# What may follow the closing brace of the final \boxed{} without spoiling "ends in": punctuation and closing LaTeX.
_AFTER_BOXED = " \t\r\n.。!！$)]\\*"

Pattern = Literal["r1_zero", "readable", "none"]


@dataclass(frozen=True, slots=True)
class Response:
    """The parts of a completion; `None` where a part is absent.

    `chain`: inside the first `<think>...</think>`. `answer`: inside the last `<answer>...</answer>` after the chain,
    else inside the last `\\boxed{}` of the summary. `summary`: what follows the chain, the whole text without one.
    `pattern`: the structure that the *whole* text has exactly, tags once and in order, with a non-blank chain.
    """

    chain: str | None
    answer: str | None
    summary: str
    pattern: Pattern


def response_text(prompt: Prompt, rollout: Rollout) -> str:
    """The completion, with the `<think>` that a template may have put at the end of the prompt (`r1fast.templates`)."""
    return prompt.metadata.get("response_prefix", "") + rollout.text


def open_ended_text(prompt: Prompt, rollout: Rollout) -> str:
    """`response_text` without a chain that the template opened and the model closed at once: it has skipped it."""
    text = response_text(prompt, rollout)
    return _EMPTY_CHAIN.sub("", text) if prompt.metadata.get("response_prefix") else text


def parse_response(text: str) -> Response:
    """Split a completion into its parts; never raises."""
    start, end = text.find(THINK), text.find(END_THINK)
    closed = 0 <= start < end
    chain = text[start + len(THINK) : end] if closed else None
    last_end = text.rfind(END_THINK)
    summary = text[last_end + len(END_THINK) :] if last_end >= 0 else text
    answer, boxed_end = _tagged(summary), -1
    if answer is None and (last_end >= 0 or start < 0):
        answer, boxed_end = last_boxed(summary)
    return Response(chain, answer, summary, _pattern(text, chain, answer, summary, boxed_end))


def last_boxed(text: str) -> tuple[str | None, int]:
    r"""The content of the last `\boxed{...}` with balanced braces and the index after it, or (None, -1)."""
    start = text.rfind(BOXED)
    if start < 0:
        return None, -1
    brace = start + len(BOXED)
    while brace < len(text) and text[brace].isspace():
        brace += 1
    if brace == len(text) or text[brace] != "{":
        return None, -1
    depth = 0
    for place in range(brace, len(text)):
        character = text[place]
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[brace + 1 : place], place + 1
    return None, -1


def _tagged(text: str) -> str | None:
    end = text.rfind(END_ANSWER)
    start = text.rfind(ANSWER, 0, end) if end >= 0 else -1
    return text[start + len(ANSWER) : end] if start >= 0 else None


def _pattern(text: str, chain: str | None, answer: str | None, summary: str, boxed_end: int) -> Pattern:
    if chain is None or not chain.strip() or answer is None or not answer.strip():
        return "none"
    if text.count(THINK) != 1 or text.count(END_THINK) != 1 or not text.lstrip().startswith(THINK):
        return "none"
    num_open, num_close = text.count(ANSWER), text.count(END_ANSWER)
    if num_open == num_close == 1:
        body = summary.strip()
        return "r1_zero" if body.startswith(ANSWER) and body.endswith(END_ANSWER) else "none"
    if num_open == num_close == 0 and boxed_end >= 0 and not summary[boxed_end:].strip(_AFTER_BOXED):
        return "readable"
    return "none"
