"""Files or reasoning-gym behind `r1fast.source.Source`: verifiable prompts, and what else the recipe has files for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r1fast.config import DataConfig
from r1fast.data.general import GeneralData, is_refusal
from r1fast.data.splits import load_splits
from r1fast.general_config import GeneralConfig
from r1fast.records import Prompt
from r1fast.source import Example, PreferencePair, SafetyExample, Split

# How the summary of a cold start's example says the answer, by language.
SAID = {
    "en": "The answer is ",
    "zh": "答案是",
    "ja": "答えは",
    "es": "La respuesta es ",
    "fr": "La réponse est ",
    "de": "Die Antwort ist ",
    "ru": "Ответ: ",
    "ar": "الجواب هو ",
}


class PromptSource:
    """A data set or reasoning-gym behind `r1fast.source.Source`, and the general data of [general]."""

    def __init__(self, config: DataConfig, general: GeneralConfig | None = None) -> None:
        """Loads every split; raises ValueError as `load_splits` does."""
        splits = load_splits(config)
        self._general = GeneralData(general or GeneralConfig(), config.bad_rows)
        self._prompts = splits.prompts
        self.report: Mapping[str, Any] = splits.report
        self.notes: Sequence[str] = splits.notes

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Distinct verifiable prompts of a split, in a fixed order."""
        return self._prompts[split]

    def general_prompts(self, split: Split) -> list[Prompt]:
        """Those of general.prompts; none without: a stage that needs some says so."""
        return self._general.prompts(split)

    def general_examples(self, count: int, seed: int) -> list[Example]:
        """Of general.examples, some more than once where there are fewer than `count`."""
        return self._general.examples(count, seed)

    def preference_pairs(self, split: Split, count: int, seed: int) -> list[PreferencePair]:
        """Of general.preferences. Raises ValueError where there are fewer."""
        return self._general.pairs(split, count, seed)

    def safety_examples(self, split: Split, count: int, seed: int) -> list[SafetyExample]:
        """Of general.safety. Raises ValueError where there are fewer."""
        return self._general.safety(split, count, seed)

    def rewrite(self, chain: str, language: str) -> str:
        """The chain as it is: nothing here translates."""
        return chain

    def readable(self, chain: str, prompt: Prompt) -> str:
        r"""The chain in `<think>`, then one sentence with the boxed answer."""
        said = SAID.get(prompt.language, SAID["en"])
        return f"<think>\n{chain}\n</think>\n{said}\\boxed{{{prompt.answer}}}"

    def is_refusal(self, response: str) -> bool:
        """By the phrases that answers decline with."""
        return is_refusal(response)
