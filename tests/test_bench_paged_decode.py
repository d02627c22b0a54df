"""The decode bench: its batches are what it says, and a wrong kernel is never timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import bench_paged_decode
from bench.bench_paged_decode import GROUP, Batch, Paged, cases, num_bytes, padded
from bench.harness import Settings, WrongResult, measure


def test_a_wrong_kernel_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_paged_decode.attention_merge

    def wrong(plan: Any, output: torch.Tensor) -> None:
        right(plan, output)
        output.mul_(1.5)

    monkeypatch.setattr(bench_paged_decode, "attention_merge", wrong)
    monkeypatch.setattr("bench.harness._time", lambda *args: pytest.fail("timed"))
    (case,) = cases("cpu", "tiny")
    with pytest.raises(WrongResult, match="over the largest value"):
        measure("bench.bench_paged_decode", case, Settings(memory=False))


def test_sequences_of_a_group_share_their_prefix_and_nothing_else() -> None:
    batch = Batch(2 * GROUP, 30, 140, 70, 2, 1, 64)
    keys, values, mask = padded(batch, Paged(batch, "cpu"), "cpu")
    totals = [70 + tokens for tokens in batch.suffixes]
    assert min(totals) > 70 and max(totals) <= 140
    assert mask[:, 0, 0].sum(1).tolist() == totals
    for x in (keys, values):
        assert not x.isnan().any()
        assert torch.equal(x[0, :, :70], x[GROUP - 1, :, :70])
        assert not torch.equal(x[0, :, :70], x[GROUP, :, :70])
        assert not torch.equal(x[0, :, 70:71], x[1, :, 70:71])
    assert num_bytes(batch) == 4 * 64 * (sum(totals) - (len(totals) - 2) * 70)  # a prefix counts once for its group


def test_the_judged_batches() -> None:
    judged = list(cases("cpu"))
    assert [(case.shape["H"], case.shape["K"], case.shape["D"], case.shape["prefix"]) for case in judged] == [
        (9, 3, 64, 0),
        (28, 4, 128, 0),
        (9, 3, 64, 512),
        (28, 4, 128, 512),
    ]
