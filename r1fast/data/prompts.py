"""Prompts of a data set, read lazily: one pass checks every row and keeps its place, a prompt is made when drawn."""

from __future__ import annotations

import heapq
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from r1fast.data.fields import PLAIN, FieldMap, plain_fields
from r1fast.data.files import open_rows
from r1fast.data.rows import Fault, Row, Rows
from r1fast.records import Prompt

# A chain in Chinese is asked for when at least this share of a question's characters is Chinese.
_HAN_SHARE = 0.2
_NUM_LONGEST = 256  # prompts of most bytes that a survey remembers
_FEW_LONGEST = 16  # of which a slice must have so many, or all its prompts are looked at
_MAX_DRAWS = 1000  # of another prompt in place of a banned one
_KNOWN = frozenset(PLAIN)
_PLAIN_VARIETY = ("math", "")
_WANTED = '; write one {"prompt": ..., "answer": ...} a line'


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a row becomes a prompt. `language` is for rows that name none; auto: told by script."""

    fields: FieldMap = field(default_factory=plain_fields)
    language: str = "auto"
    finish: Callable[[Prompt], Prompt] | None = None

    def check(self, row: Row) -> str:
        """The question of a row that can become a prompt; ValueError says why another cannot."""
        if self.fields.strict:
            text, answer = row.get("prompt"), row.get("answer")
            if len(row) != 2 or text is None or answer is None:
                _check_names(row)
        else:
            text, answer = self.fields.value("prompt", row), self.fields.value("answer", row)
        if type(text) is not str or not text or text.isspace():
            raise ValueError(f'"prompt" must be a non-blank string, not {text!r}')
        if type(answer) is str:
            blank = not answer or answer.isspace()
        else:
            blank = type(answer) is not int and type(answer) is not float
        if blank and self.fields.written["answer"] != "=":
            raise ValueError(f'"answer" must be a non-blank string or a number, not {answer!r}')
        return text

    def variety(self, row: Row) -> tuple[str, str]:
        """Kind and language of a checked row, the latter empty where it is told from the question."""
        if self.fields.strict and len(row) == 2:
            return _PLAIN_VARIETY
        kind, language = self.fields.value("kind", row), self.fields.value("language", row)
        return str(kind or "math"), str(language or "")

    def own_id(self, row: Row) -> str | None:
        """The id that a checked row gives itself."""
        if self.fields.strict and len(row) == 2:
            return None
        name = self.fields.value("id", row)
        return None if name is None else str(name)

    def prompt(self, row: Row, default_id: str) -> Prompt:
        """The prompt of a checked row, without token ids."""
        text = str(self.fields.value("prompt", row))
        kind, language = self.variety(row)
        name = self.own_id(row)
        if not language:
            language = guess_language(text) if self.language == "auto" else self.language
        made = Prompt(
            id=default_id if name is None else name,
            text=text,
            token_ids=(),
            kind=kind,
            language=language,
            answer=str(self.fields.value("answer", row)),
            metadata=row.get("metadata") or {} if self.fields.strict else self._metadata(row),
        )
        return self.finish(made) if self.finish else made

    def _metadata(self, row: Row) -> dict[str, str]:
        """Without the entries that a row has no value for."""
        names = [name for name in self.fields.fields if name.startswith("metadata.")]
        values = {name.removeprefix("metadata."): self.fields.value(name, row) for name in names}
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in values.items()
            if value is not None
        }


def _check_names(row: Row) -> None:
    """Of a row that needs no mapping; a name that is not known may be a misspelt one."""
    if unknown := sorted(row.keys() - _KNOWN):
        raise ValueError(
            f"unknown field {unknown[0]!r}; known are {', '.join(PLAIN)} (data.fields or data.preset maps others)"
        )
    for name in ("prompt", "answer"):
        if name not in row:
            raise ValueError(
                f'no "{name}"; every row needs "prompt" and "answer", or data.fields to map its columns; this has '
                f"{list(row)}"
            )
    metadata = row.get("metadata") or {}
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise ValueError(f'"metadata" must map names to strings, not {metadata!r}')


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What must be known of all rows: kind and language -> a place; the places of the questions of most bytes."""

    varieties: Mapping[tuple[str, str], int]
    longest: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one pass over all rows has found.

    `places` uint32 [N], ascending, and `keys` uint64 [N]: the usable rows and a stable hash of each question.
    `num_faults` bad rows were skipped, `first_fault` is one of them.
    """

    places: NDArray[np.uint32]
    keys: NDArray[np.uint64]
    num_faults: int
    first_fault: str
    facts: Facts


def survey(name: str, rows: Rows, reading: Reading, bad_rows: Literal["error", "skip"] = "error") -> Survey:
    """Check every row of `name`, once.

    Raises ValueError naming file and line for the first bad row, unless `bad_rows` says to count and skip it, for
    rows of which none can be used, and for different questions with one id.
    """
    places, keys = array("I"), array("Q")
    ids, with_id = array("Q"), array("I")  # hashes, and which of `places` they are of
    varieties: dict[tuple[str, str], int] = {}
    longest: list[tuple[int, int]] = []
    num_faults, first_fault, least = 0, "", -1
    check, variety, own_id = reading.check, reading.variety, reading.own_id
    for place, row in rows.scan():
        try:
            if type(row) is Fault:
                raise ValueError(row.reason)
            encoded = check(row).encode()  # type: ignore[arg-type]
        except ValueError as error:
            fault = f"{rows.where(place)}: {error}"
            if bad_rows == "error":
                raise ValueError(fault) from None
            num_faults, first_fault = num_faults + 1, first_fault or fault
            continue
        places.append(place)
        keys.append(xxh3_64_intdigest(encoded))
        if (own := own_id(row)) is not None:  # type: ignore[arg-type]
            ids.append(xxh3_64_intdigest(own.encode()))
            with_id.append(len(places) - 1)
        kinds = variety(row)  # type: ignore[arg-type]
        if kinds not in varieties:
            varieties[kinds] = place
        if len(encoded) > least:
            push = heapq.heappush if len(longest) < _NUM_LONGEST else heapq.heappushpop
            push(longest, (len(encoded), place))
            least = longest[0][0] if len(longest) == _NUM_LONGEST else -1
    if not places:
        why = f"; all {num_faults} rows are bad, the first: {first_fault}" if num_faults else _WANTED
        raise ValueError(f"{name}: no prompts{why}")
    if ids:
        _check_ids(rows, places, keys, np.frombuffer(ids, np.uint64), np.frombuffer(with_id, np.uint32))
    return Survey(
        places=np.frombuffer(places, dtype=np.uint32),
        keys=np.frombuffer(keys, dtype=np.uint64),
        num_faults=num_faults,
        first_fault=first_fault,
        facts=Facts(varieties=varieties, longest=tuple(place for _, place in longest)),
    )


def _check_ids(
    rows: Rows, places: Sequence[int], keys: Sequence[int], ids: NDArray[np.uint64], with_id: NDArray[np.uint32]
) -> None:
    """ValueError for two questions with one id, by which samples are drawn and told apart."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    for number in np.flatnonzero(ordered[1:] == ordered[:-1]).tolist():
        first, second = (int(with_id[order[number + step]]) for step in (0, 1))
        if keys[first] != keys[second]:  # of a question that is repeated the first row alone is used
            raise ValueError(
                f"{rows.where(places[second])}: the row has the id of {rows.where(places[first])}, which is another "
                "question; give each its own, or none (data.fields without id)"
            )


