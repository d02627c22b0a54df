"""Rows of a decode batch: slots with poisoned outputs, and a row as plain Python would keep it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

from r1fast.ops.sequence_step import (
    ENDED_BY_LENGTH,
    ENDED_BY_TOKEN,
    FAULT,
    LIVE,
    NO_PAGE,
    RESTING,
    Slots,
    sequence_step,
)

EOS = (7, 9)
OUTPUTS = ("tokens_SN", "logp_SN", "log_kept_mass_SN", "entropy_SN")
POISON = 0x7FC0DEAD  # a token that is none, and a NaN


def table_of(rows: int, pages: int) -> torch.Tensor:
    return torch.arange(rows * pages, dtype=torch.int32).flip(0).reshape(rows, pages)


def allocate(rows: int, *, max_tokens: int = 8, pages: int = 2, eos: tuple[int, ...] = EOS) -> Slots:
    """Slots whose outputs are poisoned."""
    slots = Slots.allocate(rows=rows, max_tokens=max_tokens, eos=eos, page_table=table_of(rows, pages))
    for name in OUTPUTS:
        getattr(slots, name).view(torch.int32).fill_(POISON)
    return slots


def admit(slots: Slots, row: int, *, prompt: int = 5, most: int | None = None, least: int = 0, group: int = 0) -> None:
    """A fresh sample in a row."""
    values = {"state": LIVE, "num_generated": 0, "suffix_length": 0, "position": prompt - 1, "group": group}
    values |= {"min_tokens": least} | ({} if most is None else {"max_tokens": most})
    for name, value in values.items():
        getattr(slots, name)[row] = value


def draw(slots: Slots, tokens: list[int], *, failed: tuple[int, ...] = ()) -> None:
    """One step in which the rows drew these; each number is another, so that none can take another's place."""
    token = torch.tensor(tokens, dtype=torch.int32)
    logp, mass, entropy = (-token.float() - share for share in (0.25, 0.5, 0.75))
    status = torch.tensor([int(row in failed) for row in range(len(tokens))], dtype=torch.int32)
    sequence_step(slots, token, logp, mass, entropy, status)


def bits(slots: Slots) -> dict[str, list[int]]:
    """All bits of all buffers."""
    names = (*slots.row_fields, "page_table", "eos", "counts")
    return {name: getattr(slots, name).contiguous().view(torch.int32).flatten().tolist() for name in names}


@dataclass
class Model:
    """A row as Python would keep it."""

    pages: list[int]
    most: int
    least: int
    prompt: int
    group: int
    state: int = LIVE
    tokens: list[int] = field(default_factory=list)

    def step(self, token: int, failed: bool) -> int:
        """One step; the state after it, RESTING where the row was not live."""
        if self.state != LIVE:
            return RESTING
        if failed:
            self.state = FAULT
            return FAULT
        self.tokens.append(token)
        page = (len(self.tokens) - 1) // 64
        if token in EOS and len(self.tokens) >= self.least:
            self.state = ENDED_BY_TOKEN
        elif len(self.tokens) == self.most:
            self.state = ENDED_BY_LENGTH
        elif page >= len(self.pages) or self.pages[page] == -1:
            self.state = NO_PAGE
        return self.state

    def expect(self, slots: Slots, row: int) -> None:
        num, live = len(self.tokens), self.state == LIVE and bool(self.tokens)
        assert slots.state[row] == self.state
        assert slots.num_generated[row] == num
        for name, share in zip(OUTPUTS, (None, 0.25, 0.5, 0.75), strict=True):
            written, rest = getattr(slots, name)[row].split([num, slots.tokens_SN.shape[1] - num])
            expected = self.tokens if share is None else [-token - share for token in self.tokens]
            assert written.tolist() == expected, name
            assert (rest.view(torch.int32) == POISON).all(), name
        assert slots.suffix_length[row] == (num if live else 0)
        if live:
            place = num - 1
            assert slots.token[row] == self.tokens[-1]
            assert slots.position[row] == self.prompt + place
            assert slots.kv_slot[row] == self.pages[place // 64] * 64 + place % 64
        else:
            assert slots.kv_slot[row] == -1
        assert slots.group[row] == (self.group if self.state == LIVE else -1)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Model | None], list[list[int]], int]:
    """Rows (None: resting), what each step draws (negative: the draw failed), and the tables' width."""
    pages = draw(st.integers(0, 2))
    tables = table_of(40, pages)
    rows: list[Model | None] = []
    for row in range(draw(st.integers(1, 40))):
        missing = draw(st.sampled_from([pages, pages, pages, 0, 1]))
        listed = [page if number < missing else -1 for number, page in enumerate(tables[row].tolist())]
        most = draw(st.sampled_from([1, 2, 3, 5, 63, 64, 65, 70]))
        least = draw(st.sampled_from([0, 0, 1, 2, 3, 64, 65]))
        model = Model(listed, most, least, draw(st.integers(0, 9)), draw(st.integers(-1, 3)))
        rows.append(model if draw(st.integers(0, 9)) else None)
    seed, num_steps = draw(st.integers(0, 2**31)), draw(st.integers(1, 72))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(10, 2**20, (num_steps, len(rows)), generator=generator)  # fp32 has them + 0.25
    for chance, value in ((0.02, EOS[0]), (0.02, EOS[1]), (0.005, -1)):
        drawn[torch.rand(drawn.shape, generator=generator) < chance] = value
    return rows, drawn.tolist(), pages
