"""A decode step in which a sequence may have several rows: its last token, and the tokens it is guessed to go on by.

All rows write their keys and values, then each attends to what stands before it, so a guess's logits are those that the
sequence will have if the guess comes true. Its draw has the key of its place: a guess is right where it is the token
that is drawn anyway, and samples do not change. What a wrong guess wrote is written over.
"""

# B rows of the step, V vocab, M pages of a table's row

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from r1fast.ops.checks import PAGE_TOKENS
from r1fast.ops.decode_plan import DecodePlan
from r1fast.ops.page_pool import PageTables
from r1fast.ops.sample import COLUMNS, Drawn, sample
from r1fast.ops.sequence_step import LIVE, RESTING, Slots, sequence_step
from r1fast.rollout.draw_settings import DrawSettings
from r1fast.rollout.page_store import PageStore
from r1fast.rollout.paged_attention import DecodeContext
from r1fast.sampling import Sampling


@dataclass(frozen=True)
class GuessRows:
    """The rows of such a step, at addresses that stay. int32 [B] unless said."""

    slots: Slots
    """Of the decode batch: whose sequences they are."""
    tables: PageTables
    plan: DecodePlan
    drawn: Drawn
    settings: DrawSettings
    source: Tensor  # int64, the row of `slots`
    depth: Tensor  # tokens that the sequence is guessed to have beyond the batch's; -1: the row rests
    guess: Tensor  # the last of them
    length: Tensor
    group: Tensor
    kv_slot: Tensor
    pages: Tensor  # [B, M]

    @staticmethod
    def allocate(slots: Slots, tables: PageTables, store: PageStore, num_rows: int) -> GuessRows:
        device = slots.state.device
        num_pages = tables.suffix_pages_SM.shape[1]

        def integers(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int32, device=device)

        return GuessRows(
            slots=slots,
            tables=tables,
            plan=DecodePlan.allocate(
                num_rows=num_rows,
                num_groups=tables.prefix_length_G.shape[0],
                num_heads=store.shape.num_heads,
                num_kv_heads=store.shape.num_kv_heads,
                head_dim=store.shape.head_dim,
                max_suffix_tokens=num_pages * PAGE_TOKENS,
                max_prefix_tokens=tables.prefix_pages_GM.shape[1] * PAGE_TOKENS,
                device=device,
            ),
            drawn=Drawn.allocate(num_rows, device),
            settings=DrawSettings.allocate(num_rows, device),
            source=torch.zeros(num_rows, dtype=torch.int64, device=device),
            depth=integers(num_rows, fill=-1),
            guess=integers(num_rows),
            length=integers(num_rows),
            group=integers(num_rows, fill=-1),
            kv_slot=integers(num_rows, fill=-1),
            pages=integers(num_rows, num_pages, fill=-1),
        )

    def rows(self, count: int) -> GuessRows:
        """Views of the first."""
        columns = ("source", "depth", "guess", "length", "group", "kv_slot", "pages")
        plan = replace(
            self.plan,
            num_rows=count,
            members_S=self.plan.members_S[:count],
            partial_begin=self.plan.partial_begin[: count + 1],
        )
        views: dict[str, Any] = {name: getattr(self, name)[:count] for name in columns}
        return replace(self, plan=plan, drawn=self.drawn.rows(0, count), settings=self.settings.rows(0, count), **views)

    def context(self, store: PageStore) -> DecodeContext:
        return DecodeContext(store, self.plan, self.kv_slot, self.pages, self.tables.prefix_pages_GM)

    def arrange(self, num_rows: int, guesses: Mapping[int, Sequence[int]]) -> dict[tuple[int, int], int]:
        """Rows 0 to `num_rows` of the batch, then the guesses, by depth: their places by (row, depth)."""
        found = [(row, 0, 0) for row in range(num_rows)]
        found += [(row, depth, token) for row, tokens in guesses.items() for depth, token in enumerate(tokens, 1)]
        rest = [(0, -1, 0)] * (len(self.depth) - len(found))
        for column, values in zip((self.source, self.depth, self.guess), zip(*found, *rest, strict=True), strict=True):
            column.copy_(torch.tensor(values, dtype=column.dtype))
        return {(row, depth): place for place, (row, depth, _) in enumerate(found)}

    @property
    def num_generated(self) -> Tensor:
        """Tokens that the sequence has before this row's draw."""
        return self.slots.num_generated.index_select(0, self.source) + self.depth.clamp(min=0)

    def draw(self, logits_BV: Tensor, sampling: Sampling) -> None:
        """What each row's sequence draws there, whoever guessed it."""
        slots, settings, place = self.slots, self.settings, self.num_generated
        sample(
            logits_BV,
            self.drawn,
            temperature_R=settings.temperature_R,
            top_k_R=settings.top_k_R,
            top_p_R=settings.top_p_R,
            min_p_R=settings.min_p_R,
            key_R2=slots.key.index_select(0, self.source),
            sample_index_R=slots.sample_index.index_select(0, self.source),
            position_R=place,
            banned_RB=settings.banned(sampling, place, slots.min_tokens.index_select(0, self.source), slots.eos),
        )

    def prepare(self) -> tuple[Tensor, Tensor]:
        """What the model gets: tokens and positions, [B, 1] each; the rest of the columns are filled."""
        slots, depth = self.slots, self.depth
        lives = (depth >= 0) & (slots.state.index_select(0, self.source) == LIVE)
        self.pages.copy_(slots.page_table.index_select(0, self.source))
        length = torch.where(lives, slots.suffix_length.index_select(0, self.source) + depth, 0)
        place = (length - 1).clamp(min=0)
        page = self.pages.gather(1, (place // PAGE_TOKENS).long()[:, None])[:, 0]
        self.length.copy_(length)
        self.kv_slot.copy_(torch.where(lives, page * PAGE_TOKENS + place % PAGE_TOKENS, -1))
        self.group.copy_(torch.where(lives, slots.group.index_select(0, self.source), -1))
        tokens = torch.where(depth > 0, self.guess, slots.token.index_select(0, self.source))
        return tokens[:, None], (slots.position.index_select(0, self.source) + depth.clamp(min=0))[:, None]

    def append(self, drawn: Drawn, places: Sequence[int | None]) -> None:
        """To each row of `slots` what was drawn in its place, if it has one and still lives; `drawn` gets it, too."""
        slots = self.slots.rows(0, len(places))
        takes = torch.tensor([place is not None for place in places], device=slots.state.device)
        place = torch.tensor([place or 0 for place in places], device=slots.state.device)
        for name in COLUMNS:
            target = getattr(drawn, name)
            target.copy_(torch.where(takes, getattr(self.drawn, name)[place], target))
        waits = (slots.state == LIVE) & ~takes
        slots.state.masked_fill_(waits, RESTING)
        sequence_step(slots, *(getattr(drawn, name) for name in COLUMNS))
        slots.state.masked_fill_(waits, LIVE)


def num_right(guesses: Sequence[int], places: Sequence[int], drawn: Sequence[int]) -> int:
    """How many of a sequence's guesses are what was drawn in their place; `places` of its rows, by depth."""
    return next((depth for depth, token in enumerate(guesses) if drawn[places[depth]] != token), len(guesses))
