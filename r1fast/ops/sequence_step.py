"""From one token of each row of the decode batch to the next, on the device: output, stop check, next step's inputs.

With it a decode step (decode_plan, the model with kv_append and paged_decode in each layer, sample, sequence_step)
never needs the host, which looks every few steps to take out rows that ended, put in others and reserve pages.
"""

# S rows (slots) of the batch, E tokens that end a sequence, P pages of a table's row, N tokens of a row's outputs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from r1fast.ops.checks import check_tensor, describe
from r1fast.ops.compiled import compiled_op
from r1fast.ops.extension import extension
from r1fast.ops.run import run

RESTING, LIVE, ENDED_BY_TOKEN, ENDED_BY_LENGTH, FAULT, NO_PAGE = 0, 1, 2, 3, 4, 5

NUM_COUNTS = 4
SHARED = ("page_table", "eos", "counts")  # what is not of a row, or is the caller's
WRITTEN = (
    *("token", "position", "suffix_length", "kv_slot", "group", "num_generated", "state", "counts"),
    *("tokens_SN", "logp_SN", "log_kept_mass_SN", "entropy_SN"),
)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The rows of the decode batch, in buffers whose addresses stay: a CUDA graph may hold them. int32 unless said.

    A sample begins with state LIVE, num_generated 0, suffix_length 0 and position = tokens of its prompt - 1: what is
    drawn first comes from the prompt's last logits. `counts` is of the last step alone: rows live after it, rows that
    it ended, rows that it found without a page, rows with a fault; who looks every few steps reads `state`.
    """

    token: Tensor  # [S] goes through the model in the next step
    position: Tensor  # [S] its place in the sequence: prompt + generated
    suffix_length: Tensor  # [S] tokens of the row's own segment with it, for decode_plan; 0: the row rests
    kv_slot: Tensor  # [S] page * 64 + place in the page, for kv_append; -1: the row rests
    group: Tensor  # [S] whose prefix the row continues; -1: none, or the row rests
    num_generated: Tensor  # [S]
    max_tokens: Tensor  # [S] 1 to N
    min_tokens: Tensor  # [S] with fewer, `eos` does not end the row
    state: Tensor  # [S]
    sample_index: Tensor  # [S] the caller's
    key: Tensor  # [S, 2] Philox words of the row's randomness, as bit patterns
    page_table: Tensor  # [S, P] pages of the row's own segment; -1: no page
    eos: Tensor  # [E]
    counts: Tensor  # [4]
    tokens_SN: Tensor  # what was drawn, the token that ended the row included
    logp_SN: Tensor  # fp32, as are the next two: what `sample` said of it
    log_kept_mass_SN: Tensor
    entropy_SN: Tensor

    @classmethod
    def allocate(
        cls,
        *,
        rows: int,
        max_tokens: int,
        eos: Sequence[int],
        page_table: Tensor,
        device: torch.device | str = "cpu",
    ) -> Slots:
        """Resting rows with room for `max_tokens` generated tokens each. `page_table` stays the caller's.

        Raises ValueError.
        """
        for name, value in (("rows", rows), ("max_tokens", max_tokens)):
            if not 1 <= value < 2**31:
                raise ValueError(f"{name} = {value} must be 1 to {2**31 - 1}")
        for token in eos:
            if not 0 <= token < 2**31:
                raise ValueError(f"eos has {token}; a token is 0 to {2**31 - 1}")
        if page_table.ndim != 2:
            raise ValueError(f"page_table must be int32 [{rows}, pages], it is {describe(page_table)}")

        def integers(fill: int, *shape: int) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int32, device=device)

        state = integers(RESTING, rows)
        check_tensor("page_table", page_table, torch.int32, (rows, page_table.shape[1]), state.device)
        return cls(
            token=integers(0, rows),
            position=integers(0, rows),
            suffix_length=integers(0, rows),
            kv_slot=integers(-1, rows),
            group=integers(-1, rows),
            num_generated=integers(0, rows),
            max_tokens=integers(max_tokens, rows),
            min_tokens=integers(0, rows),
            state=state,
            sample_index=integers(0, rows),
            key=integers(0, rows, 2),
            page_table=page_table,
            eos=torch.tensor(list(eos), dtype=torch.int32, device=device),
            counts=integers(0, NUM_COUNTS),
            tokens_SN=integers(0, rows, max_tokens),
            logp_SN=torch.zeros(rows, max_tokens, device=device),
            log_kept_mass_SN=torch.zeros(rows, max_tokens, device=device),
            entropy_SN=torch.zeros(rows, max_tokens, device=device),
        )

    @property
    def row_fields(self) -> tuple[str, ...]:
        """Names of the tensors of a row, `page_table` excepted: what is saved with a row and copied to another."""
        return tuple(field.name for field in fields(self) if field.name not in SHARED)

    def rows(self, begin: int, end: int) -> Slots:
        """Rows `begin` to before `end`, in the same memory, with the same `eos` and `counts`. Raises ValueError."""
        num_rows = self.state.shape[0]
        if not 0 <= begin < end <= num_rows:
            raise ValueError(f"rows {begin} to {end} must be a range of the {num_rows}, not empty")
        views = {name: getattr(self, name)[begin:end] for name in (*self.row_fields, "page_table")}
        return replace(self, **views)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Everything of `row_fields` from each source to its target, such as rows at the end to gaps before them.

        Pages stay where they are, so `kv_slot` stays right; `page_table` is for the pool to write. Raises ValueError
        where a row is out of range, listed twice as a target, or both a source and a target.
        """
        num_rows = self.state.shape[0]
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources for {len(targets)} targets; give one for each")
        for name, listed in (("sources", sources), ("targets", targets)):
            if wrong := [row for row in listed if not 0 <= row < num_rows]:
                raise ValueError(f"{name} has row {wrong[0]}; the rows are 0 to {num_rows - 1}")
        if len(set(targets)) != len(targets):
            raise ValueError(f"targets {list(targets)} has a row twice; a row can have one source")
        if both := sorted(set(sources) & set(targets)):
            raise ValueError(f"rows {both} are sources and targets; copy in two calls")
        if not targets:
            return
        source, target = (torch.tensor(list(listed), device=self.state.device) for listed in (sources, targets))
        for name in self.row_fields:
            tensor = getattr(self, name)
            tensor.index_copy_(0, target, tensor.index_select(0, source))

    def check(self) -> None:
        """Raises RuntimeError where a row has a fault or no page, with its numbers. On CUDA it waits for the device."""
        found = []
        for row, state in enumerate(self.state.tolist()):
            if state == FAULT:
                found.append(
                    f"row {row}: its draw failed, or its own numbers are out of range (num_generated = "
                    f"{int(self.num_generated[row])} of max_tokens = {int(self.max_tokens[row])}, the outputs have "
                    f"room for {self.tokens_SN.shape[1]}; position = {int(self.position[row])})"
                )
            elif state == NO_PAGE:
                found.append(
                    f"row {row}: no page for its next token (num_generated = {int(self.num_generated[row])}, a row of "
                    f"page_table has {self.page_table.shape[1]} pages); reserve pages before they are needed"
                )
            elif not RESTING <= state <= NO_PAGE:
                found.append(f"row {row}: state = {state} is none")
        if found:
            raise RuntimeError("the decode batch cannot go on: " + "; ".join(found))