@dataclass(frozen=True, kw_only=True)
class Ban:
    """Prompts that are not given out, and the places of those that may be in their stead, whatever slice asks."""

    says_no: Callable[[Prompt], bool]
    pool: NDArray[np.uint32]


class Prompts(Sequence[Prompt]):
    """Prompts by position, made when they are asked for; a slice is again lazy.

    A prompt that is banned is not given out: its position gives another one, always the same, in a slice as in the
    whole. That may be given out at another position, too: `each_once` is for who must not have it twice.
    """

    def __init__(
        self,
        rows: Rows,
        reading: Reading,
        facts: Facts,
        places: NDArray[np.uint32],
        ban: Ban | None = None,
    ) -> None:
        """The prompts at `places`, ascending. `facts` may be of more rows than these."""
        self.places = places
        self._rows, self._reading, self._facts, self._ban = rows, reading, facts, ban

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Prompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | Prompts:
        if isinstance(index, slice):
            return self.at(self.places[index])
        prompt = self._made(int(self.places[index]))
        if self._ban is None or not self._ban.says_no(prompt):
            return prompt
        return self._another(prompt, self._ban)

    def __iter__(self) -> Iterator[Prompt]:
        for index in range(len(self)):
            yield self[index]

    def at(self, places: NDArray[np.uint32]) -> Prompts:
        """Those at `places`, which are some of these."""
        return Prompts(self._rows, self._reading, self._facts, places, self._ban)

    def without(self, banned: Callable[[Prompt], bool]) -> Prompts:
        """The same, but what is `banned` is seen to when it is drawn: any of these may take its place."""
        return Prompts(self._rows, self._reading, self._facts, self.places, Ban(says_no=banned, pool=self.places))

    def varieties(self) -> list[Prompt]:
        """A prompt of every kind and language that the data set has."""
        return [self._made(place) for place in self._facts.varieties.values()]

    def longest(self) -> list[Prompt]:
        """The questions of most bytes; those among them that may take the place of another."""
        places = self.places if self._ban is None else self._ban.pool
        longest = self._facts.longest if len(places) else ()
        nearest = places[np.searchsorted(places, longest).clip(max=len(places) - 1)]
        kept = [place for place, near in zip(longest, nearest.tolist(), strict=True) if place == near]
        if len(kept) >= min(_FEW_LONGEST, len(places)):
            return [self._made(place) for place in kept]
        return heapq.nlargest(_NUM_LONGEST, map(self._made, places.tolist()), key=lambda made: len(made.text.encode()))

    def _made(self, place: int) -> Prompt:
        return self._reading.prompt(self._rows[place], f"{self._rows.name}-{place + 1}")

    def _another(self, prompt: Prompt, ban: Ban) -> Prompt:
        for attempt in range(_MAX_DRAWS):
            index = xxh3_64_intdigest(f"{attempt} {prompt.text}".encode()) % len(ban.pool)
            other = self._made(int(ban.pool[index]))
            if not ban.says_no(other):
                return other
        raise ValueError(
            f"{_MAX_DRAWS} training prompts in a row are in the evaluation sets, too: `r1fast data overlap` counts "
            "them; give other data"
        )


