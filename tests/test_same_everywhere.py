"""The same training on 1, 2 and 4 processes, by every engine and stage of ZeRO, however it is split and packed."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_groups
from same_training import check_same

pytest.importorskip("deepspeed")


def few(rank: int, directory: Path) -> None:
    check_same(rank, directory, examples=4)


def fewest(rank: int, directory: Path) -> None:
    check_same(rank, directory, examples=2)


def fewest_offloaded(rank: int, directory: Path) -> None:
    check_same(rank, directory, examples=1, engines=("1 cpu", "2 cpu", "3 cpu"))


def many(rank: int, directory: Path) -> None:
    check_same(rank, directory, examples=40)


def test_same_gradients_parameters_and_metrics(tmp_path: Path) -> None:
    run_groups([(1, fewest), (2, few), (4, fewest), (2, fewest_offloaded)], tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 7


@pytest.mark.slow
def test_same_gradients_parameters_and_metrics_in_many_cases(tmp_path: Path) -> None:
    run_groups([(size, many) for size in (1, 2, 4)], tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 7
