"""Where a model's files are, and whether they are whole: known before any weight is loaded."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1fast.config import EMBEDDED_MODELS

WEIGHTS = Path(__file__).parent / "tiny" / "weights"

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_HEADER_LENGTH_BYTES = 8  # safetensors: a little-endian u64, then that many bytes of JSON, then the tensors
_COPY_AGAIN = "copy or download it again"


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """What the files of a checkpoint say: `num_params` numbers in `num_bytes` bytes of weights."""

    num_params: int
    num_bytes: int


def model_path(name: str) -> str | Path:
    """The directory of an embedded model, the path itself where it exists, else the name as a hub id.

    Raises ValueError for something that looks like a path and does not exist.
    """
    if name in EMBEDDED_MODELS:
        return WEIGHTS / name.removeprefix("tiny-")
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if not name or path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ValueError(
            f"model path {name!r} is not a directory; give a Hugging Face checkpoint directory or a hub id"
        )
    return name


def check_checkpoint(directory: Path) -> CheckpointFiles | None:
    """Read the headers of a checkpoint directory's safetensors; None where the weights are in another format.

    Raises ValueError that names the file for one that is missing, truncated or not what its name says.
    """
    config = read_json(directory / "config.json", f"{directory} is no Hugging Face checkpoint")
    if "model_type" not in config:
        raise ValueError(f"{directory / 'config.json'} names no model_type; {_COPY_AGAIN}, or give another model")
    files = [_WHOLE]
    if (directory / _INDEX).exists():
        index = read_json(directory / _INDEX, "the list of weight files")
        files = sorted(set(index.get("weight_map", {}).values()))
    elif not (directory / _WHOLE).exists():
        if any(directory.glob("pytorch_model*.bin")):
            return None
        raise ValueError(
            f"{directory} has no weights: neither {_WHOLE} nor {_INDEX}; {_COPY_AGAIN}, or name its GGUF with "
            "--model.gguf_file"
        )
    read = [check_safetensors(directory / name) for name in files]
    return CheckpointFiles(
        num_params=sum(part.num_params for part in read), num_bytes=sum(part.num_bytes for part in read)
    )


def check_safetensors(path: Path) -> CheckpointFiles:
    """The sizes that the header of a safetensors file states; ValueError unless the file is exactly that long."""
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
            text = file.read(length) if 0 < length <= num_bytes else b""
    except OSError as error:
        raise ValueError(f"{path}: cannot read ({error.strerror}); {_COPY_AGAIN}") from error
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        data_bytes = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
        num_params = sum(math.prod(tensor["shape"]) for tensor in header.values())
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} ({num_bytes:,} bytes) is truncated or no safetensors file; {_COPY_AGAIN}") from error
    expected = _HEADER_LENGTH_BYTES + length + data_bytes
    if num_bytes != expected:
        raise ValueError(
            f"{path} has {num_bytes:,} bytes, by its header it should have {expected:,}: it is truncated or damaged; "
            f"{_COPY_AGAIN}"
        )
    return CheckpointFiles(num_params=num_params, num_bytes=num_bytes)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; ValueError that begins with `what` and names the file where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{what}: cannot read {path} ({error.strerror}); {_COPY_AGAIN}") from error
    except ValueError as error:
        raise ValueError(f"{what}: {path} is not JSON ({error}); {_COPY_AGAIN}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what}: {path} holds a {type(value).__name__}, not an object; {_COPY_AGAIN}")
    return value
