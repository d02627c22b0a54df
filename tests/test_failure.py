"""What ended a run, noted in its directory."""

from __future__ import annotations

from pathlib import Path

from r1fast.failure import FAILURE_FILE, clear_failure, read_failure, write_failure


def raised(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def test_written_read_and_cleared(tmp_path: Path) -> None:
    assert read_failure(tmp_path) is None
    write_failure(tmp_path, "rl_1", raised("坏 \n of two lines"))
    record = read_failure(tmp_path)
    assert record is not None
    assert (record["stage"], record["error"]) == ("rl_1", "ValueError: 坏 \n of two lines")
    assert record["where"].startswith("test_failure.py:")
    clear_failure(tmp_path)
    clear_failure(tmp_path)
    assert read_failure(tmp_path) is None


def test_the_first_process_to_fail_is_right(tmp_path: Path) -> None:
    write_failure(tmp_path, "rl_1", raised("the cause"))
    write_failure(tmp_path, "rl_1", raised("connection closed by peer"))
    record = read_failure(tmp_path)
    assert record is not None and record["error"] == "ValueError: the cause"


def test_a_directory_that_is_gone_or_a_record_that_is_torn_hurts_nobody(tmp_path: Path) -> None:
    write_failure(tmp_path / "gone", "rl_1", raised("x"))
    assert not (tmp_path / "gone").exists()
    (tmp_path / FAILURE_FILE).write_text('{"stage": "r', encoding="utf-8")
    assert read_failure(tmp_path) is None
