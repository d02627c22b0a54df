"""Language consistency: the share of words of the prompt's language in the chain of thought.

Words are told apart by script. A run of Latin letters is a word; a run of Han characters counts one word for every
two characters, rounded up (Chinese words average about 1.6 characters, and text may or may not have spaces).
Numbers, operators, tags, code, formulas and single letters (variables) are no words.
"""

from __future__ import annotations

import re

from r1fast.records import Prompt, Rollout
from r1fast.rewards.response import TAGS, parse_response, response_text
from r1fast.rewards.score import UNPARSED, Score

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]{2,}(?:['’][a-z]+)?")
_OTHER = re.compile(r"[\u0370-\u1fff\u3040-\u30ff\uac00-\ud7af]{2,}")
_LEFT_OUT = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+|</?[a-z]+>", re.DOTALL
)
_SIGNS_OF_MARKUP = ("`", "$", "\\", "<")

SUPPORTED = ("en", "zh")


def language_share(text: str, language: str) -> tuple[int, int]:
    """(words of `language`, words) of a text; ValueError for a language that this reward cannot tell."""
    if language not in SUPPORTED:
        raise ValueError(
            f"language {language!r}: the language reward tells {', '.join(SUPPORTED)} apart (by script); "
            "set the prompt's language to one of them or give the reward 'language' no weight for this kind"
        )
    if any(sign in text for sign in _SIGNS_OF_MARKUP):
        text = _LEFT_OUT.sub(" ", text)
    latin = len(_LATIN.findall(text))
    if text.isascii():
        han = other = 0
    else:
        han = sum((len(run) + 1) // 2 for run in _HAN.findall(text))
        other = len(_OTHER.findall(text))
    return (latin if language == "en" else han), latin + han + other


def language(prompt: Prompt, rollout: Rollout) -> Score:
    """Share of target-language words in the chain, in [0, 1]; `partial` below 1.

    Without a closed `<think>` chain: `unparsed`, 0, so that breaking the format never pays; only a response to an
    open question with no tags at all is judged as a whole. A chain without words is `empty`, 0: a chain of bare
    numbers must not earn the reward of a readable one.
    """
    text = response_text(prompt, rollout)
    chain = parse_response(text).chain
    if chain is None:
        if prompt.answer or "gym_entry" in prompt.metadata or any(tag in text for tag in TAGS):
            return UNPARSED
        chain = text
    return _score(chain, prompt.language)


def language_any(prompt: Prompt, rollout: Rollout) -> Score:
    """The same share as a metric that needs no format: of the chain, or of the whole response without one."""
    text = response_text(prompt, rollout)
    chain = parse_response(text).chain
    return _score(text if chain is None else chain, prompt.language)


def _score(text: str, target: str) -> Score:
    in_target, total = language_share(text, target)
    if not total:
        return Score(0.0, "empty")
    return Score(in_target / total, "ok" if in_target == total else "partial")
