"""Prompts for training, `dev` and the held-out evaluation from JSONL files or reasoning-gym; the splits never overlap.

A prompt's `text` is the question as asked; `r1fast.templates.write_prompts` gives it token ids.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterable

from r1fast.config import DataConfig
from r1fast.data_gym import gym_prompts
from r1fast.data_jsonl import jsonl_prompts
from r1fast.records import Prompt
from r1fast.source import Example, PreferencePair, SafetyExample, Split

logger = logging.getLogger(__name__)

# The paper decontaminates by 10-grams; a shorter prompt is compared as a whole.
NGRAM = 10
SPLITS: tuple[Split, ...] = ("train", "dev", "held_out")
Loader = Callable[[DataConfig], dict[Split, list[Prompt]]]
LOADERS: dict[str, Loader] = {"jsonl": jsonl_prompts, "gym": gym_prompts}


def load_prompts(config: DataConfig, split: Split) -> list[Prompt]:
    """The prompts of one split, in a fixed order; the seed and the data alone decide.

    Raises ValueError for a source this module does not load, and for data that give a split no prompts.
    """
    return load_splits(config)[split]


def load_splits(config: DataConfig) -> dict[Split, list[Prompt]]:
    """All splits: distinct prompts, training prompts decontaminated against `dev` and held-out, counts logged."""
    if config.source not in LOADERS:
        raise ValueError(f"data.source = {config.source!r}: prompts are loaded from {', '.join(sorted(LOADERS))}")
    splits = LOADERS[config.source](config)
    evaluation = [*splits["dev"], *splits["held_out"]]
    kept, num_dropped = decontaminate(splits["train"], evaluation, by_ngram=config.source == "jsonl")
    if num_dropped:
        logger.info("dropped %d of %d training prompts found in dev or held-out", num_dropped, len(splits["train"]))
    splits["train"] = kept[: config.num_train] if config.num_train else kept
    for split in SPLITS:
        if not splits[split]:
            raise ValueError(
                f"data.source = {config.source!r} gives no {split} prompts; give more data or lower data.num_dev "
                f"({config.num_dev}) and data.num_held_out ({config.num_held_out})"
            )
    return splits


def decontaminate(
    training: Iterable[Prompt], evaluation: Iterable[Prompt], *, by_ngram: bool
) -> tuple[list[Prompt], int]:
    """Training prompts that are not in the evaluation prompts, and how many were dropped.

    A prompt is dropped when its words equal those of an evaluation prompt or, `by_ngram`, when both have at least ten
    words and share ten in a row. Generated tasks share their wording, so for them only equality counts.
    """
    whole: set[tuple[str, ...]] = set()
    grams: set[tuple[str, ...]] = set()
    for prompt in evaluation:
        words = words_of(prompt.text)
        whole.add(words)
        if by_ngram:
            grams.update(_ngrams(words))
    kept, num_dropped = [], 0
    for prompt in training:
        words = words_of(prompt.text)
        if words in whole or (by_ngram and not grams.isdisjoint(_ngrams(words))):
            num_dropped += 1
        else:
            kept.append(prompt)
    return kept, num_dropped


def words_of(text: str) -> tuple[str, ...]:
    """Words for comparing texts: compatibility-normalised, lower case; Chinese text by characters, it has no spaces."""
    spaced = []
    for character in unicodedata.normalize("NFKC", text).lower():
        is_han = "\u3400" <= character <= "\u9fff"
        spaced.append(f" {character} " if is_han else character)
    return tuple("".join(spaced).split())


def _ngrams(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {words[start : start + NGRAM] for start in range(len(words) - NGRAM + 1)}


class PromptSource:
    """JSONL or reasoning-gym behind `r1fast.source.Source`: verifiable prompts, no general data."""

    def __init__(self, config: DataConfig) -> None:
        """Loads every split; raises ValueError as `load_splits` does."""
        self._splits = load_splits(config)

    def prompts(self, split: Split) -> list[Prompt]:
        """Distinct verifiable prompts of a split, in a fixed order."""
        return self._splits[split]

    def general_prompts(self, split: Split) -> list[Prompt]:
        """None: a stage that needs some says so."""
        return []

    def general_examples(self, count: int, seed: int) -> list[Example]:
        """Raises ValueError: there are none."""
        raise _no_general("sft.general_share = 0 and rejection.general_share = 0")

    def preference_pairs(self, split: Split, count: int, seed: int) -> list[PreferencePair]:
        """Raises ValueError: there are none."""
        raise _no_general("pipeline.stages without reward_models")

    def safety_examples(self, split: Split, count: int, seed: int) -> list[SafetyExample]:
        """Raises ValueError: there are none."""
        raise _no_general("pipeline.stages without reward_models")

    def rewrite(self, chain: str, language: str) -> str:
        """The chain as it is: nothing here translates."""
        return chain

    def readable(self, chain: str, prompt: Prompt) -> str:
        r"""The chain in `<think>`, then one sentence with the boxed answer."""
        said = "答案是" if prompt.language == "zh" else "The answer is "
        return f"<think>\n{chain}\n</think>\n{said}\\boxed{{{prompt.answer}}}"

    def is_refusal(self, response: str) -> bool:
        """False: the prompts are tasks, none asks for a refusal."""
        return False


def _no_general(fix: str) -> ValueError:
    return ValueError(f"this source has verifiable prompts only, no general data: set {fix}, or data.source = tiny")
