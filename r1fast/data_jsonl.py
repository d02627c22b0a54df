"""Prompts from JSONL: `{"prompt": ..., "answer": ...}` a line, with optional `id`, `kind`, `language`, `metadata`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from r1fast.config import DataConfig
from r1fast.records import Prompt
from r1fast.source import Split

_FIELDS = ("prompt", "answer", "id", "kind", "language", "metadata")
# A chain in Chinese is asked for when at least this share of a question's characters is Chinese.
_HAN_SHARE = 0.2


def jsonl_prompts(config: DataConfig) -> dict[Split, list[Prompt]]:
    """The splits of data.file, data.dev_file and data.held_out_file; distinct by question, in file order.

    Without a file of its own a split is taken from data.file by a stable hash of question and data.seed, so that
    neither the order nor other lines of the file matter to where a question goes. At most a quarter goes to each.
    """
    if not config.file:
        raise ValueError('data.source = \'jsonl\' needs data.file: a file of {"prompt", "answer"} lines (--data FILE)')
    training = _distinct(read_prompts(Path(config.file), config.language))
    splits: dict[Split, list[Prompt]] = {"train": training, "dev": [], "held_out": []}
    given: tuple[tuple[Split, str, int], ...] = (
        ("held_out", config.held_out_file, config.num_held_out),
        ("dev", config.dev_file, config.num_dev),
    )
    num_all = len(training)
    for split, file, count in given:
        if file:
            splits[split] = _distinct(read_prompts(Path(file), config.language))[:count]
        else:
            drawn = sorted(splits["train"], key=lambda prompt: _bucket(prompt.text, config.seed))
            splits[split] = drawn[: min(count, num_all // 4)]
            taken = {prompt.text for prompt in splits[split]}
            splits["train"] = [prompt for prompt in splits["train"] if prompt.text not in taken]
    in_held_out = {prompt.text for prompt in splits["held_out"]}
    splits["dev"] = [prompt for prompt in splits["dev"] if prompt.text not in in_held_out]
    return splits


def read_prompts(path: Path, language: str = "auto") -> list[Prompt]:
    """Every line of a file as a prompt without token ids; blank lines are skipped.

    `language` is for lines that name none; "auto" tells English from Chinese by the script of the question. Raises
    ValueError naming file and line for a line that is no object, or has unknown, missing or mistyped fields.
    """
    prompts = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    prompts.append(_prompt(line, f"{path}, line {number}", f"{path.stem}-{number}", language))
    except OSError as error:
        raise ValueError(f"{path}: cannot read ({error.strerror}); give an existing JSONL file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert the file") from error
    if not prompts:
        raise ValueError(f'{path}: no prompts; write one {{"prompt": ..., "answer": ...}} a line')
    return prompts


def guess_language(text: str) -> str:
    """`zh` for a text with a fair share of Chinese characters, else `en`."""
    num_han = sum("\u3400" <= character <= "\u9fff" for character in text)
    num_letters = sum(character.isalpha() for character in text)
    return "zh" if num_letters and num_han >= _HAN_SHARE * num_letters else "en"


def _prompt(line: str, where: str, default_id: str, language: str) -> Prompt:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno}): {line[:80]!r}") from error
    if not isinstance(row, dict):
        raise ValueError(f'{where}: a {type(row).__name__}, not an object with "prompt" and "answer"')
    if unknown := sorted(set(row) - set(_FIELDS)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}")
    if missing := [name for name in ("prompt", "answer") if name not in row]:
        raise ValueError(f'{where}: no "{missing[0]}"; every line needs "prompt" and "answer", this has {list(row)}')
    text = row["prompt"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: "prompt" must be a non-blank string, not {text!r}')
    answer = row["answer"]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise ValueError(f'{where}: "answer" must be a non-blank string or a number, not {answer!r}')
    metadata = row.get("metadata", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f'{where}: "metadata" must map names to strings, not {metadata!r}')
    return Prompt(
        id=str(row.get("id", default_id)),
        text=text,
        token_ids=(),
        kind=str(row.get("kind", "math")),
        language=str(row.get("language") or (guess_language(text) if language == "auto" else language)),
        answer=str(answer),
        metadata=metadata,
    )


def _distinct(prompts: list[Prompt]) -> list[Prompt]:
    """The first prompt of every question."""
    return list({prompt.text: prompt for prompt in reversed(prompts)}.values())[::-1]


def _bucket(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()
