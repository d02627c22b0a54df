"""One call of the engine: who is in the batch, who waits, who is on the host, and what has finished."""

# R rows of the batch, N samples of the call, P prompts of one prefill, T packed prompt tokens

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import torch

from r1fast.ops.page_pool import PagePool, PoolExhausted
from r1fast.ops.sequence_step import ENDED_BY_LENGTH, ENDED_BY_TOKEN, FAULT, LIVE
from r1fast.policy import Policy
from r1fast.rollout.batch import DecodeBatch, RowStart, SavedRow
from r1fast.rollout.call import Call, Work, pages_for
from r1fast.rollout.completions import Completions
from r1fast.rollout.guesses import Guesses
from r1fast.rollout.page_store import PageStore

PREFILL_TOKENS = 16384  # of one packed prompt batch; a longer prompt runs alone, in chunks
CHUNK_TOKENS = 2048  # of a long prompt
REFILL_SHARE = 8  # wait for 1 / 8 of the rows to be free, so that prompts run in larger batches


@dataclass
class _Member:
    """A sequence that has begun: its sample of the call, its handle, when it began, its tokens in the cache."""

    sample: int
    sequence: int
    order: int
    num_written: int = 0
    num_read: int = 0  # tokens that had no stop string
    saved: SavedRow | None = None
    """Its row's state, while it is on the host."""


