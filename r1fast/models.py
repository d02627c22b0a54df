"""Where a model's files are: the embedded ones by name, anything else as a path or a hub id."""

from __future__ import annotations

from pathlib import Path

from r1fast.config import EMBEDDED_MODELS

WEIGHTS = Path(__file__).parent / "tiny" / "weights"


def model_path(name: str) -> str | Path:
    """The directory of an embedded model, the path itself where it exists, else the name as a hub id.

    Raises ValueError for something that looks like a path and does not exist.
    """
    if name in EMBEDDED_MODELS:
        return WEIGHTS / name.removeprefix("tiny-")
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ValueError(
            f"model path {name!r} is not a directory; give a Hugging Face checkpoint directory or a hub id"
        )
    return name
