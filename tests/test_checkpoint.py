"""State files: named by their hash, the newest two kept, corrupt ones passed over aloud, and no code in them runs."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1fast.checkpoint import StateFolder, read_state


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path, said: list[str]) -> StateFolder:
    return StateFolder(tmp_path, said.append)


def step_of(folder: StateFolder) -> int | None:
    found = folder.newest()
    if found is None:
        return None
    assert read_state(found[1])["step"] == found[0]
    return found[0]


def save(folder: StateFolder, *steps: int) -> None:
    for step in steps:
        folder.save(step, {"step": step, "weights": torch.full((64,), float(step))})


def file_of(folder: StateFolder, step: int) -> Path:
    (path,) = folder.path.glob(f"step-{step:08}-*.pt")
    return path


def test_round_trip(folder: StateFolder, said: list[str]) -> None:
    state: dict[str, Any] = {"step": 3, "weights": [torch.randn(5)], "reference": None, "rows": [(1, "kept", "等")]}
    assert folder.newest() is None and not folder.has_states()
    folder.save(3, state)
    assert folder.has_states()
    found = folder.newest()
    assert found is not None and found[0] == 3
    loaded = read_state(found[1])
    assert torch.equal(loaded.pop("weights")[0], state.pop("weights")[0]) and loaded == state
    folder.drop()
    assert folder.newest() is None and not folder.path.exists()
    folder.drop()  # nothing to drop is fine
    assert not said


def test_the_name_is_the_hash_of_the_bytes(folder: StateFolder) -> None:
    save(folder, 7)
    path = file_of(folder, 7)
    assert path.name == f"step-00000007-{hashlib.sha256(path.read_bytes()).hexdigest()}.pt"


def test_the_newest_two_are_kept(folder: StateFolder) -> None:
    save(folder, 2, 9, 10, 100)
    assert sorted(path.name[:13] for path in folder.path.iterdir()) == ["step-00000010", "step-00000100"]


def test_a_failed_write_leaves_the_states_before(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, 1, 2)

    def full_disk(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            save(folder, 3)
    assert step_of(folder) == 2 and len(list(folder.path.iterdir())) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_the_error_whatever_torch_makes_of_it(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode: real(Path("/dev/full") if mode else self, *mode, 0))
    with pytest.raises(OSError, match="No space left") as found:
        save(folder, 1)
    assert found.value.errno == errno.ENOSPC


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_the_states_before(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, moment: str, said: list[str]
) -> None:
    """The partial file of a killed process is neither taken for a state nor reported, and the next save replaces it."""
    save(folder, 1)
    leftover = folder.path / "step-00000002.partial"
    leftover.write_bytes(b"half")
    assert step_of(folder) == 1 and not said

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            save(folder, 2)
    assert step_of(folder) == 1
    save(folder, 2)
    assert step_of(folder) == 2 and not leftover.exists()


@pytest.mark.parametrize("write", [StateFolder.save, StateFolder.save_part])
def test_what_killed_writes_left_goes_with_the_next_write(folder: StateFolder, write: Any) -> None:
    """Their names do not come again where the next launch saves after other steps."""
    for step in (37, 52, 61):
        pid = os.fork()
        if pid == 0:
            StateFolder(folder.path.parent, print, lambda doing: os.kill(os.getpid(), signal.SIGKILL)).save(step, {})
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    (folder.path / "part-prompts-0-32.partial").write_bytes(b"half")
    folder.save_elapsed(1.0)
    write(folder, 62, {"step": 62})
    assert sorted(path.suffix for path in folder.path.iterdir()) == [".json", ".pt"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_corrupt_state_is_named_and_the_one_before_is_used(folder: StateFolder, said: list[str], damage: Any) -> None:
    save(folder, 20, 30)
    path = file_of(folder, 30)
    damage(path)
    assert step_of(folder) == 20
    (warning,) = said
    assert str(path) in warning and "corrupt" in warning and "going back to the state after step 20" in warning
    assert Path(f"{path}.corrupt").exists()
    assert step_of(folder) == 20 and len(said) == 1  # it is said once
    save(folder, 30)
    assert step_of(folder) == 30


def test_with_no_whole_state_the_stage_starts_again_aloud(folder: StateFolder, said: list[str]) -> None:
    save(folder, 20, 30)
    cut(file_of(folder, 20))
    flip(file_of(folder, 30))
    assert folder.newest() is None
    assert len(said) == 2 and all("the stage starts again" in warning for warning in said)
    assert not folder.has_states()


@given(st.binary(min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_any_change_is_found(tmp_path_factory: pytest.TempPathFactory, change: bytes, place: float) -> None:
    said: list[str] = []
    folder = StateFolder(tmp_path_factory.mktemp("state"), said.append)
    save(folder, 1)
    path = file_of(folder, 1)
    before = path.read_bytes()
    start = int(place * len(before))
    after = before[:start] + change + before[start + len(change) :]
    path.write_bytes(after)
    assert step_of(folder) == (1 if after == before else None)
    assert len(said) == (after != before)


def test_parts_are_kept_and_a_corrupt_one_is_done_again(folder: StateFolder, said: list[str]) -> None:
    rows = {
        name: [(0, "kept", name), (1, "wrong", "")] for name in ("prompts-0-32", "prompts-32-64", "reading-r1_zero")
    }
    for name, part in rows.items():
        folder.save_part(name, part)
    folder.save_part("reading-r1", [])
    for name, part in rows.items():
        path = folder.find_part(name)
        assert path is not None and read_state(path) == part
    assert folder.find_part("prompts-0") is None
    path = folder.find_part("prompts-32-64")
    assert path is not None
    flip(path)
    assert folder.find_part("prompts-32-64") is None
    (warning,) = said
    assert str(path) in warning and "prompts-32-64 is done again" in warning
    folder.save_part("prompts-32-64", [])
    assert folder.find_part("prompts-32-64") is not None and not folder.has_states()


def test_elapsed_time_is_only_a_figure(folder: StateFolder, said: list[str]) -> None:
    assert folder.elapsed_s() == 0.0
    folder.save_elapsed(2.5)
    assert folder.elapsed_s() == 2.5 and not said
    (folder.path / "elapsed.json").write_text('{"wall')
    assert folder.elapsed_s() == 0.0
    assert "elapsed.json is corrupt" in said[0]


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_code_in_a_state_file_does_not_run(
    folder: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder.save(1, {"step": Harmful()})
    found = folder.newest()
    assert found is not None
    with pytest.raises(pickle.UnpicklingError):
        read_state(found[1])
    assert not Path("harmed").exists()
