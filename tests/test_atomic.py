"""Files and directories are whole or not there: errors, kills in between, leftovers, torn last lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from r1fast.atomic import atomic_directory, atomic_file, whole_lines


class Killed(BaseException):
    """In place of the end of the process."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as file:
        file.write("等")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "等"
    with atomic_file(path, "wb") as file:
        file.write(b"2")
        file.flush()
        assert path.read_text(encoding="utf-8") == "等"
    assert path.read_bytes() == b"2" and names(path.parent) == ["a.txt"]


def test_an_error_leaves_the_file_before_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(OSError, match="no space"), atomic_file(path) as file:
        file.write("half")
        raise OSError("no space left")
    assert path.read_text() == "before" and names(tmp_path) == ["a.txt"]


def fill(directory: Path, text: str) -> None:
    (directory / "deep").mkdir()
    (directory / "deep" / "weights").write_text(text)
    (directory / "config").write_text(text)


def test_a_directory_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint"
    with atomic_directory(path) as partial:
        fill(partial, "first")
        (partial / "only in the first").touch()
        assert not path.exists()
    with atomic_directory(path) as partial:
        assert names(partial) == []
        fill(partial, "second")
        assert (path / "config").read_text() == "first"
    assert (path / "deep" / "weights").read_text() == "second"
    assert names(path) == ["config", "deep"] and names(path.parent) == ["checkpoint"]


def test_an_error_leaves_the_directory_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with atomic_directory(path) as partial:
        fill(partial, "before")
    with pytest.raises(Killed), atomic_directory(path) as partial:
        (partial / "config").write_text("half")
        raise Killed
    assert (path / "deep" / "weights").read_text() == "before" and names(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("calls", [0, 1])
def test_a_kill_at_a_rename_leaves_a_whole_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """After `calls` renames: the old one under its own name, or it stepped aside and the new one is whole."""
    path = tmp_path / "checkpoint"
    with atomic_directory(path) as partial:
        fill(partial, "before")
    left, replace = [calls], os.replace

    def killed(source: str, target: str) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(Killed), atomic_directory(path) as partial:
            fill(partial, "after")
    assert path.exists() == (calls == 0)
    with atomic_directory(path) as partial:  # what is left over is in nobody's way
        fill(partial, "again")
    assert (path / "config").read_text() == "again" and names(tmp_path) == ["checkpoint"]


def test_a_torn_line_is_left_out_even_within_a_character(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    whole = '{"text": "等等\u2028"}\n'.encode()
    path.write_bytes(whole * 2 + whole[:12])
    assert whole_lines(path) == [whole.decode().rstrip("\n")] * 2
    path.write_bytes(b"")
    assert whole_lines(path) == []
