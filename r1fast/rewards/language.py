"""Language consistency: the share of words of the prompt's language in the chain of thought.

Words are told apart by script, then sentence by sentence within a script:
- Latin letters: a run is a word. A sentence of at least `MIN_WORDS` that lingua finds to be clearly in another language
  than the prompt's counts for that language; a shorter one, or a single borrowed word, counts for the prompt's.
- Han: a run of two characters is a word, longer ones are segmented by jieba. A sentence with kana is Japanese, its Han
  included; there, a content word with its kana ending is a word.
- Cyrillic and Arabic: a run is a word, unless it has a letter that Russian or Arabic do not have.
Numbers, operators, tags, code, formulas and single letters (variables) are no words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from r1fast.records import Prompt, Rollout
from r1fast.rewards.response import TAGS, open_ended_text, parse_response, response_text
from r1fast.rewards.score import UNPARSED, Score

_HAN = re.compile(r"[\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_KANA = re.compile(r"[\u3041-\u30ff]")
# A word of Japanese: Han with the hiragana that end it, katakana, or hiragana alone.
_JAPANESE = re.compile(
    r"[\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+[\u3041-\u309f]*|[\u30a0-\u30ff]+|[\u3041-\u309f]+"
)
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]{2,}(?:['’][a-z]+)?")
_CYRILLIC = re.compile(r"[\u0400-\u052f]{2,}")
_ARABIC = re.compile(r"[\u0600-\u06ff\u0750-\u077f]{2,}")
_NOT_RUSSIAN = re.compile(r"[іїєґўјљњћђџѓќѕІЇЄҐЎЈ]")
_NOT_ARABIC = re.compile(r"[پچژگکیٹڈڑےہں]")
_OTHER = re.compile(r"[\u0370-\u03ff\u0530-\u05ff\u0700-\u074f\u0780-\u1fff\uac00-\ud7af]{2,}")
# A formula has no other one in it: looking past the next opening would take quadratic time where none is closed.
_LEFT_OUT = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\((?:(?!\\\().)*?\\\)|\\\[(?:(?!\\\[).)*?\\\]|"
    r"\\[A-Za-z]+|</?[a-z]+>",
    re.DOTALL,
)
_SIGNS_OF_MARKUP = ("`", "$", "\\", "<")
_SENTENCE_END = re.compile(r"[.!?;:…](?=\s|$)|[。！？；：\n]")  # not whole runs of them: in quadratic time

LATIN_LANGUAGES = ("en", "es", "fr", "de")
SUPPORTED = (*LATIN_LANGUAGES, "zh", "ja", "ru", "ar")
MIN_WORDS = 4  # of a sentence whose language is told: below, a third of lingua's answers are wrong
_CLEAR, _UNLIKELY = 0.6, 0.15  # lingua's confidence in another language, and in the prompt's
_SHORT_HAN = 6  # characters; a heading of so few may be Chinese or Japanese
# lingua takes 185 MiB and 100 microseconds a sentence: it is asked only where a frequent word of another language, or
# one of its letters, is seen.
_FREQUENT = {
    "en": "the of is and we to that so it this then are which with for be have what how where but you from there not",
    "es": "el los las del es que y por para una como entonces con se lo pero son cada tiene si de la en un su dos",
    "fr": "le les des est et que nous pour une donc dans qui il du alors mais sont chaque avec de la en un sur deux",
    "de": "der die das ist und wir nicht ein eine zu mit dann auf also den von aber sind jede hat wenn im es er zwei",
    "": "il lo gli che di per una con sono della nel quindi o os as um uma em do da dos het een van zijn niet dat en",
}
_FREQUENT_OF = {name: frozenset(words.split()) for name, words in _FREQUENT.items()}
_FOREIGN_TO = {
    name: frozenset().union(*(words for other, words in _FREQUENT_OF.items() if other != name)) - _FREQUENT_OF[name]
    for name in LATIN_LANGUAGES
}


def language_share(text: str, language: str) -> tuple[int, int]:
    """(words of `language`, words) of a text; ValueError for a language that this reward cannot tell."""
    if language not in SUPPORTED:
        raise ValueError(
            f"language {language!r}: the language reward tells {', '.join(SUPPORTED)} apart; "
            "set the prompt's language to one of them or give the reward 'language' no weight for this kind"
        )
    if any(sign in text for sign in _SIGNS_OF_MARKUP):
        text = _LEFT_OUT.sub(" ", text)
    counts: dict[str, int] = {}
    if text.isascii() and language not in LATIN_LANGUAGES:
        return 0, len(_LATIN.findall(text))
    for sentence in _SENTENCE_END.split(text):
        for name, count in _words(sentence, language):
            counts[name] = counts.get(name, 0) + count
    return counts.get(language, 0), sum(counts.values())


def has_words(text: str) -> bool:
    """Whether a text has words of any language, also of one that `language_share` does not know."""
    return language_share(text, "zh")[1] > 0  # for which nothing has to tell Latin languages apart


def _words(sentence: str, target: str) -> Iterator[tuple[str, int]]:
    """(language, number of its words) by script; "" for a language that has no name here."""
    latin = _LATIN.findall(sentence)
    if latin:
        yield _latin_language(latin, target), len(latin)
    if sentence.isascii():
        return
    if _KANA.search(sentence):
        yield "ja", len(_JAPANESE.findall(sentence))
    elif runs := _HAN.findall(sentence):
        short = target == "ja" and sum(map(len, runs)) <= _SHORT_HAN
        yield "ja" if short else "zh", sum(map(_count_chinese, runs))
    for name, words, foreign in (("ru", _CYRILLIC, _NOT_RUSSIAN), ("ar", _ARABIC, _NOT_ARABIC)):
        for word in words.findall(sentence):
            yield "" if foreign.search(word) else name, 1
    yield "", len(_OTHER.findall(sentence))


def _latin_language(words: list[str], target: str) -> str:
    """The language of a sentence of Latin words: `target`, "" for any other."""
    if target not in LATIN_LANGUAGES:
        return ""
    if len(words) < MIN_WORDS:
        return target
    foreign = sum(word.lower() in _FOREIGN_TO[target] for word in words)
    letters = target == "en" and not "".join(words).isascii()
    if not (foreign or letters) or 2 * foreign < sum(word.lower() in _FREQUENT_OF[target] for word in words):
        return target
    best, likely = _confidence(" ".join(words[:60]), target)
    return "" if best > _CLEAR and likely < _UNLIKELY else target


@lru_cache(maxsize=4096)
def _confidence(sentence: str, target: str) -> tuple[float, float]:
    """lingua's confidence in the likeliest other language, and in `target`."""
    best = likely = 0.0
    for value in _detector().compute_language_confidence_values(sentence):
        if value.language.iso_code_639_1.name.lower() == target:
            likely = value.value
        else:
            best = max(best, value.value)
    return best, likely


