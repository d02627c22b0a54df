"""Guesses at what a sample writes next: what followed the same last tokens before, in it, its siblings or the prompt.

The samples of a group answer one question, so they repeat each other, and a chain of thought repeats itself (prompt
lookup decoding, Saxena 2023, over a whole group). A wrong guess costs a row of one step; it never changes a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from r1fast.ops.sample import MAX_VOCAB
from r1fast.rollout.call import Call

NUM_MATCHED = 3  # tokens that must be the same before a guess; fewer match by chance


@dataclass
class Tally:
    """Tokens that were guessed, and how many of them were drawn."""

    num_guessed: int = 0
    num_drawn: int = 0


class Guesses:
    """Of one call, at most `most` for a sample and `rows` in a step with the samples' own rows.

    Forgets a group when its last sample has ended; until then a token takes some hundred bytes.
    """

    def __init__(self, call: Call, *, most: int, rows: int, tally: Tally) -> None:
        self.call, self.most, self.rows, self.tally = call, most, rows, tally
        self._groups: dict[int, _Group] = {}

    def room(self, num_rows: int) -> int:
        """Guesses that a step finds room for beside `num_rows` rows."""
        return max(0, self.rows - num_rows)

    def num_seen(self, sample: int) -> int:
        """Tokens of a sample that are known."""
        group = self._groups.get(sample // self.call.group_size)
        text = None if group is None else group.texts.get(sample)
        return 0 if text is None else len(text) - self._num_before(sample)

    def see(self, sample: int, token_ids: Sequence[int]) -> None:
        """These come after the ones that are known."""
        prompt_index = sample // self.call.group_size
        prompt = self.call.prompts[prompt_index].token_ids
        group = self._groups.get(prompt_index)
        if group is None:
            group = self._groups[prompt_index] = _Group()
            group.extend(-1, prompt)
        if sample not in group.texts:
            group.texts[sample] = list(prompt[-NUM_MATCHED:])
        group.extend(sample, token_ids)

    def end(self, sample: int) -> None:
        """It asks for no more guesses; its siblings may still repeat it."""
        prompt_index = sample // self.call.group_size
        group = self._groups[prompt_index]
        group.num_ended += 1
        if group.num_ended == self.call.group_size:
            del self._groups[prompt_index]

    def of_rows(self, rows: Mapping[int, tuple[int, int, int]], room: int) -> dict[int, list[int]]:
        """The guesses of rows that have any, at most `room` in all: everybody's first ones before the second.

        `rows`: sample, tokens it has, tokens that it may still be guessed to have.
        """
        found: dict[int, list[int]] = {}
        if room:
            for row, (sample, num_tokens, most) in rows.items():
                if most > 0 and (tokens := self.after(sample, num_tokens, min(most, self.most))):
                    found[row] = tokens
        counts = dict.fromkeys(found, 0)
        for depth in range(1, self.most + 1):
            for row, tokens in found.items():
                if room and len(tokens) >= depth:
                    counts[row], room = depth, room - 1
        return {row: found[row][:count] for row, count in counts.items() if count}

    def after(self, sample: int, num_tokens: int, most: int) -> list[int]:
        """At most `most` tokens that may follow the first `num_tokens` of a sample; [] where nothing is known."""
        group = self._groups[sample // self.call.group_size]
        last = group.texts[sample][: self._num_before(sample) + num_tokens][-NUM_MATCHED:]
        found: list[int] = []
        while len(found) < most and (place := group.follower.get(_key(last))):
            text, begin = place
            found += group.texts[text][begin : begin + most - len(found)]
            last = [*last, *found][-NUM_MATCHED:]
        return found

    def count(self, num_guessed: int, num_drawn: int) -> None:
        """So many were guessed in a step, and so many of them drawn."""
        self.tally.num_guessed += num_guessed
        self.tally.num_drawn += num_drawn

    def _num_before(self, sample: int) -> int:
        """Tokens of the prompt that stand before a sample's own."""
        return min(NUM_MATCHED, len(self.call.prompts[sample // self.call.group_size].token_ids))


@dataclass
class _Group:
    """`texts` of samples, and the prompt's as -1; `follower`: after which tokens something came last: (text, place)."""

    texts: dict[int, list[int]] = field(default_factory=dict)
    follower: dict[int, tuple[int, int]] = field(default_factory=dict)
    num_ended: int = 0

    def extend(self, text: int, token_ids: Sequence[int]) -> None:
        """These follow what the text has so far."""
        known = self.texts.setdefault(text, [])
        first = len(known)
        known.extend(token_ids)
        for place in range(max(first, NUM_MATCHED), len(known)):
            self.follower[_key(known[place - NUM_MATCHED : place])] = text, place


def _key(last: Sequence[int]) -> int:
    """One number for the last NUM_MATCHED tokens, -1 for fewer; a third of the memory of a tuple."""
    if len(last) < NUM_MATCHED:
        return -1
    key = 0
    for token in last:
        key = key * MAX_VOCAB + token
    return key
