"""One option of a configuration: its default and what `--help` and the checks say of it."""

from __future__ import annotations

from dataclasses import field
from typing import Any

PAPER = "R1"  # as the source of a default: the DeepSeek-R1 paper, its supplement included


def option(default: Any, help: str, *, unit: str = "", need: str = "", source: str = "") -> Any:
    """A field with what `--help` prints; `need` is a constraint like `> 0 <= 1`, checked for every schedule value."""
    metadata = {"help": help, "unit": unit, "need": need, "source": source}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)
