"""Where a model's files are."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1fast.config import EMBEDDED_MODELS
from r1fast.models import model_path


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_embedded_models_load_with_transformers(name: str) -> None:
    path = model_path(name)
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_embedded_models_are_of_two_sizes_and_small_on_disk() -> None:
    teacher, student = (Path(model_path(name)) for name in EMBEDDED_MODELS)
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in (teacher, student)]
    assert sizes[1] < sizes[0] / 2 and sum(sizes) < 8 * 2**20


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_path(str(tmp_path)) == tmp_path
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_path("org/model") == Path("org/model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_path("~/org") == tmp_path / "org"


def test_a_hub_id_is_left_alone() -> None:
    assert model_path("nobody/no-such-model") == "nobody/no-such-model"


@pytest.mark.parametrize("name", ["/no/such/model", "./no-such-model", "no/such/model"])
def test_a_path_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        model_path(name)