@compiled_op(writes=tuple(f"slots.{name}" for name in WRITTEN))
def sequence_step(
    slots: Slots,
    drawn_token_S: Tensor,
    logp_S: Tensor,
    log_kept_mass_S: Tensor,
    entropy_S: Tensor,
    status_S: Tensor,
) -> None:
    """Append what `sample` drew (int32, three of fp32, int32 status) to each live row, and prepare the next step.

    A token of `eos` from `min_tokens` on ends the row, and so does the one that makes `max_tokens`; it is in the
    outputs then, but goes through the model no more. A row whose status is not 0, or whose numbers are out of range,
    becomes FAULT and gets nothing; one whose next token has no page becomes NO_PAGE: `slots.check()` tells. A row that
    does not live on rests for decode_plan and kv_append. Rows that were not live are not touched. Raises ValueError
    for tensors that do not fit.
    """
    num_rows, capacity = slots.tokens_SN.shape
    device = slots.state.device
    check_tensor("drawn_token_S", drawn_token_S, torch.int32, (num_rows,), device)
    check_tensor("logp_S", logp_S, torch.float32, (num_rows,), device)
    check_tensor("log_kept_mass_S", log_kept_mass_S, torch.float32, (num_rows,), device)
    check_tensor("entropy_S", entropy_S, torch.float32, (num_rows,), device)
    check_tensor("status_S", status_S, torch.int32, (num_rows,), device)
    params = extension().SequenceStepParams(
        drawn_token=drawn_token_S.data_ptr(),
        drawn_logp=logp_S.data_ptr(),
        drawn_kept_mass=log_kept_mass_S.data_ptr(),
        drawn_entropy=entropy_S.data_ptr(),
        drawn_status=status_S.data_ptr(),
        eos=slots.eos.data_ptr(),
        page_table=slots.page_table.data_ptr(),
        max_tokens=slots.max_tokens.data_ptr(),
        min_tokens=slots.min_tokens.data_ptr(),
        state=slots.state.data_ptr(),
        num_generated=slots.num_generated.data_ptr(),
        token=slots.token.data_ptr(),
        position=slots.position.data_ptr(),
        suffix_length=slots.suffix_length.data_ptr(),
        kv_slot=slots.kv_slot.data_ptr(),
        group=slots.group.data_ptr(),
        tokens=slots.tokens_SN.data_ptr(),
        logp=slots.logp_SN.data_ptr(),
        log_kept_mass=slots.log_kept_mass_SN.data_ptr(),
        entropy=slots.entropy_SN.data_ptr(),
        counts=slots.counts.data_ptr(),
        num_rows=num_rows,
        num_eos=slots.eos.shape[0],
        table_pages=slots.page_table.shape[1],
        capacity=capacity,
    )
    run("sequence_step", params, slots.state)
