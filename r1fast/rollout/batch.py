"""The decode batch on the device: one row for each sequence, and the step that gives every row its next token."""

# R rows, B the rows of a bucket, V vocab, D model

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from r1fast.attention import PackedContext
from r1fast.ops.checks import PAGE_TOKENS
from r1fast.ops.decode_plan import DecodePlan, decode_plan
from r1fast.ops.page_pool import PageTables
from r1fast.ops.sample import NOTHING_TO_DRAW, Drawn, sample
from r1fast.ops.sequence_step import LIVE, RESTING, Slots, sequence_step
from r1fast.packing import position_ids
from r1fast.policy import Policy
from r1fast.rollout.draw_settings import DrawSettings, num_bad
from r1fast.rollout.guess_step import GuessRows, num_right
from r1fast.rollout.head import Head
from r1fast.rollout.page_store import PageStore
from r1fast.rollout.paged_attention import ChunkContext, DecodeContext, PrefillContext
from r1fast.rollout.step_graphs import StepGraphs, bucket_rows
from r1fast.sampling import Sampling

ROW_MULTIPLE = 16  # fp32 products on a CPU differ bitwise at fewer rows, and a sample would depend on its batch


def padded(count: int, multiple: int = ROW_MULTIPLE) -> int:
    """`count` rounded up."""
    return -(-count // multiple) * multiple


class DecodeBatch:
    """Rows 0 to `rows`; `slots` has each row's whole state. What a step reads and writes keeps its address.

    It serves one call after the other, `prepare` before each. On a GPU a step is a CUDA graph unless `cuda_graphs` is
    False; the graphs live as long as the batch, whatever the sampling, and through the store's sleep. `draft_rows` is
    the room of steps with guesses, 0 for none.
    """

    def __init__(
        self,
        policy: Policy,
        store: PageStore,
        tables: PageTables,
        *,
        max_tokens: int,
        cuda_graphs: bool = True,
        draft_rows: int = 0,
    ) -> None:
        self.policy, self.store, self.tables = policy, store, tables
        rows, device = tables.suffix_length_S.shape[0], policy.device
        num_vocab = policy.num_vocab
        self.slots = Slots.allocate(
            rows=rows,
            max_tokens=max_tokens,
            eos=[token for token in policy.eos_token_ids if token < num_vocab],
            page_table=tables.suffix_pages_SM,
            device=device,
        )
        self.drawn = Drawn.allocate(rows, device)
        self.settings = DrawSettings.allocate(rows, device)
        self.plan = DecodePlan.allocate(
            num_rows=rows,
            num_groups=tables.prefix_length_G.shape[0],
            num_heads=store.shape.num_heads,
            num_kv_heads=store.shape.num_kv_heads,
            head_dim=store.shape.head_dim,
            max_suffix_tokens=tables.suffix_pages_SM.shape[1] * PAGE_TOKENS,
            max_prefix_tokens=tables.prefix_pages_GM.shape[1] * PAGE_TOKENS,
            device=device,
        )
        self.guessing = GuessRows.allocate(self.slots, tables, store, draft_rows) if draft_rows else None
        self.graphs = StepGraphs(device) if cuda_graphs and device.type == "cuda" else None
        self.head: Head | None = None
        self._weights: tuple[int, ...] = ()
        self._buckets: dict[int, _Bucket] = {}

    def prepare(self, sampling: Sampling, num_rows: int) -> None:
        """For a call of at most `num_rows` rows: all rest, the weights are as they are now, graphs are captured."""
        self.sampling, self.head = sampling, Head(self.policy)
        self.settings.fill(sampling)
        if self.guessing is not None:
            self.guessing.settings.fill(sampling)
        self._rest(self.slots)
        if self.graphs is not None:
            weights = _addresses(self.policy.module)
            if weights != self._weights:
                self.graphs.clear()
                self._weights = weights
            largest = self.rows_for(num_rows)
            sizes = [size for size in bucket_rows(len(self.slots.state)) if size <= largest]
            steps = [(size, self._kind(size), partial(self._step, size)) for size in sizes]
            if self.guessing is not None:
                size = len(self.guessing.depth)
                steps.append((size, self._guess_kind(size), partial(self._guess_step, self.guessing)))
            for _, kind, step in sorted(steps, key=lambda step: -step[0]):
                if kind not in self.graphs:  # no row is live, so a step changes nothing that counts
                    self.graphs.capture(kind, step)

    def forget_weights(self) -> None:
        """After a call: a CPU's head has a copy of them, which is as large and soon out of date."""
        self.head = None

    def rows_for(self, count: int) -> int:
        """Rows that a step for the first `count` rows takes."""
        if self.graphs is None:
            return padded(count)
        return next(size for size in bucket_rows(len(self.slots.state)) if size >= count)

    def step(self, num_rows: int) -> None:
        """One token for each live row of the first `num_rows`, a number that `rows_for` gives."""
        if self.graphs is None:
            self._step(num_rows)
        else:
            self.graphs.replay(self._kind(num_rows))

    def _kind(self, num_rows: int) -> tuple[int, int, bool]:
        """What makes one graph differ from another: rows, banned tokens, whether ends are banned at first."""
        return num_rows, num_bad(self.sampling), self.sampling.min_tokens > 0

    def _step(self, num_rows: int) -> None:
        bucket = self._bucket(num_rows)
        slots, plan = bucket.slots, bucket.context.plan
        decode_plan(plan, slots.suffix_length, slots.group, self.tables.prefix_length_G)
        hidden_BD = self.backbone(slots.token[:, None], slots.position[:, None], bucket.context)[:, 0]
        self._draw(self._logits(hidden_BD), slots, bucket.drawn, bucket.settings)

    def guess_step(self, num_rows: int, guesses: Mapping[int, Sequence[int]]) -> int:
        """As `step` for rows 0 to `num_rows`, and one token more for each of a row's guesses that comes true.

        The guesses are by row; with the rows they must find room in `draft_rows`. Waits for the device; the number of
        those that came true.
        """
        assert self.guessing is not None, "a batch without draft_rows has no room for guesses"
        places = self.guessing.arrange(num_rows, guesses)
        if self.graphs is None:
            part = self.guessing.rows(min(padded(len(places)), len(self.guessing.depth)))
            self._guess_step(part)
        else:
            part = self.guessing
            self.graphs.replay(self._guess_kind(len(part.depth)))
        drawn = part.drawn.token_R.tolist()
        right = {
            row: num_right(tokens, [places[row, depth] for depth in range(len(tokens))], drawn)
            for row, tokens in guesses.items()
        }
        for depth in range(1 + max(right.values(), default=0)):
            chosen = [places[row, depth] if right.get(row, 0) >= depth else None for row in range(num_rows)]
            part.append(self.drawn.rows(0, num_rows), chosen)
        return sum(right.values())

    def _guess_kind(self, num_rows: int) -> tuple[Any, ...]:
        return ("guesses", *self._kind(num_rows))

    def _guess_step(self, guessing: GuessRows) -> None:
        token_ids, positions = guessing.prepare()
        decode_plan(guessing.plan, guessing.length, guessing.group, self.tables.prefix_length_G)
        hidden_BD = self.backbone(token_ids, positions, guessing.context(self.store))[:, 0]
        guessing.draw(self._logits(hidden_BD), self.sampling)

    def _logits(self, hidden_RD: Tensor) -> Tensor:
        assert self.head is not None, "prepare() comes before the steps of a call"
        return self.head.logits(hidden_RD)

    def first_tokens(self, hidden_PD: Tensor, prompt_of_row: Tensor, first_row: int) -> None:
        """Draw for the rows from `first_row` on, each from the last hidden state of its prompt."""
        logits_RV, count = self._logits(hidden_PD)[prompt_of_row], len(prompt_of_row)
        slots = self.slots.rows(first_row, first_row + count)
        self._draw(logits_RV, slots, self.drawn.rows(first_row, count), self.settings.rows(first_row, count))

    def backbone(
        self, token_ids: Tensor, positions: Tensor, context: PrefillContext | ChunkContext | DecodeContext
    ) -> Tensor:
        """The last hidden states [B, S, D] of `token_ids` and `positions` [B, S]."""
        outputs: Any = self.policy.module.base_model(
            input_ids=token_ids, position_ids=positions, use_cache=False, attention_context=context
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    def run_prompts(self, prompts: Sequence[tuple[int, ...]], slots: Sequence[Tensor]) -> Tensor:
        """Run prompts, packed; write their keys and values to `slots`; the last hidden state of each: [P', D]."""
        bounds = [0, *accumulate(len(token_ids) for token_ids in prompts)]
        padding = padded(bounds[-1]) - bounds[-1]  # a last sequence that nobody reads
        cu_seqlens = torch.tensor([*bounds, *[bounds[-1] + padding] * (padding > 0)], dtype=torch.int32)
        token_ids = torch.tensor([*chain.from_iterable(prompts), *[0] * padding])
        slot_T = torch.cat([*slots, torch.full((padding,), -1, dtype=torch.int32)])
        device = self.policy.device
        hidden_TD = self.backbone(
            token_ids.to(device)[None],
            position_ids(cu_seqlens).to(device)[None],
            PrefillContext(self.store, PackedContext(cu_seqlens, device), slot_T.to(device)),
        )[0]
        last = [end - 1 for end in bounds[1:]]
        return hidden_TD[torch.tensor([*last, *[0] * (padded(len(last)) - len(last))], device=device)]

    def run_long_prompt(self, prompt: tuple[int, ...], slot_T: Tensor, chunk_tokens: int) -> Tensor:
        """As run_prompts for one prompt, a chunk at a time: each sees the ones before it in their pages."""
        device = self.policy.device
        hidden_TD = self.run_prompts([prompt[:chunk_tokens]], [slot_T[:chunk_tokens]])
        pages = (slot_T[::PAGE_TOKENS] // PAGE_TOKENS).long().to(device)
        for begin in range(chunk_tokens, len(prompt), chunk_tokens):
            part = prompt[begin : begin + chunk_tokens]
            padding = padded(len(part)) - len(part)
            slots = torch.cat([slot_T[begin : begin + len(part)], torch.full((padding,), -1, dtype=torch.int32)])
            hidden_TD = self.backbone(
                torch.tensor([*part, *[0] * padding], device=device)[None],
                torch.arange(begin, begin + len(part) + padding, device=device)[None],
                ChunkContext(self.store, pages, begin, slots.to(device)),
            )[0, len(part) - 1 : len(part)].expand(ROW_MULTIPLE, -1)
        return hidden_TD

    def begin(self, first_row: int, starts: Sequence[RowStart]) -> None:
        """Rows from `first_row` on are new samples, about to draw their first tokens."""
        slots = self.slots.rows(first_row, first_row + len(starts))
        columns = {
            "position": [start.position for start in starts],
            "max_tokens": [start.max_tokens for start in starts],
            "group": [start.group for start in starts],
            "sample_index": [start.sample_index for start in starts],
            "key": [[signed(word) for word in start.key] for start in starts],
        }
        for name, values in columns.items():
            getattr(slots, name).copy_(torch.tensor(values, dtype=torch.int32))
        for empty in (slots.token, slots.suffix_length, slots.num_generated):
            empty.zero_()
        slots.kv_slot.fill_(-1)
        slots.min_tokens.fill_(self.sampling.min_tokens)
        slots.state.fill_(LIVE)

    def rest(self, row: int) -> None:
        """Nobody is in the row."""
        self._rest(self.slots.rows(row, row + 1))

    def _rest(self, slots: Slots) -> None:
        for column, value in _rest_values(slots):
            column.fill_(value)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Rows `sources` become `targets`; the former then rest. Their pages stay where they are."""
        if not sources:
            return
        slots = self.slots
        slots.copy(sources, targets)
        rows = torch.tensor(list(sources), device=slots.state.device)
        for column, value in _rest_values(slots):
            column.index_fill_(0, rows, value)

    def save(self, row: int) -> SavedRow:
        """What `restore` needs."""
        slots = self.slots.rows(row, row + 1)
        return {name: getattr(slots, name).cpu().clone() for name in slots.row_fields}

    def restore(self, row: int, saved: SavedRow, *, group: int, kv_slot: int) -> None:
        """What was saved goes on in this row: its group has that place in the tables, its next token that slot."""
        slots = self.slots.rows(row, row + 1)
        for name, value in saved.items():
            getattr(slots, name).copy_(value)
        slots.group.fill_(group)
        slots.kv_slot.fill_(kv_slot)

    def progress(self, num_rows: int) -> list[tuple[int, int]]:
        """State and tokens of the first rows. Waits for the device."""
        slots = self.slots.rows(0, num_rows)
        return list(zip(slots.state.tolist(), slots.num_generated.tolist(), strict=True))

    def tokens(self, row: int, count: int, first: int = 0) -> list[int]:
        """Of the first `count` tokens that a row has drawn, those from `first` on."""
        found: list[int] = self.slots.tokens_SN[row, first:count].tolist()
        return found

    def is_to_be_looked_at(self) -> bool:
        """Whether the last step ended a sequence or failed; False on a GPU, which the host does not wait for."""
        return self.policy.device.type == "cpu" and any(self.slots.counts[1:].tolist())

    def had_no_choice(self, row: int) -> bool:
        """Whether the row failed for want of a token that may be drawn, rather than of finite logits."""
        return int(self.drawn.status_R[row]) == NOTHING_TO_DRAW

    def take(self, row: int, num_tokens: int, *, by_token: bool) -> Ended:
        """What a row that has ended drew, in memory of its own."""
        slots = self.slots
        columns = (slots.tokens_SN, slots.logp_SN, slots.log_kept_mass_SN, slots.entropy_SN)
        token_ids, logp, kept_mass, entropy = (column[row, :num_tokens].to("cpu", copy=True) for column in columns)
        return Ended(token_ids.long(), logp, kept_mass, entropy, by_token)

    def _draw(self, logits_RV: Tensor, slots: Slots, drawn: Drawn, settings: DrawSettings) -> None:
        sample(
            logits_RV,
            drawn,
            temperature_R=settings.temperature_R,
            top_k_R=settings.top_k_R,
            top_p_R=settings.top_p_R,
            min_p_R=settings.min_p_R,
            key_R2=slots.key,
            sample_index_R=slots.sample_index,
            position_R=slots.num_generated,
            banned_RB=settings.banned(self.sampling, slots.num_generated, slots.min_tokens, slots.eos),
        )
        sequence_step(slots, drawn.token_R, drawn.logp_R, drawn.log_kept_mass_R, drawn.entropy_R, drawn.status_R)

    def _bucket(self, num_rows: int) -> _Bucket:
        """The first rows alone."""
        if num_rows not in self._buckets:
            plan = replace(
                self.plan,
                num_rows=num_rows,
                members_S=self.plan.members_S[:num_rows],
                partial_begin=self.plan.partial_begin[: num_rows + 1],
            )
            slots = self.slots.rows(0, num_rows)
            context = DecodeContext(self.store, plan, slots.kv_slot, slots.page_table, self.tables.prefix_pages_GM)
            drawn, settings = self.drawn.rows(0, num_rows), self.settings.rows(0, num_rows)
            self._buckets[num_rows] = _Bucket(slots, context, drawn, settings)
        return self._buckets[num_rows]


@dataclass(frozen=True)
class _Bucket:
    """Views of the first rows, made once."""

    slots: Slots
    context: DecodeContext
    drawn: Drawn
    settings: DrawSettings


def _rest_values(slots: Slots) -> tuple[tuple[Tensor, int], ...]:
    """What a row has that nobody is in."""
    return (slots.state, RESTING), (slots.suffix_length, 0), (slots.group, -1), (slots.kv_slot, -1)


SavedRow = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class RowStart:
    """A sample that begins: the position of its prompt's last token, its group's place in the tables, its key."""

    position: int
    max_tokens: int
    group: int
    key: tuple[int, int]
    sample_index: int


@dataclass(frozen=True)
class Ended:
    """What the device drew for one sample: int64 and fp32 [C], on the CPU; whether a token ended it."""

    token_ids: Tensor
    logp: Tensor
    log_kept_mass: Tensor
    entropy: Tensor
    by_token: bool


def signed(word: int) -> int:
    """The int32 of the same bits."""
    return word - (word >> 31 << 32)


def _addresses(module: torch.nn.Module) -> tuple[int, ...]:
    """Where the parameters and buffers are."""
    return tuple(tensor.data_ptr() for tensor in chain(module.parameters(), module.buffers()))
