"""Configs that come with r1fast: whole, named by hub id, and what a plan without a network needs."""

from __future__ import annotations

import json

import pytest

from r1fast.architectures import FOLDER, known_config, known_names, read


def test_every_file_has_a_name_of_its_own() -> None:
    files = sorted(path.name for path in FOLDER.glob("*.json"))
    assert sorted(known_names().values()) == files
    assert len(files) >= 12


@pytest.mark.parametrize("name", sorted(known_names()))
def test_a_config_says_what_its_file_says(name: str) -> None:
    config = known_config(name)
    assert config is not None
    fields = json.loads((FOLDER / known_names()[name]).read_text(encoding="utf-8"))
    for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings"):
        assert getattr(config, key) == fields[key]


def test_an_unknown_name_has_none_and_files_are_not_changed() -> None:
    assert known_config("nobody/nothing") is None
    read("qwen2.5-7b.json").pop("model_type")
    assert "model_type" in read("qwen2.5-7b.json")
