"""General requests from files: prompts for RL 2, supervised examples, and what the reward models learn from.

One row in `HELD_OUT_OF` is held out, by a stable hash of its question, so that the files agree on it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

from xxhash import xxh3_64_intdigest

from r1fast.data.examples import read_example
from r1fast.data.fields import said_by
from r1fast.data.files import open_rows
from r1fast.data.prompts import guess_language
from r1fast.data.rows import Fault, Row
from r1fast.general_config import GeneralConfig
from r1fast.records import Prompt
from r1fast.source import Example, PreferencePair, SafetyExample, Split
from r1fast.stream import permutation

HELD_OUT_OF = 8
# Data sets that have the columns already.
PUBLIC = {
    "ultrafeedback": "HuggingFaceH4/ultrafeedback_binarized#train_prefs",
    "beavertails": "PKU-Alignment/BeaverTails#330k_train",
}
KINDS = ("general", "harmful")
ID_PREFIX = "general "  # RL 2 mixes them with prompts of data.file, and two of one id would be taken for one
# How answers that decline begin, in the languages of the language reward: within their first sentence.
_REFUSAL = re.compile(
    r"\b(i can(?:no|')t|i can ?not|i won'?t|i will not|i'm (?:not able|unable)|i am (?:not able|unable)|i must decline|"
    r"no puedo|no voy a|je ne peux pas|je ne vais pas|ich kann (?:dir |ihnen )?(?:dabei |das )?nicht|ich werde nicht|"
    r"я не могу|я не буду)|我不能|我无法|不能帮|できません|お手伝いできない|لا أستطيع|لا يمكنني",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?。！？\n]")

logger = logging.getLogger(__name__)

T = TypeVar("T", Prompt, Example, PreferencePair, SafetyExample)


class GeneralData:
    """Read when first asked for; raises ValueError that names the row, or the option that is missing."""

    def __init__(self, config: GeneralConfig, bad_rows: Literal["error", "skip"] = "error") -> None:
        """`bad_rows` as in [data]; how many are left out is logged."""
        self.config, self.bad_rows = config, bad_rows

    def prompts(self, split: Split) -> list[Prompt]:
        """Requests of a split, shuffled; none without a file."""
        return _part(self._prompts, split, 0) if self.config.prompts else []

    def examples(self, count: int, seed: int) -> list[Example]:
        """`count` of the training split, shuffled; from the start again where there are fewer."""
        found = _part(self._examples, "train", seed)
        if not found:
            raise ValueError(
                f"general.examples = {self.config.examples!r} has {len(self._examples)} rows, all held out (1 in "
                f"{HELD_OUT_OF} is, by its question): give more"
            )
        return [found[number % len(found)] for number in range(count)]

    def pairs(self, split: Split, count: int, seed: int) -> list[PreferencePair]:
        """The first `count` of a split, shuffled."""
        return _first(_part(self._pairs, split, seed), split, count, self.config.preferences)

    def safety(self, split: Split, count: int, seed: int) -> list[SafetyExample]:
        """The first `count` of a split, shuffled."""
        return _first(_part(self._safety, split, seed), split, count, self.config.safety)

    @cached_property
    def _prompts(self) -> list[Prompt]:
        return self._read("prompts", self.config.prompts, _prompt)

    @cached_property
    def _examples(self) -> list[Example]:
        return self._read("examples", self.config.examples, partial(read_example, kind=KINDS[0]))

    @cached_property
    def _pairs(self) -> list[PreferencePair]:
        return self._read("preferences", self.config.preferences, _pair)

    @cached_property
    def _safety(self) -> list[SafetyExample]:
        return self._read("safety", self.config.safety, _safety_example)

    def _read(self, name: str, file: str, make: Callable[[Row, str], T]) -> list[T]:
        rows, found, faults = open_rows(_find(name, file)), [], []
        ids: set[str] = set()
        for place, row in rows.scan():
            try:
                if isinstance(row, Fault):
                    raise ValueError(row.reason)
                made = make(row, f"{rows.name}-{place + 1}")
                _check_id(made, ids)
                found.append(made)
            except ValueError as error:
                faults.append(f"general.{name}: {rows.where(place)}: {error}")
                if self.bad_rows == "error":
                    raise ValueError(faults[0]) from None
        if faults:
            logger.warning("general.%s: %d bad rows left out; the first: %s", name, len(faults), faults[0])
        if not found:
            raise ValueError(f"general.{name} = {file!r}: no rows")
        return found


def is_refusal(response: str) -> bool:
    """Whether an answer declines in its first sentence; by phrases, so one that declines in other words is missed."""
    first = _SENTENCE_END.split(response.strip().replace("’", "'"), maxsplit=2)[
        :2
    ]  # "I'm sorry. I can't ..." declines in the second
    return bool(_REFUSAL.search(" ".join(first)))


def _find(name: str, file: str) -> str:
    """What is to be opened: of a public data set its place."""
    if not file:
        raise ValueError(f"general.{name} is empty, and the stage needs it: name a file, or leave the stage out")
    return PUBLIC.get(file, file)


def _part(items: list[T], split: Split, seed: int) -> list[T]:
    own = [item for item in items if _is_held_out(item) == (split != "train")]
    return [own[place] for place in permutation(len(own), f"general {seed}")]


def _is_held_out(item: Prompt | Example | PreferencePair | SafetyExample) -> bool:
    text = item.text if isinstance(item, Prompt) else item.prompt.text
    return xxh3_64_intdigest(" ".join(text.split()).encode()) % HELD_OUT_OF == 0


def _check_id(item: Prompt | Example | PreferencePair | SafetyExample, seen: set[str]) -> None:
    """Of prompts, which are sampled: those of one id would get the same samples."""
    if not isinstance(item, Prompt):
        return
    if item.id in seen:
        raise ValueError(f'"id" = {item.id.removeprefix(ID_PREFIX)!r} is that of an earlier row; give each its own')
    seen.add(item.id)


def _first(items: list[T], split: Split, count: int, file: str) -> list[T]:
    if count > len(items):
        option = "pairs" if split == "train" else "held_out_pairs"
        raise ValueError(
            f"reward_model.{option} = {count}, and {file} has {len(items)} of the split {split} (1 in {HELD_OUT_OF} is "
            f"held out); give at most {len(items)}, or more data"
        )
    return items[:count]


def _prompt(row: Row, default_id: str) -> Prompt:
    text, kind = _text(row, "prompt", "user"), str(row.get("kind") or KINDS[0])
    if kind not in KINDS:
        raise ValueError(f'"kind" = {kind!r} must be one of {", ".join(KINDS)}; verifiable prompts belong to data.file')
    name = row.get("id")
    return Prompt(
        id=f"{ID_PREFIX}{default_id if name is None else name}",
        text=text,
        token_ids=(),
        kind=kind,
        language=str(row.get("language") or guess_language(text)),
    )


def _pair(row: Row, default_id: str) -> PreferencePair:
    chosen, rejected = (_text(row, name, "assistant") for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise ValueError('"chosen" and "rejected" are the same; drop the row')
    return PreferencePair(prompt=_asked(row, default_id), chosen=chosen, rejected=rejected)


def _safety_example(row: Row, default_id: str) -> SafetyExample:
    safe = row.get("safe", row.get("is_safe"))
    if not isinstance(safe, bool):
        raise ValueError(f'"safe" must be true or false, not {safe!r}')
    return SafetyExample(prompt=_asked(row, default_id), response=_text(row, "response", "assistant"), safe=safe)


def _asked(row: Row, default_id: str) -> Prompt:
    """The question that a response is judged with; its `kind` does not matter."""
    return _prompt({**row, "kind": KINDS[0]}, default_id)


def _text(row: Mapping[str, Any], name: str, role: str) -> str:
    if name not in row:
        raise ValueError(f'no "{name}"; this has {list(row)}')
    text = said_by(row[name], role)
    if not text.strip():
        raise ValueError(f'"{name}" is blank')
    return text