def open_prompts(name: str, reading: Reading, bad_rows: Literal["error", "skip"] = "error") -> tuple[Prompts, Survey]:
    """The prompts of a data set as `r1fast.data.files.open_rows` names it, in its order, and what a pass has found.

    Raises ValueError for a data set that cannot be opened, and as `survey` does.
    """
    rows = open_rows(name, reading.fields.columns)
    found = survey(name, rows, reading, bad_rows)
    return Prompts(rows, reading, found.facts, found.places), found


def read_prompts(name: str, reading: Reading | None = None) -> Prompts:
    """The prompts of a data set, in its order; ValueError as `open_prompts`."""
    return open_prompts(name, reading or Reading())[0]


def each_once(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts without repeats, told by id: an engine refuses one that comes twice in a call."""
    return list({prompt.id: prompt for prompt in prompts}.values())


def guess_language(text: str) -> str:
    """`zh` for a text with a fair share of Chinese characters, else `en`."""
    if text.isascii():
        return "en"
    num_han = sum("\u3400" <= character <= "\u9fff" for character in text)
    num_letters = sum(character.isalpha() for character in text)
    return "zh" if num_letters and num_han >= _HAN_SHARE * num_letters else "en"


def varieties(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Prompts of every kind and language among these; of lazy ones without making them all."""
    return prompts.varieties() if isinstance(prompts, Prompts) else prompts


def most_bytes(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Of lazy prompts those of most bytes, of others all: among them is the longest."""
    return prompts.longest() if isinstance(prompts, Prompts) else prompts


def distinct(found: Survey) -> NDArray[np.uint32]:
    """The places of the first row of every question, ascending."""
    keep = np.ones(len(found.keys), dtype=bool)
    top = found.keys.astype("<u8", copy=False).view(np.uint8)[7::8] >> 4
    for sixteenth in range(16):  # by the highest bits, so that sorting takes a sixteenth of the memory
        inside = np.flatnonzero(top == sixteenth)
        order = np.argsort(found.keys[inside], kind="stable")
        ordered = found.keys[inside[order]]
        keep[inside[order[1:][ordered[1:] == ordered[:-1]]]] = False
    return found.places if keep.all() else found.places[keep]
