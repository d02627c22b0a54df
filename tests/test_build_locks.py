"""Locks of compilations: those that somebody holds, and those that a killed one left."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from r1fast.build_locks import abandoned_locks
from r1fast.optimizers import warn_of_locks


def test_a_lock_that_nobody_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert abandoned_locks() == []
    living, dead = tmp_path / "one" / "lock", tmp_path / "py311_cpu" / "two" / "lock"
    for path in (living, dead):
        path.parent.mkdir(parents=True)
    baton = FileBaton(str(living))
    assert baton.try_acquire() and abandoned_locks() == []
    dead.touch()
    assert abandoned_locks() == [dead]
    with pytest.warns(UserWarning, match=rf"{dead} .*delete it"):
        warn_of_locks()
    baton.release()
    dead.unlink()
    assert abandoned_locks() == []
