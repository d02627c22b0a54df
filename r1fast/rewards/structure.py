"""The format reward: the whole response has one of the two structures of `response`."""

from __future__ import annotations

from r1fast.records import Prompt, Rollout
from r1fast.rewards.code import find_program, is_code
from r1fast.rewards.response import ANSWER, END_ANSWER, END_THINK, THINK, open_ended_text, parse_response, response_text
from r1fast.rewards.score import OK, WRONG, Score


def format_structure(prompt: Prompt, rollout: Rollout) -> Score:
    r"""1 for exactly `<think>..</think> <answer>..</answer>` or `<think>..</think> summary \boxed{..}`, else 0.

    A prompt without a verifiable answer needs no `\boxed{}` and may skip the chain (R1 answers a simple "hello"
    without one): its tags must still be whole and the text after them non-blank. Where the template opens the chain,
    it is skipped by closing it at once. A code task needs a chain and, in place of the `\boxed{}`, a program in a
    fenced block.
    """
    text = response_text(prompt, rollout)
    if is_code(prompt):
        whole = THINK in text and _open_ended(text) and find_program(text) is not None
        return OK if whole else WRONG
    if prompt.answer or "gym_entry" in prompt.metadata:
        return OK if parse_response(text).pattern != "none" else WRONG
    return OK if _open_ended(open_ended_text(prompt, rollout)) else WRONG


def _open_ended(text: str) -> bool:
    if ANSWER in text or END_ANSWER in text:
        return parse_response(text).pattern == "r1_zero"
    if THINK not in text and END_THINK not in text:
        return bool(text.strip())
    response = parse_response(text)
    once = text.count(THINK) == 1 and text.count(END_THINK) == 1 and text.lstrip().startswith(THINK)
    return once and bool(response.chain and response.chain.strip()) and bool(response.summary.strip())
