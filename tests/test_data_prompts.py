"""Lazy prompts: one pass that checks all rows, distinct questions, slices, and what takes the place of a banned one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_files import plus_one, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from r1fast.data.fields import FieldMap
from r1fast.data.prompts import (
    Facts,
    Prompts,
    Reading,
    Survey,
    distinct,
    each_once,
    guess_language,
    most_bytes,
    open_prompts,
    read_prompts,
    varieties,
)
from r1fast.records import Prompt

WHOLE = '{"prompt": "a", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a list"),
        ('{"prompt": "a"}', 'line 2: no "answer"; every row needs "prompt" and "answer", or data.fields'),
        ('{"answer": "1"}', 'line 2: no "prompt"'),
        ('{"prompt": "a", "answer": " "}', 'line 2: "answer"'),
        ('{"prompt": "a", "answer": null}', 'line 2: "answer" must be a non-blank string or a number, not None'),
        ('{"prompt": "a", "answer": true}', 'line 2: "answer"'),
        ('{"prompt": "", "answer": "1"}', 'line 2: "prompt"'),
        ('{"prompt": 3, "answer": "1"}', 'line 2: "prompt"'),
        ('{"question": "a", "answer": "1"}', "line 2: unknown field 'question'"),
        ('{"prompt": "a", "answer": "1", "metadata": {"a": 1}}', 'line 2: "metadata"'),
    ],
)
def test_a_bad_line_is_named_or_counted(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(WHOLE + line + "\n" + WHOLE.replace('"a"', '"b"'), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_prompts(str(path))
    prompts, found = open_prompts(str(path), Reading(), "skip")
    assert [prompt.text for prompt in prompts] == ["a", "b"] and found.num_faults == 1
    assert found.first_fault.startswith(f"{path}, {message}")


def test_one_id_of_two_questions_is_refused_at_the_start(tmp_path: Path) -> None:
    rows = [{"id": name, "prompt": text, "answer": "1"} for name, text in (("a", "1?"), ("b", "2?"), ("a", "1?"))]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_prompts(str(path))) == 3  # a row that is there twice
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[1], "prompt": "3?"}]))
    with pytest.raises(ValueError, match=r"line 4: the row has the id of .*line 2, which is another question"):
        read_prompts(str(path))


def test_no_rows_at_all(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: no prompts; write one"):
        read_prompts(str(path))
    path.write_text("{}\n[]\n")
    with pytest.raises(ValueError, match=r"no prompts; all 2 rows are bad, the first: .*line 1: no \"prompt\""):
        open_prompts(str(path), Reading(), "skip")


def test_fields_and_language(tmp_path: Path) -> None:
    row = {"prompt": "三加四是多少？", "answer": 7, "id": "x", "kind": "code", "metadata": {"a": "b"}}
    file = write_jsonl(tmp_path / "a.jsonl", [row, {"prompt": "hi", "answer": 2.5, "language": "fr", "metadata": None}])
    prompts = read_prompts(file)
    first, second = prompts
    assert first == Prompt(
        id="x", text="三加四是多少？", token_ids=(), kind="code", language="zh", answer="7", metadata={"a": "b"}
    )
    assert (second.id, second.language, second.answer, second.kind) == ("a-2", "fr", "2.5", "math")
    assert [(p.kind, p.language) for p in varieties(prompts)] == [("code", "zh"), ("math", "fr")]
    assert read_prompts(file, Reading(language="en"))[0].language == "en"
    assert guess_language("12 + 3") == guess_language("１２") == "en"


def test_numbers_stay_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "2^100?", "answer": 1267650600228229401496703205376}\n')
    assert read_prompts(str(path))[0].answer == "1267650600228229401496703205376"


def test_mapped_fields(tmp_path: Path) -> None:
    rows = [{"q": f"question {n}", "sol": f"so \\boxed{{{n}}}", "extra": n, "tests": [n]} for n in range(3)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    fields = {"prompt": "q", "answer": "sol | boxed", "id": "extra", "kind": "=code", "metadata": {"tests": "tests"}}
    prompts = read_prompts(file, Reading(fields=FieldMap.read(fields), language="en"))
    assert [prompt.answer for prompt in prompts] == ["0", "1", "2"]
    assert prompts[2] == Prompt(
        id="2", text="question 2", token_ids=(), kind="code", answer="2", metadata={"tests": "[2]"}
    )
    nothing = write_jsonl(tmp_path / "c.jsonl", [{**rows[0], "tests": None}, {**rows[1], "tests": 0}])
    found = read_prompts(nothing, Reading(fields=FieldMap.read(fields)))
    assert [prompt.metadata for prompt in found] == [{}, {"tests": "0"}]  # a null is no value
    blank = write_jsonl(tmp_path / "b.jsonl", [*rows, {"q": "x", "sol": "none", "extra": 0, "tests": []}])
    with pytest.raises(ValueError, match=r"line 4: data.fields: answer = 'sol \| boxed': no \\boxed"):
        read_prompts(blank, Reading(fields=FieldMap.read(fields)))


def test_slices_are_lazy(tmp_path: Path) -> None:
    prompts = read_prompts(write_jsonl(tmp_path / "a.jsonl", plus_one(20)))
    part = prompts[5:15]
    assert isinstance(part, Prompts) and len(part) == 10 and part[0].answer == "6" and part[-1].answer == "15"
    assert list(prompts[-3:]) == list(prompts)[-3:]
    assert isinstance(prompts[:0], Prompts) and not len(prompts[:0]) and prompts[:0].longest() == []
    with pytest.raises(IndexError):
        _ = part[10]


def test_the_longest_are_known(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * (n % 500 + 1) + str(n), "answer": "1"} for n in range(1200)]
    prompts = read_prompts(write_jsonl(tmp_path / "a.jsonl", rows))
    lengths = sorted((len(prompt.text) for prompt in most_bytes(prompts)), reverse=True)
    assert len(lengths) == 256 and lengths == sorted((len(row["prompt"]) for row in rows), reverse=True)[:256]
    among = [len(prompt.text) for prompt in prompts[:400].longest()]
    assert max(among) == 403 and all(any(p.text == q.text for q in prompts[:400]) for p in prompts[:400].longest())


def test_the_longest_of_a_slice_without_the_longest_of_all_are_known(tmp_path: Path) -> None:
    rows = [{"prompt": f"{'x' * (n if n < 300 else 900)} {n}", "answer": "1"} for n in range(900)]
    whole = read_prompts(write_jsonl(tmp_path / "a.jsonl", rows))
    assert {prompt.text for prompt in whole[:300].longest()} == {row["prompt"] for row in rows[44:300]}
    assert {prompt.text for prompt in whole[:9].longest()} == {row["prompt"] for row in rows[:9]}
    banned = whole.without(lambda prompt: prompt.answer == "2")
    assert max(len(prompt.text) for prompt in banned[:9].longest()) == 904  # it may take the place of another


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5).map(lambda n: n << 60), max_size=40))
def test_distinct_keeps_the_first_of_every_question(keys: list[int]) -> None:
    places = np.arange(len(keys), dtype=np.uint32) * 2
    facts = Facts(varieties={}, longest=())
    kept = distinct(Survey(places=places, keys=np.array(keys, np.uint64), num_faults=0, first_fault="", facts=facts))
    assert kept.tolist() == [2 * n for n, key in enumerate(keys) if key not in keys[:n]]


def test_a_banned_prompt_is_replaced_by_another_the_same_every_time(tmp_path: Path) -> None:
    prompts = read_prompts(write_jsonl(tmp_path / "a.jsonl", plus_one(50))).without(lambda p: int(p.answer) % 2 == 0)
    given = [prompt.answer for prompt in prompts]
    assert all(int(answer) % 2 for answer in given) and len(given) == 50
    assert given[::2] == [str(n) for n in range(1, 51, 2)]  # the others stay where they are
    assert [prompt.answer for prompt in prompts] == given and len(set(given[1::2])) > 5
    with pytest.raises(ValueError, match="1000 training prompts in a row are in the evaluation sets"):
        _ = prompts.without(lambda prompt: True)[0]


@given(start=st.integers(0, 49), length=st.integers(1, 50), size=st.integers(1, 8))
def test_a_slice_has_the_same_stand_ins_as_the_whole(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, size: int
) -> None:
    """A stage draws from a slice in parts: were each drawn from by itself, a stand-in would be the next prompt, too."""
    file = write_jsonl(tmp_path_factory.mktemp("data") / "a.jsonl", plus_one(50))
    prompts = read_prompts(file).without(lambda prompt: int(prompt.answer) % 2 == 0)
    part = prompts[start : start + length]
    in_parts = [prompt for first in range(0, len(part), size) for prompt in part[first : first + size]]
    assert in_parts == list(part) == list(prompts)[start : start + length]
    assert list(prompts.at(prompts.places[1::2])) == list(prompts)[1::2]


def test_each_once_keeps_the_first_of_an_id() -> None:
    first, second = (Prompt(id=name, text=name, token_ids=()) for name in "ab")
    assert each_once(iter([first, second, first])) == [first, second]
