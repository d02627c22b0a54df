"""Does this process stand still, and who is to blame? From its own report and from what was heard of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from r1fast.heartbeats import Heard, Report

SILENT_SHARE = 0.5  # of the limit: a process whose watchdog does not report for that long counts as lost


@dataclass(frozen=True)
class Verdict:
    """`stuck`: the run must end; `slow`: those of `ranks` are waited for, and make progress."""

    kind: Literal["stuck", "slow"]
    text: str
    ranks: tuple[int, ...] = ()


def judge(own: Report, heard: Mapping[int, Heard], world_size: int, *, slow_s: float) -> Verdict | None:
    """None while all is well.

    A process that works stands still when it has made no progress for its limit. One that waits in a collective is
    stuck after its limit if somebody whom it waits for is silent, or if nobody makes progress; while one does, that
    one is slow.
    """
    limited = own.limit_s > 0 and own.still_s >= own.limit_s
    if not own.waits:
        if not limited:
            return None
        return Verdict("stuck", f"{_who(own)} made no progress {_for(own)}", (own.rank,))
    if not limited and not 0 < slow_s <= own.still_s:
        return None
    missing = [rank for rank in range(world_size) if rank != own.rank and not _arrived(own, heard.get(rank))]
    silent = [rank for rank in missing if _is_silent(own, heard.get(rank))]
    moving = [rank for rank in missing if rank not in silent and _moves(heard[rank].report)]
    if limited and (silent or not moving):
        return Verdict("stuck", f"{_who(own)} waited in {_collective(own)} {_for(own)}; {_blame(own, missing, heard)}")
    if moving and 0 < slow_s <= own.still_s:
        who = "; ".join(_described(heard[rank].report) for rank in moving)
        text = f"rank {own.rank} has waited {own.still_s:.0f} s in {_collective(own)} for {who}: slow, but it goes on"
        return Verdict("slow", text, tuple(moving))
    return None


def _arrived(own: Report, other: Heard | None) -> bool:
    return other is not None and other.report.num_collectives >= own.num_collectives


def _is_silent(own: Report, other: Heard | None) -> bool:
    return other is None or 0 < SILENT_SHARE * own.limit_s <= other.silent_s


def _moves(report: Report) -> bool:
    """Whether it works and has not used up its limit; one without a limit is trusted."""
    return not report.waits and (report.limit_s == 0 or report.still_s < report.limit_s)


def _blame(own: Report, missing: list[int], heard: Mapping[int, Heard]) -> str:
    if not missing:
        elsewhere = [o.report for o in heard.values() if o.report.waits and o.report.collective != own.collective]
        if elsewhere:
            return f"{' and '.join(f'rank {r.rank} waits in {_collective(r)}' for r in elsewhere)}: they do not match"
        return "all ranks have arrived there: the network or a device hangs"
    told = []
    for rank in missing:
        if (other := heard.get(rank)) is None:
            told.append(f"rank {rank} (nothing heard of it: ended, stopped or out of reach)")
        else:
            told.append(_described(other.report, other.silent_s))
    return f"missing: {'; '.join(told)}"


def _described(report: Report, silent_s: float = 0.0) -> str:
    last = f", last collective {_collective(report)}" if report.num_collectives else ""
    waits = ", waits in it" if report.waits else ""
    silent = f", silent for {silent_s:.0f} s" if silent_s >= 1.0 else ""
    return (
        f"rank {report.rank} ({report.phase}: {report.doing or 'nothing yet'}, {report.still_s:.0f} s ago{last}{waits}"
        f"{silent}; process {report.pid} on {report.host})"
    )


def _who(report: Report) -> str:
    return f"rank {report.rank} (process {report.pid} on {report.host}), phase {report.phase},"


def _for(report: Report) -> str:
    last = f", last collective {_collective(report)}" if report.num_collectives and not report.waits else ""
    return (
        f"for {report.still_s:.0f} s (last progress: {report.doing or 'none'}{last}; "
        f"limit faults.{report.phase}_s = {report.limit_s:g})"
    )


def _collective(report: Report) -> str:
    return f"{report.collective} #{report.num_collectives}"