class Generation:
    """Rows 0 to `len(members)` of the batch are taken; `members[row]` is None once its sequence has ended.

    `close()` gives everything back, also after an exception in the middle of a step.
    """

    def __init__(
        self,
        policy: Policy,
        call: Call,
        batch: DecodeBatch,
        pool: PagePool,
        store: PageStore,
        *,
        rows: int,
        guesses: Guesses | None = None,
    ) -> None:
        self.policy, self.call, self.batch, self.pool, self.store, self.rows = policy, call, batch, pool, store, rows
        self.guesses = guesses
        self.waiting = deque(call.works(rows, store.num_pages))
        self.members: list[_Member | None] = []
        self.parked: list[_Member] = []
        self.completions = Completions(policy, call)
        self._sequences: list[int] = []  # all that began, so that none is lost where an exception comes in between

    @property
    def unfinished(self) -> bool:
        return bool(self.waiting or self.parked or self.members)

    @property
    def num_live(self) -> int:
        return sum(member is not None for member in self.members)

    def advance(self, steps: int) -> None:
        """Fill free rows, then decode until the host has to look again: at most `steps` tokens a row."""
        if not self._admit() and self.members and not self._decode_guesses():
            if self.guesses is not None and self.guesses.room(len(self.members)):
                steps = 1  # what it draws may be the beginning of something known
            if self.policy.device.type == "cpu":  # where the host sees at once what has ended
                steps = min(steps, self._steps_to_a_limit())
            self._reserve(steps)
            self._decode(steps)

    def tokens_of(self, sample: int) -> list[int]:
        """What a sample of the call has drawn so far."""
        if (ended := self.completions.ended.get(sample)) is not None:
            return [int(token) for token in ended.token_ids]
        row = next((row for row, member in enumerate(self.members) if member and member.sample == sample), None)
        return [] if row is None else self.batch.tokens(row, self._member(row).num_written + 1)

    def close(self) -> None:
        """Free every page."""
        self.members, self.parked = [], []
        self.pool.free([sequence for sequence in self._sequences if self.pool.has_sequence(sequence)])
        self.pool.drop_prefixes()

    # --- who is in the batch ---

    def _admit(self) -> bool:
        """Whether a prefill has run: its rows have their first tokens, and some may have ended."""
        self._return_parked()
        free = self.rows - self.num_live
        if self.parked or not self.waiting or free < self.waiting[0].count:
            return False
        if self.num_live and free < self.rows // REFILL_SHARE:
            return False
        works = self._affordable(free)
        if works:
            self._compact()
            self._prefill(works)
            self._look()
        return bool(works)

    def _affordable(self, free_rows: int) -> list[Work]:
        """Take the works that fit: rows, one prefill's tokens, pages (two a sample while others are live, if it may
        need two).
        """
        works: list[Work] = []
        num_tokens, free_pages = 0, self.pool.num_free
        while self.waiting and self.waiting[0].count <= free_rows:
            work = self.waiting[0]
            prompt_tokens = len(self.call.prompts[work.prompt_index].token_ids)
            at_least = 1 if not works and not self.num_live else min(2, pages_for(self.call.longest_of(work)))
            pages = pages_for(prompt_tokens) + work.count * at_least
            num_tokens += prompt_tokens
            if pages > free_pages or (works and num_tokens > PREFILL_TOKENS):
                break
            free_rows, free_pages = free_rows - work.count, free_pages - pages
            works.append(self.waiting.popleft())
        return works

    def _return_parked(self) -> None:
        """Bring back those that have begun, oldest first, while there is room for them and for the others to grow."""
        while self.parked and self.num_live < self.rows:
            member = self.parked[0]
            group = self.pool.group_of(member.sequence)
            prefix = self.pool.prefix(group)
            pages = pages_for(member.num_written) + 1 + (len(prefix.pages) if prefix.on_host else 0)
            if pages + self.num_live > self.pool.num_free:
                if self.num_live:
                    return
                self._restart(self.parked.pop())  # another's prefix is in the way, for which the host has no room
                continue
            if prefix.on_host:
                self.store.swap_in(self.pool.swap_in_group(group))
            self.store.swap_in(self.pool.swap_in([member.sequence]))
            row = self._free_row()
            self.pool.bind(member.sequence, row)
            self.store.copy(self.pool.reserve([member.sequence]))
            slot = int(self.pool.next_slots([member.sequence])[0])
            assert member.saved is not None
            self.batch.restore(row, member.saved, group=int(self.pool.tables.group_S[row]), kv_slot=slot)
            self.members[row], member.saved = member, None
            self.parked.pop(0)

    def _free_row(self) -> int:
        if None not in self.members:
            self.members.append(None)
        return self.members.index(None)

    def _make_room(self) -> None:
        """The youngest sequence leaves: to the host, or, where that is full too, back to the start of its sample."""
        rows = [row for row, member in enumerate(self.members) if member is not None]
        if len(rows) == 1:  # it must go on; what still holds pages are prefixes of those that found no room to leave to
            assert self.parked, "a sample fits into the cache by itself: Call.check saw to that"
            self._restart(self.parked.pop())
            return
        row = max(rows, key=lambda row: self._member(row).order)
        member = self._member(row)
        self.members[row] = None
        try:
            moves = self.pool.swap_out([member.sequence])
        except PoolExhausted:
            self._restart(member)
        else:
            self.store.swap_out(moves)
            member.saved = self.batch.save(row)
            self.parked.append(member)
            self.parked.sort(key=lambda member: member.order)
            self._park_prefix(self.pool.group_of(member.sequence))
        self.batch.rest(row)

    def _park_prefix(self, group: int) -> None:
        """A prefix without members in the batch goes to the host, if there is room."""
        live = (member.sequence for member in self.members if member is not None)
        if all(self.pool.group_of(sequence) != group for sequence in live):
            with suppress(PoolExhausted):
                self.store.swap_out(self.pool.swap_out_group(group))

    def _restart(self, member: _Member) -> None:
        """Draw a sample again from its first token, later: its key makes it the same."""
        self.pool.free([member.sequence])
        self.waiting.append(Work(*divmod(member.sample, self.call.group_size), 1))

    def _member(self, row: int) -> _Member:
        member = self.members[row]
        assert member is not None
        return member

    def _compact(self) -> None:
        """Move the last live rows into the rows that have ended, so that rows 0 to `num_live` are live."""
        num_live = self.num_live
        free = [row for row in range(num_live) if self.members[row] is None]
        moving = [row for row in range(num_live, len(self.members)) if self.members[row] is not None]
        for source, target in zip(moving, free, strict=True):
            member = self._member(source)
            self.pool.unbind(member.sequence)
            self.pool.bind(member.sequence, target)
            self.members[target] = member
        del self.members[num_live:]
        self.batch.move(moving, free)
        self._upload()

    # --- prompts ---

    def _prefill(self, works: list[Work]) -> None:
        """Run the prompts, write their keys and values, and draw the first tokens of their rows."""
        first_row, slots = len(self.members), []
        starts: list[RowStart] = []
        for work in works:
            prompt = self.call.prompts[work.prompt_index]
            group = self.pool.add_group(len(prompt.token_ids))
            slots.append(self.pool.prefix_slots(group, 0, len(prompt.token_ids)))
            sequences = self.pool.add_sequences(group=group, count=work.count)
            order = len(self._sequences) - work.first
            self._sequences += sequences
            self.pool.release_group(group)  # for no other members
            for index, sequence in enumerate(sequences, work.first):
                row, sample = len(self.members), work.prompt_index * self.call.group_size + index
                self.members.append(_Member(sample, sequence, order + index))
                self.pool.bind(sequence, row)
                starts.append(
                    RowStart(
                        position=len(prompt.token_ids) - 1,
                        max_tokens=self.call.max_tokens[sample],
                        group=int(self.pool.tables.group_S[row]),
                        key=self.call.keys[work.prompt_index],
                        sample_index=index,
                    )
                )
        self._reserve_pages(self.members[first_row:], 1)
        self._upload()
        self.batch.begin(first_row, starts)
        prompts = [self.call.prompts[work.prompt_index] for work in works]
        if len(prompts) == 1 and len(prompts[0].token_ids) > PREFILL_TOKENS:
            hidden_PD = self.batch.run_long_prompt(prompts[0].token_ids, slots[0], CHUNK_TOKENS)
        else:
            hidden_PD = self.batch.run_prompts([prompt.token_ids for prompt in prompts], slots)
        prompt_of_row = torch.arange(len(works)).repeat_interleave(torch.tensor([work.count for work in works]))
        self.batch.first_tokens(hidden_PD, prompt_of_row, first_row)

    # --- tokens ---

    def _steps_to_a_limit(self) -> int:
        """Until max_tokens ends a row: no other is given pages for tokens after that."""
        return min(self.call.max_tokens[m.sample] - 1 - m.num_written for m in self.members if m is not None)

    def _reserve(self, steps: int) -> None:
        """Pages for `steps` tokens of each row and the one after them, so that no row waits for a page."""
        while True:
            try:
                self._reserve_pages(self.members, steps + 1)
                break
            except PoolExhausted:
                self._make_room()
        self._upload()

    def _reserve_pages(self, taken: Sequence[_Member | None], num_tokens: int) -> None:
        members = [member for member in taken if member is not None]
        # the last token of a completion is never written
        counts = [min(num_tokens, self.call.max_tokens[m.sample] - 1 - m.num_written) for m in members]
        self.store.copy(self.pool.reserve([member.sequence for member in members], counts))

    def _decode(self, steps: int) -> None:
        num_rows = self.batch.rows_for(len(self.members))
        for _ in range(steps):
            self.batch.step(num_rows)
            if self.batch.is_to_be_looked_at():  # looking costs nothing on a CPU, and is not done on a GPU
                break
        self._look()

    def _decode_guesses(self) -> bool:
        """One step with guesses, where there are any, and rows and pages for them."""
        if self.guesses is None:
            return False
        left = {
            row: (m.sample, m.num_written + 1, self.call.max_tokens[m.sample] - m.num_written - 2)
            for row, m in enumerate(self.members)
            if m is not None
        }
        found = self.guesses.of_rows(left, self.guesses.room(len(self.members)))
        if not found:
            return False
        try:
            self._reserve_pages(self.members, max(map(len, found.values())) + 2)
        except PoolExhausted:
            return False
        self._upload()
        self.guesses.count(sum(map(len, found.values())), self.batch.guess_step(len(self.members), found))
        self._look()
        return True

    def _look(self) -> None:
        """See who has ended, and write down how far the others are; then raise for the first row that failed."""
        live: list[tuple[_Member, int]] = []
        ended: list[_Member] = []
        faults: list[tuple[int, int]] = []
        for row, (state, num_generated) in enumerate(self.batch.progress(len(self.members))):
            member = self.members[row]
            if member is None:
                continue
            if self.guesses is not None:
                known = self.guesses.num_seen(member.sample)
                self.guesses.see(member.sample, self.batch.tokens(row, num_generated, known))
            if state in (LIVE, ENDED_BY_TOKEN, ENDED_BY_LENGTH) and (stop := self._stop(row, num_generated)):
                self.completions.add(member.sample, self.batch.take(row, stop, by_token=True))
                self.batch.rest(row)
                ended.append(member)
                self.members[row] = None
            elif state == LIVE:
                live.append((member, num_generated - 1 - member.num_written))
                member.num_written = num_generated - 1
            elif state in (ENDED_BY_TOKEN, ENDED_BY_LENGTH):
                self.completions.add(
                    member.sample, self.batch.take(row, num_generated, by_token=state == ENDED_BY_TOKEN)
                )
                ended.append(member)
                self.members[row] = None
            else:
                assert state == FAULT, "every row has the pages that _reserve gave it"
                faults.append((row, num_generated))
        self.pool.advance([member.sequence for member, _ in live], [count for _, count in live])
        self.pool.free([member.sequence for member in ended])
        if self.guesses is not None:
            for member in ended:
                self.guesses.end(member.sample)
        if faults:  # not before those that ended in the same steps are kept, and while rows are where they were
            self._fault(*faults[0])
        while self.members and self.members[-1] is None:
            self.members.pop()
        if self.batch.rows_for(self.num_live) < self.batch.rows_for(len(self.members)):
            self._compact()

    def _stop(self, row: int, num_generated: int) -> int:
        """Tokens up to the one that completes a stop string; 0 where there is none."""
        if not self.call.sampling.stop:
            return 0
        member = self._member(row)
        seen, member.num_read = member.num_read, num_generated
        return self.completions.stopped_at(self.batch.tokens(row, num_generated), seen)

    def _fault(self, row: int, num_generated: int) -> NoReturn:
        raise self.call.fault(
            self._member(row).sample,
            num_generated + 1,
            version=self.policy.version,
            no_choice=self.batch.had_no_choice(row),
        )

    def _upload(self) -> None:
        if self.batch.tables is not self.pool.tables:
            self.pool.upload(self.batch.tables)
