"""Conversations as supervised examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_files import write_jsonl

from r1fast.data.examples import read_messages
from r1fast.records import Prompt
from r1fast.source import Example

ASKED, SAID = {"role": "user", "content": "1 + 1 ?"}, {"role": "assistant", "content": "<think> a </think> 2"}


def test_conversations(tmp_path: Path) -> None:
    second = {"messages": [{"role": "user", "content": "一加一？"}, SAID], "id": 5, "kind": "general", "answer": "2"}
    first, other = read_messages(write_jsonl(tmp_path / "a.jsonl", [{"messages": [ASKED, SAID]}, second]))
    assert first == Example(prompt=Prompt(id="a-1", text="1 + 1 ?", token_ids=()), response=SAID["content"])
    assert (other.prompt.id, other.prompt.language, other.prompt.kind, other.prompt.answer) == (
        "5",
        "zh",
        "general",
        "2",
    )


def test_what_a_table_leaves_empty_counts_as_not_given(tmp_path: Path) -> None:
    """Parquet gives every row every column, None where it holds nothing."""
    row = {"messages": [ASKED, SAID], "id": None, "kind": None, "language": None, "answer": None}
    (example,) = read_messages(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert example.prompt == Prompt(id="a-1", text="1 + 1 ?", token_ids=())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, 'an example needs "messages"'),
        ({"messages": ["a", "b"]}, 'an example needs "messages"'),
        ({"messages": [{"role": "system", "content": "s"}, ASKED, SAID]}, r"not \['system', 'user', 'assistant'\]"),
        ({"messages": [ASKED, SAID, ASKED, SAID]}, "one of the user and one of the assistant"),
        ({"messages": [ASKED, {**SAID, "content": " "}]}, "a message without text"),
        ([1], "a list, not an object"),
    ],
)
def test_what_is_no_example_is_named(tmp_path: Path, row: Any, message: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"messages": [ASKED, SAID]}, row])
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{message}"):
        read_messages(file)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no examples"):
        read_messages(str(tmp_path / "a.jsonl"))
