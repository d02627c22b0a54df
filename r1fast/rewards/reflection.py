"""Reflective words in a text: the curve by which R1's authors watched self-checking grow."""

from __future__ import annotations

import re

# The ten words that DeepSeek-R1's analysis counts (wait ... check), with inflections and their Chinese counterparts.
_ENGLISH = re.compile(
    r"\b(?:wait|mistakes?|mistaken|however|but|retry|errors?|verif(?:y|ied|ies|ying)|wrong"
    r"|evaluat(?:e|es|ed|ing)|(?:re-?)?check(?:s|ed|ing)?)\b",
    re.IGNORECASE,
)
_CHINESE = re.compile(r"等等|等一下|稍等|错误|不对|错了|然而|但是|不过|重试|再试|验证|核实|评估|检查|检验")


def reflective_words(text: str) -> int:
    """How many reflective words a text holds (wait, mistake, however, but, retry, error, verify, wrong, ...)."""
    english = len(_ENGLISH.findall(text))
    return english if text.isascii() else english + len(_CHINESE.findall(text))
