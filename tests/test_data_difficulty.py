"""Pass rates: the file, the histogram, and prompts chosen by them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import plus_one, write_jsonl

from r1fast.config import ConfigError, DataConfig
from r1fast.data.difficulty import bars, histogram, question_key, read_pass_rates
from r1fast.data.splits import load_splits
from r1fast.options import parse


def test_the_histogram_tells_never_and_always_apart() -> None:
    counts = histogram([0.0, 0.0, 0.1, 0.1 + 0.2, 0.3, 0.125, 0.5, 0.95, 1.0])
    assert list(counts) == ["0", "(0, 0.1]", *(f"(0.{n}, 0.{n + 1}]" for n in range(1, 9)), "(0.9, 1)", "1"]
    filled = {"0": 2, "(0, 0.1]": 1, "(0.1, 0.2]": 1, "(0.2, 0.3]": 2, "(0.4, 0.5]": 1, "(0.9, 1)": 1, "1": 1}
    assert {name: count for name, count in counts.items() if count} == filled
    assert sum(histogram(n / 16 for n in range(17)).values()) == 17
    assert bars([0.0] * 8 + [1.0]) == "0 █          ▁ 1" and bars([]) == "0 " + " " * 12 + " 1"


def test_rates_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write_jsonl(tmp_path / "a.jsonl", plus_one(8))
    rows = [json.dumps({"prompt": row["prompt"], "pass_rate": 1.0}) for row in plus_one(8)]
    (tmp_path / "rates.jsonl").write_text("\n".join([*rows, ""]))
    config = DataConfig(source="file", file=file, num_dev=2, num_held_out=2, pass_rates="~/rates.jsonl")
    assert len(load_splits(config).prompts["train"]) == 4


def test_prompts_are_chosen_by_their_rate(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", plus_one(40))
    rates = [{"prompt": row["prompt"], "pass_rate": n % 5 / 4} for n, row in enumerate(plus_one(30))]
    path = write_jsonl(tmp_path / "rates.jsonl", rates).rstrip()
    (tmp_path / "rates.jsonl").write_text((tmp_path / "rates.jsonl").read_text().rstrip() + "\n" + '{"prompt": "to')
    options = {"num_dev": 4, "num_held_out": 4, "pass_rates": path, "min_pass_rate": 0.25, "max_pass_rate": 0.75}
    splits = load_splits(DataConfig(source="file", file=file, **options))  # type: ignore[arg-type]
    numbers = {int(prompt.answer) - 1 for prompt in splits.prompts["train"]}
    assert numbers and all(number < 30 and number % 5 in (1, 2, 3) for number in numbers)
    found = splits.report["difficulty"]
    assert found["kept"] == len(numbers) and sum(found["histogram"].values()) + found["unknown"] == 32
    assert splits.notes[-1].startswith(f"kept {len(numbers)} of 32 training prompts of pass rate 0.25 to 0.75; ")
    none = DataConfig(source="file", file=file, num_dev=4, pass_rates=path, min_pass_rate=0.3, max_pass_rate=0.4)
    with pytest.raises(ValueError, match="gives no train prompts"):
        load_splits(none)


@pytest.mark.parametrize("line", ["{}", "[1]", '{"prompt": "a", "pass_rate": 2}', '{"prompt": 3, "pass_rate": 1}', "x"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "r.jsonl").write_text(f'{{"prompt": "a", "pass_rate": 0.5}}\n{line}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl, line 2: not"):
        read_pass_rates(tmp_path / "r.jsonl")


def test_the_later_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_jsonl(path, [{"prompt": "a", "pass_rate": 0.5}, {"prompt": "a", "pass_rate": 1}])
    path.write_text(path.read_text().rstrip() + "\n")
    assert read_pass_rates(path) == {question_key("a"): 1.0}
    with pytest.raises(ValueError, match="cannot read"):
        read_pass_rates(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.min_pass_rate 0.2", "need data.pass_rates"),
        ("--data.pass_rates r --data.min_pass_rate 0.7 --data.max_pass_rate 0.2", "swap them"),
        ("--data.min_pass_rate 2", "must be >= 0 <= 1"),
    ],
)
def test_bounds(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(["--recipe", "smollm2-zero", "--model", "/m", *words.split()])
