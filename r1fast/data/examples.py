"""Supervised examples from a file of conversations, one question and one answer each, in the `messages` format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r1fast.data.files import open_rows
from r1fast.data.prompts import guess_language
from r1fast.data.rows import Fault, Row
from r1fast.records import Prompt
from r1fast.source import Example


def read_messages(name: str) -> list[Example]:
    """The examples of a data set whose rows have `messages`, as `read_example` reads them; ValueError for a bad row."""
    rows = open_rows(name)
    examples = []
    for place, row in rows.scan():
        try:
            if isinstance(row, Fault):
                raise ValueError(row.reason)
            examples.append(read_example(row, f"{rows.name}-{place + 1}"))
        except ValueError as error:
            raise ValueError(f"{rows.where(place)}: {error}") from None
    if not examples:
        raise ValueError(f'{name}: no examples; write one {{"messages": [...]}} a line')
    return examples


def read_example(row: Row, default_id: str, kind: str = "math") -> Example:
    """Of a row with `messages`: a question of the user, then an answer of the assistant.

    `id`, `kind` (default: the argument), `language` and `answer` are taken over where a row has them; a table has None
    where it has not. Raises ValueError for anything else: a system message or a second turn would have to be left out
    silently.
    """
    if problem := _problem(row.get("messages")):
        raise ValueError(problem)
    asked, said = (str(message["content"]) for message in row["messages"])
    given = {name: str(row[name]) for name in ("id", "kind", "language", "answer") if row.get(name) is not None}
    prompt = Prompt(
        id=given.get("id", default_id),
        text=asked,
        token_ids=(),
        kind=given.get("kind", kind),
        language=given.get("language") or guess_language(asked),
        answer=given.get("answer", ""),
    )
    return Example(prompt=prompt, response=said)


def _problem(messages: Any) -> str:
    """What keeps a list of messages from being an example; empty where nothing does."""
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        return 'an example needs "messages", a list of {"role", "content"}'
    roles = [message.get("role") for message in messages]
    if roles != ["user", "assistant"]:
        return f"messages must be one of the user and one of the assistant, not {roles}"
    if not all(isinstance(message.get("content"), str) and message["content"].strip() for message in messages):
        return "a message without text"
    return ""
