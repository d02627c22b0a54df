"""Which chains of thought are unfit to learn from: R1's filters, each a question about a text.

Measured on the labelled chains of `tests/data/chains.jsonl`: `python -m r1fast.stages.chain_filters FILE`.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1fast.rewards.language import has_words, language_share

CountTokens = Callable[[Sequence[str]], Sequence[int]]

REPEATED_NGRAM = 8  # a chain that says the same eight words three times is a loop
MAX_REPEATS = 2
WORDS_PER_REPEAT = 300  # a long chain may say them once more for every so many words
_LOOP = 3  # times in a row, of
_LOOP_WORDS = 12  # words in all
_LONGEST_PERIOD = 64  # words of what a loop repeats

# What a Chinese chain writes in Latin letters without leaving Chinese: units, functions, names of points and sets.
_NOTATION = re.compile(
    r"(?<![A-Za-z])(?:[munkcd]?m|km|[mk]?g|mg|[mk]?l|min|ms|kwh?|hz|cos|sin|tan|cot|sec|log|ln|lg|lim|max|min|mod|gcd|lcm"
    r"|[A-Z]{2,5})(?![A-Za-z])",
    re.ASCII,
)
_FENCE = re.compile(r"```|^[^\S\n]*~~~|<code>", re.MULTILINE)
_FENCED = re.compile(r"(```|~~~).*?(?:\1|$)", re.DOTALL)
# Lines of programs that no sentence looks like; one of them may be a quotation, two in a row are a block.
_CODE_LINE = re.compile(
    r"^\s*(?:(?:async )?def \w+\(.*\)|class \w+[(:]|import [\w.]+(?: as \w+)?|from [\w.]+ import .+|@\w+|#include\s*<.+"
    r"|(?:for|while|if|elif|with|try|else|except)\b.*:|return\b[^.?!。]*;?|print\s*\(.*\)|\w+(?:\.\w+)*\(.*\);?"
    r"|(?:int|float|double|void|long|char|auto|const|let|var)\b.+[;{]|[{}]+;?|\w+\s*[-+*/]?=\s*[\w(\['\"].*"
    r"|SELECT\b.+|FROM\b.+;|cout\b.+|console\.log\(.*)\s*$"
)
_CODE_SIGNS = re.compile(
    r"^\s*(?:def |class |import |from |#include|print\s*\(|return\b|int main|SELECT\b|console\.log|@)|[;{}]\s*$|\+="
)
_HAN_RUN = re.compile(r"[\u3400-\u9fff]{5,}")


@dataclass(frozen=True, kw_only=True)
class ChainLimits:
    """0 turns a limit off; `min_language` is the least share of words in the question's language."""

    min_language: float
    max_paragraph_tokens: int
    max_chain_tokens: int
    drop_code_blocks: bool


def chain_faults(chain: str, language: str, limits: ChainLimits, count_tokens: CountTokens) -> list[str]:
    """The filters that a chain fails, in the order of R1's list; empty for one that is kept."""
    faults = []
    if mixes_languages(chain, language, limits.min_language):
        faults.append("mixed language")
    if limits.drop_code_blocks and has_code_block(chain):
        faults.append("code block")
    if limits.max_paragraph_tokens or limits.max_chain_tokens:
        tokens = count_tokens(re.split(r"\n\s*\n", chain))
        if limits.max_paragraph_tokens and max(tokens) > limits.max_paragraph_tokens:
            faults.append("long paragraph")
        if limits.max_chain_tokens and sum(tokens) > limits.max_chain_tokens:
            faults.append("too long")
    if repeats(chain):
        faults.append("repetition")
    return faults


def mixes_languages(chain: str, language: str, min_language: float) -> bool:
    """`lacks_language` of a chain without its code.

    Units, functions and names of points are words of no language: a Chinese chain may have them.
    """
    chain = _without_code(chain)
    if language != "en":
        chain = _NOTATION.sub(" ", chain)
    return lacks_language(chain, language, min_language)


def lacks_language(text: str, language: str, min_language: float) -> bool:
    """Whether less than `min_language` of the words are in a language, or there are no words at all.

    At 0 only the latter, so that the language may be one that `language_share` does not know.
    """
    if not min_language:
        return not has_words(text)
    target, total = language_share(text, language)
    return total == 0 or target < min_language * total


def has_code_block(chain: str) -> bool:
    """Whether a chain has a fenced block, or two lines of a program in a row."""
    return _FENCE.search(chain) is not None or bool(_code_lines(chain.splitlines()))


