"""Configs of well-known checkpoints by hub id, so that a plan needs no download: `recipes/architectures/*.json`."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from r1fast.templates import RECIPES

FOLDER = RECIPES / "architectures"


@cache
def known_names() -> dict[str, str]:
    """Hub id -> file, of every architecture that comes with r1fast."""
    return {read(path.name)["_name_or_path"]: path.name for path in sorted(FOLDER.glob("*.json"))}


def known_config(name: str) -> Any | None:
    """The Hugging Face config of a checkpoint; None for one that is not among them."""
    file = known_names().get(name)
    if file is None:
        return None
    from transformers import AutoConfig

    fields = read(file)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def read(file: str) -> dict[str, Any]:
    """The fields of a file of the folder."""
    fields: dict[str, Any] = json.loads((FOLDER / file).read_text(encoding="utf-8"))
    return fields
