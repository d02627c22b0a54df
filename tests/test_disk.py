"""Space for a run: the estimate against what runs really write, and which errors mean a full disk."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.config import STAGES, ConfigError
from r1fast.disk import (
    NUM_CHECKPOINTS,
    STATE_BYTES,
    TEXT_BYTES,
    check_directory,
    existing_parent,
    format_bytes,
    is_disk_full,
    run_bytes,
    saved_bytes,
)
from r1fast.options import parse
from r1fast.train import main


def tree_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_every_stage_with_a_checkpoint_is_counted(tmp_path: Path) -> None:
    config = parse([]).config
    need = run_bytes(config, STAGES, num_params=1000, student_params=10, compute_bytes=2)
    states = 3 * 1000 * STATE_BYTES
    assert need == TEXT_BYTES + states + 2 * (5 * 1000 + 2 * 10) + 4 * 2 * 1000  # reward models in float32
    assert set(NUM_CHECKPOINTS) < set(STAGES)


def test_a_run_without_saved_states_still_saves_one_on_sigterm() -> None:
    config = parse(["--run.save_every_steps", "0"]).config
    need = run_bytes(config, ["r1_zero"], num_params=1000, student_params=0, compute_bytes=4)
    assert need == TEXT_BYTES + 1000 * STATE_BYTES + 4000


def test_a_real_run_writes_less_than_the_estimate(tmp_path: Path) -> None:
    words = ["--recipe", "smoke", "--pipeline.stages", "base,r1_zero", "--run", str(tmp_path / "run")]
    assert main(words) == 0
    written = tree_bytes(tmp_path / "run")
    need = run_bytes(parse(words).config, ["base", "r1_zero"], num_params=1_035_136, student_params=0, compute_bytes=4)
    assert 4 * 1_035_136 < written < need


def test_check_directory_asks_the_nearest_directory_there_is(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert check_directory(tmp_path / "a" / "b", 1) > 0
    with pytest.raises(ConfigError, match=r"a: .* are free there, this run writes about 1,048,576\.00 GiB"):
        check_directory(tmp_path / "a", 1 << 50)
    assert not (tmp_path / "a").exists()


def test_a_run_that_goes_on_needs_no_room_for_the_states_it_has(tmp_path: Path) -> None:
    """On a disk that was large enough for its start, it would else be refused when it is started again."""
    need_bytes = shutil.disk_usage(tmp_path).free + (64 << 30)
    with pytest.raises(ConfigError, match="are free there"):
        check_directory(tmp_path, need_bytes)
    for number in range(2):
        path = tmp_path / "stages" / "01-r1_zero" / "state" / f"step-0000001{number}-0.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(64 << 30)  # takes no space
    assert saved_bytes(tmp_path) == 128 << 30
    assert check_directory(tmp_path, need_bytes) < need_bytes


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_errors_that_mean_a_full_disk(error: Exception, tmp_path: Path) -> None:
    assert is_disk_full(error, tmp_path)
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("a library's own words") from cause
    except RuntimeError as outer:
        assert is_disk_full(outer, tmp_path)


def test_errors_that_do_not(tmp_path: Path) -> None:
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"), tmp_path)
    assert not is_disk_full(RuntimeError("unexpected pos 704 vs 598"), tmp_path)  # there is space: something else


@given(st.integers(0, 1 << 60))
def test_format_bytes_is_short_and_right(num_bytes: int) -> None:
    number, unit = format_bytes(num_bytes).split()
    scale = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit]
    assert abs(float(number.replace(",", "")) * scale - num_bytes) <= scale / 2
