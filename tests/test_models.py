"""Where a model's files are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import copy_teacher, truncated
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1fast.config import EMBEDDED_MODELS
from r1fast.models import check_checkpoint, check_safetensors, model_path


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


@pytest.mark.parametrize("name", ["", "/no/such/model", "./no-such-model", "no/such/model"])
def test_a_path_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        model_path(name)


def test_the_sizes_of_a_whole_checkpoint() -> None:
    files = check_checkpoint(Path(model_path("tiny-teacher")))
    assert files is not None
    model = AutoModelForCausalLM.from_pretrained(model_path("tiny-teacher"), local_files_only=True)
    assert files.num_params == model.num_parameters() == 1_035_136
    assert files.num_bytes == (Path(model_path("tiny-teacher")) / "model.safetensors").stat().st_size


def test_sharded_checkpoints_are_added_up(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    shards = {"a.safetensors": {"x": torch.zeros(3, 4)}, "b.safetensors": {"y": torch.zeros(5, dtype=torch.bfloat16)}}
    for name, tensors in shards.items():
        save_file(tensors, tmp_path / name)
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = check_checkpoint(tmp_path)
    assert files is not None and files.num_params == 17
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b\.safetensors: cannot read \(No such file"):
        check_checkpoint(tmp_path)


def test_weights_in_another_format_are_not_judged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"has no weights: neither model\.safetensors nor"):
        check_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert check_checkpoint(tmp_path) is None


@given(num_bytes=st.integers(0, 4_144_575))
def test_no_truncation_passes(num_bytes: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "cut" / "model.safetensors"
    if not path.exists():
        copy_teacher(path.parent)
    truncated(path.parent, num_bytes)
    with pytest.raises(ValueError, match=r"truncated .*; copy or download it again"):
        check_safetensors(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[]", "holds a list, not an object"),
        ("{}", "names no model_type"),
    ],
)
def test_a_config_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_checkpoint(tmp_path)
