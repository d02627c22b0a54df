"""The filters on chains: single cases, and precision and recall on the labelled set of two languages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from r1fast.stages.chain_filters import (
    FAULTS,
    MEASURED,
    chain_faults,
    count_words,
    has_code_block,
    main,
    measure,
    mixes_languages,
    repeats,
)

LABELLED = Path(__file__).parent / "data" / "chains.jsonl"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]


def test_the_labelled_set(rows: list[dict[str, object]]) -> None:
    assert len(rows) >= 200 and len({row["chain"] for row in rows}) == len(rows)
    for language in ("en", "zh"):
        own = [row for row in rows if row["language"] == language]
        assert len(own) >= 100 and sum(not row["labels"] for row in own) >= 40
        for fault in FAULTS:
            assert sum(fault in row["labels"] for row in own) >= 10  # type: ignore[operator]


def test_precision_and_recall(rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(rows, MEASURED, count_words)
    precision = {name: round(row["precision"], 3) for name, row in found.items()}
    recall = {name: round(row["recall"], 3) for name, row in found.items()}
    # four Chinese chains with code are said to be mixed, too; loops that count upwards are not seen
    assert precision == dict.fromkeys(found, 1.0) | {"mixed language": 0.935}
    assert recall == dict.fromkeys(found, 1.0) | {"repetition": 0.885, "any": 0.961}
    assert main([str(LABELLED)]) == 0
    assert f"{len(rows)} chains" in capsys.readouterr().out


def test_figures_are_ratios() -> None:
    words = "one two three four five six seven eight "
    rows = [
        {"chain": "all is well", "language": "en", "labels": ["repetition"]},
        {"chain": words * 3, "language": "en", "labels": []},
        {"chain": words * 4, "language": "en", "labels": ["repetition"]},
    ]
    found = measure(rows, MEASURED, count_words)
    assert found["repetition"] == {"labelled": 2, "precision": 0.5, "recall": 0.5}
    assert found["code block"] == {"labelled": 0, "precision": 1.0, "recall": 1.0}
    assert found["any"] == {"labelled": 2, "precision": 0.5, "recall": 0.5}


def test_repeats() -> None:
    words = [f"w{n}" for n in range(8)]
    assert not repeats(" ".join(words * 2))
    assert repeats(" ".join(words * 3))
    assert not repeats(" ".join(words[:7] * 2))
    assert not repeats("")
    assert repeats("again and " * 6) and not repeats("again and " * 5)
    assert repeats("1 2 3 and " * 4) and not repeats("1 2 3 4 " * 3)  # numbers may come again
    assert repeats("等一下，让我从头再检查一遍这个结果。" * 3)
    apart = [f"{' '.join(words)} " + " ".join(f"x{n}-{i}" for n in range(200)) for i in range(4)]
    assert not repeats(" ".join(apart))  # four times, but in 800 words
    assert repeats(" ".join([*words, "a", "b", *words, "c", "d", *words]))


def test_languages() -> None:
    assert not mixes_languages("so the sum is 7", "en", 0.999)
    assert mixes_languages("so 因此 the sum is 7", "en", 0.999) and not mixes_languages("so 因此 the sum is", "en", 0.8)
    assert not mixes_languages("边长AB=5cm，sin30°=0.5", "zh", 0.999)
    assert mixes_languages("边长AB=5cm, so 面积是7", "zh", 0.999)
    assert mixes_languages("3 + 4 = 7", "en", 0.0)  # no words at all
    assert mixes_languages("3 + 4 = 7", "pt", 0.0) and not mixes_languages("somo 3 e 4", "pt", 0.0)
    assert not mixes_languages("先算。\n\n```python\nprint(total)\n```\n\n得到答案。", "zh", 0.999)


def test_code_blocks() -> None:
    assert has_code_block("so\n```\n7\n```") and has_code_block("so\n~~~\n7\n~~~")
    assert has_code_block("so\n\nimport math\nprint(math.pi)\n\nthen")
    assert not has_code_block("print(7)\nis what I would write, and `x = 3`")
    assert not has_code_block("x = 3\ny = 4\nso the sum is 7")  # equations are no program
    assert not has_code_block("If it rains:\nwe stay.\nReturn to the question.")


def test_lengths() -> None:
    limits = replace(MEASURED, max_paragraph_tokens=5, max_chain_tokens=12)
    chain = "one two three four five\n \nsix seven eight nine ten"
    assert chain_faults(chain, "en", limits, count_words) == []
    assert chain_faults(chain.replace("five", "five six"), "en", limits, count_words) == ["long paragraph"]
    assert chain_faults(f"{chain}\n\na b c", "en", limits, count_words) == ["too long"]
    off = replace(limits, max_paragraph_tokens=0, max_chain_tokens=0)
    assert chain_faults(f"{chain} {chain}", "en", off, count_words) == []
