"""The state of an unfinished stage: whole or not there, and no code in it is run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from r1fast.checkpoint import drop_state, has_state, load_state, save_state


def test_round_trip(tmp_path: Path) -> None:
    state: dict[str, Any] = {"step": 3, "weights": [torch.randn(5)], "reference": None, "nested": {"lr": 0.5}}
    assert load_state(tmp_path) is None and not has_state(tmp_path)
    save_state(tmp_path, state)
    assert has_state(tmp_path)
    loaded = load_state(tmp_path)
    assert loaded is not None and torch.equal(loaded.pop("weights")[0], state.pop("weights")[0])
    assert loaded == state
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state.pt"]
    drop_state(tmp_path)
    assert load_state(tmp_path) is None
    drop_state(tmp_path)  # nothing to drop is fine


def test_a_failed_write_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, {"step": 1})

    def full_disk(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            save_state(tmp_path, {"step": 2})
    assert load_state(tmp_path) == {"step": 1}
    save_state(tmp_path, {"step": 3})
    assert load_state(tmp_path) == {"step": 3}


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_code_in_a_state_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    torch.save({"step": Harmful()}, tmp_path / "state" / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path)
    assert not Path("harmed").exists()
