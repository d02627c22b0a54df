"""The state of an unfinished stage: one file under `stages/NN-NAME/state/`, replaced atomically."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch


def save_state(directory: Path, state: dict[str, Any]) -> None:
    """Write the state of a stage; the one before it stays until the new one is whole."""
    folder = directory / "state"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "state.partial"
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / "state.pt")


def has_state(directory: Path) -> bool:
    """Whether an unfinished stage has saved its state."""
    return (directory / "state" / "state.pt").exists()


def load_state(directory: Path) -> dict[str, Any] | None:
    """The saved state, on the CPU, or None if there is none."""
    path = directory / "state" / "state.pt"
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def drop_state(directory: Path) -> None:
    """Forget the state: the stage is finished."""
    shutil.rmtree(directory / "state", ignore_errors=True)