def _code_lines(lines: Sequence[str]) -> set[int]:
    """The numbers of lines that are a program, two in a row at least, one of them with more than an assignment."""
    found: set[int] = set()
    looks = [bool(line.strip()) and _CODE_LINE.match(line) is not None for line in lines]
    signs = [look and _CODE_SIGNS.search(line) is not None for look, line in zip(looks, lines, strict=True)]
    for number in range(1, len(lines)):
        if looks[number] and looks[number - 1] and (signs[number] or signs[number - 1]):
            found |= {number - 1, number}
    return found


def _without_code(chain: str) -> str:
    lines = _FENCED.sub(" ", chain).splitlines()
    code = _code_lines(lines)
    return "\n".join(line for number, line in enumerate(lines) if number not in code)


def repeats(chain: str) -> bool:
    """Whether a chain goes round in circles: words in a row said too often, or the same again and again.

    Eight words in a row may occur twice, in a long chain once more for every `WORDS_PER_REPEAT` words; a shorter
    phrase may not fill `_LOOP_WORDS` words by itself, three times or more.
    """
    words = _words(chain)
    grams = Counter(tuple(words[i : i + REPEATED_NGRAM]) for i in range(len(words) - REPEATED_NGRAM + 1))
    most = MAX_REPEATS + len(words) // WORDS_PER_REPEAT
    return any(count > most for count in grams.values()) or _loops(words)


def _loops(words: Sequence[str]) -> bool:
    """Whether some phrase is said over and over, with nothing between."""
    for period in range(1, min(_LONGEST_PERIOD, len(words) // _LOOP) + 1):
        needed = max(_LOOP * period, _LOOP_WORDS) - period
        run = 0
        for place in range(period, len(words)):
            run = run + 1 if words[place] == words[place - period] and not words[place].isdigit() else 0
            if run >= needed:
                return True
    return False


def _words(text: str) -> list[str]:
    """Words by white space; of Chinese without it every two characters, from where a run begins."""
    words = []
    for word in text.split():
        if word.isascii() or len(word) < 5:
            words.append(word)
            continue
        for piece in re.findall(r"[\u3400-\u9fff]+|[^\u3400-\u9fff]+", word):
            if _HAN_RUN.fullmatch(piece):
                words += [piece[i : i + 2] for i in range(0, len(piece), 2)]
            else:
                words.append(piece)
    return words


def measure(
    rows: Iterable[Mapping[str, Any]], limits: ChainLimits, count_tokens: CountTokens
) -> dict[str, dict[str, float]]:
    """Precision and recall of every filter on labelled chains (`chain`, `language`, `labels`: the faults it has).

    Also of `any`: whether a chain is dropped at all. Without a chain that has, or is given, a fault its figure is 1.
    """
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        wanted = set(row["labels"])
        found = set(chain_faults(row["chain"], row["language"], limits, count_tokens))
        for name in (*FAULTS, "any"):
            has = bool(wanted) if name == "any" else name in wanted
            says = bool(found) if name == "any" else name in found
            counts.setdefault(name, Counter())[
                f"{'hit' if has else 'false'}" if says else "missed" if has else "left"
            ] += 1
    return {
        name: {
            "labelled": count["hit"] + count["missed"],
            "precision": _ratio(count["hit"], count["hit"] + count["false"]),
            "recall": _ratio(count["hit"], count["hit"] + count["missed"]),
        }
        for name, count in counts.items()
    }


FAULTS = ("mixed language", "code block", "long paragraph", "repetition")
# As R1's recipe, but for texts that are counted in words: 150 words are a long paragraph for a short chain.
MEASURED = ChainLimits(min_language=0.999, max_paragraph_tokens=150, max_chain_tokens=0, drop_code_blocks=True)


def count_words(texts: Sequence[str]) -> list[int]:
    """In place of a tokenizer: runs of letters, digits, and single characters of anything else."""
    return [len(re.findall(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]", text)) for text in texts]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table for a file of labelled chains."""
    (path,) = sys.argv[1:] if argv is None else argv
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    print(f"{len(rows)} chains\n{'filter':<16} {'labelled':>8} {'precision':>9} {'recall':>7}")
    for name, row in measure(rows, MEASURED, count_words).items():
        print(f"{name:<16} {row['labelled']:>8} {row['precision']:>9.3f} {row['recall']:>7.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