@lru_cache(maxsize=1)
def _detector() -> Any:
    from lingua import Language, LanguageDetectorBuilder

    known = (*(Language.ENGLISH, Language.SPANISH, Language.FRENCH, Language.GERMAN), Language.ITALIAN)
    return LanguageDetectorBuilder.from_languages(*known, Language.PORTUGUESE, Language.DUTCH).build()


@lru_cache(maxsize=4096)
def _count_chinese(run: str) -> int:
    if len(run) <= 2:
        return 1
    import rjieba

    return len(rjieba.cut(run))


def language(prompt: Prompt, rollout: Rollout) -> Score:
    """Share of target-language words in the chain, in [0, 1]; `partial` below 1.

    Without a closed `<think>` chain: `unparsed`, 0, so that breaking the format never pays; only a response to an
    open question with no tags at all is judged as a whole (the empty chain by which it skips one that the template
    opened is none). A chain without words is `empty`, 0: a chain of bare numbers must not earn the reward of a
    readable one.
    """
    verifiable = bool(prompt.answer) or "gym_entry" in prompt.metadata
    text = response_text(prompt, rollout) if verifiable else open_ended_text(prompt, rollout)
    chain = parse_response(text).chain
    if chain is None:
        if verifiable or any(tag in text for tag in TAGS):
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
