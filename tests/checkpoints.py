"""Model directories for tests of bad input: copies of the embedded teacher, damaged in one way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1fast.models import WEIGHTS


def copy_teacher(directory: Path) -> Path:
    """The embedded teacher as a directory of its own, which other data than the embedded may be given to."""
    return shutil.copytree(WEIGHTS / "teacher", directory)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def without_end(directory: Path) -> Path:
    """No end-of-sequence token in any of the three places that may name one."""
    for name in ("config.json", "generation_config.json"):  # null: an absent one would be Llama's default
        edit_json(directory / name, lambda fields: fields.update(eos_token_id=None))
    edit_json(directory / "tokenizer_config.json", lambda fields: fields.pop("eos_token"))
    return directory


def without_template(directory: Path) -> Path:
    (directory / "chat_template.jinja").unlink()
    return directory


def truncated(directory: Path, num_bytes: int = 1_000_000) -> Path:
    with (directory / "model.safetensors").open("r+b") as file:
        file.truncate(num_bytes)
    return directory


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int) -> list[dict[str, Any]]:
    """Questions in the words of the tiny world."""
    return [
        {"prompt": f"tom has {n % 20} apples . gains {n // 20} . how many apples ?", "answer": str(n % 20 + n // 20)}
        for n in range(count)
    ]
