"""The decode bench: its batches are what it says, and a wrong kernel is never timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import bench_paged_decode
from bench.bench_paged_decode import COPY, GROUP, OWN, Batch, Paged, cases, num_bytes, padded, whole_pages
from bench.decode_peers import FLASHINFER, VARLEN
from bench.harness import Measured, Settings, WrongResult, measure


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


@pytest.mark.parametrize("prefix", [0, 64])
def test_peers_read_the_same_tokens_from_whole_pages(prefix: int) -> None:
    batch = Batch(2 * GROUP, 30, 140, prefix, 2, 1, 64)
    paged = Paged(batch, "cpu")
    keys, values, _ = padded(batch, paged, "cpu")
    whole = whole_pages(batch, paged)
    assert whole is not None
    for x, expected in ((whole.keys, keys), (whole.values, values)):
        written = whole.written(x)
        for row, (table, length) in enumerate(zip(whole.table_SM(), whole.lengths, strict=True)):
            found = written[table.long()].transpose(1, 2).flatten(0, 1)
            assert torch.equal(found[:length], expected[row, :, :length].transpose(0, 1))
    if prefix:
        assert whole.pages[0][0] == whole.pages[1][0] != whole.pages[GROUP][0]
    assert whole_pages(Batch(GROUP, 80, 90, 70, 2, 1, 64), Paged(Batch(GROUP, 80, 90, 70, 2, 1, 64), "cpu")) is None


def test_peers_that_cannot_run_are_told() -> None:
    settings = Settings(memory=False, kinds=("own", "peer"), rounds=1, budget_s=0)
    (case,) = cases("cpu", "tiny")
    rows, _ = measure("bench.bench_paged_decode", case, settings)
    assert {row["variant"]: row["status"] for row in rows if row["kind"] == "peer"} == {
        FLASHINFER: "needs a prefix of whole pages",
        VARLEN: "needs a prefix of whole pages",
    }


def test_what_a_gpu_must_reach() -> None:
    samples = {OWN: [1.0], FLASHINFER: [1.3], VARLEN: [1.6], COPY: [0.9]}
    found = {
        case.shape["high"]: [(figure.value, figure.limit) for figure in case.figures(Measured({}, samples))]
        for case in cases("cuda")
        if not case.shape["prefix"]
    }
    assert found == {
        256: [(1.3, 1.2), (1.6, 1.2), (0.9, 0.65)],
        512: [(1.3, 1.2), (1.6, 1.2)],
        1024: [(1.3, 1.0), (1.6, 1.0), (0.9, 0.85)],
        4096: [(1.3, 1.0), (1.6, 1.0), (0.9, 0.85)],
    }
    *_, shared = cases("cuda")
    assert [(figure.limit, figure.record()["met"]) for figure in shared.figures(Measured({}, samples))] == [
        (1.5, False),
        (1.5, True),
    ]


def test_the_judged_batches() -> None:
    judged = list(cases("cpu"))
    assert [(case.shape["H"], case.shape["K"], case.shape["D"], case.shape["prefix"]) for case in judged] == [
        (9, 3, 64, 0),
        (28, 4, 128, 0),
        (9, 3, 64, 512),
        (28, 4, 128, 512),
    ]
