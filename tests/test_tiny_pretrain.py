"""The script that makes the base models: it learns, and makes the same model again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1fast.tiny import pretrain
from r1fast.tiny.pretrain import SIZES, Size, batches, build_model, learning_rate
from r1fast.tiny.tokenizer import build_tokenizer

SMALL = Size(layers=1, hidden=32, steps=10, lr=2e-2)


def test_ten_steps_lower_the_loss_and_repeat_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIZES, "student", SMALL)
    monkeypatch.setattr(pretrain, "BATCH", 16)
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        pretrain.pretrain("student", seed, tmp_path / name)
    losses = [
        float(line.split("loss ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines() if "loss " in line
    ]
    first, last = losses[:2]
    assert last < first - 1e-2
    weights = {
        name: AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two", "other")
    }
    assert all(torch.equal(value, weights["two"][name]) for name, value in weights["one"].items())
    assert not torch.equal(weights["one"]["lm_head.weight"], weights["other"]["lm_head.weight"])
    assert len(AutoTokenizer.from_pretrained(tmp_path / "one")) == len(build_tokenizer())


def test_batches_are_whole_documents() -> None:
    tokenizer = build_tokenizer()
    for _, ids in zip(range(5), batches(tokenizer, random.Random(0)), strict=False):
        assert ids.dtype == torch.int64 and ids.shape[0] == pretrain.BATCH
        assert (ids[:, 0] == tokenizer.bos_token_id).all()
        assert ((ids == tokenizer.eos_token_id).sum(1) == 1).all()
        padding = ids == tokenizer.pad_token_id
        ends = (ids == tokenizer.eos_token_id).int().argmax(1)
        assert all(not row[: end + 1].any() and row[end + 1 :].all() for row, end in zip(padding, ends, strict=True))


def test_sizes_are_those_that_the_package_ships() -> None:
    tokenizer = build_tokenizer()
    numbers = {name: build_model(size, tokenizer).num_parameters() for name, size in SIZES.items()}
    assert 0.8e6 < numbers["teacher"] < 1.2e6 and numbers["student"] < numbers["teacher"] / 4
    assert build_model(SMALL, tokenizer).config.tie_word_embeddings


def test_learning_rate_warms_up_and_decays() -> None:
    size = Size(layers=1, hidden=32, steps=1100, lr=1.0)
    rates = [learning_rate(step, size) for step in range(size.steps)]
    assert rates[0] == pytest.approx(0.01) and rates[99] == pytest.approx(1.0) == max(rates)
    assert rates[600] == pytest.approx(0.525, abs=1e-3) and rates[-1] == pytest.approx(0.05, abs=1e-3)
