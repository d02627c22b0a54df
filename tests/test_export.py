"""`r1fast export`: one directory of a finished stage or of one under way, adapters merged, nothing overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1fast.adapters import adapter_parameters
from r1fast.checkpoint import StateFolder
from r1fast.config import Config
from r1fast.context import load_model, write_json
from r1fast.export import main, trained_stages
from r1fast.lora import add_adapters
from r1fast.optimizers import plain_groups
from r1fast.options import parse, to_toml
from r1fast.policy import Policy
from r1fast.run_dir import stage_directory

STAGE = "r1_zero"
BASE = ("--recipe", "smoke", "--pipeline.stages", "base,r1_zero")


def open_run(run_dir: Path, *words: str) -> Config:
    config = parse([*BASE, *words]).config
    run_dir.mkdir()
    (run_dir / "config.toml").write_text(to_toml(config), encoding="utf-8")
    return config


def save_state(config: Config, run_dir: Path, step: int) -> Policy:
    """A state as a trainer saves it, its float32 masters off bfloat16's grid; returns the policy that has them."""
    policy = load_model(config, run_dir, "base", torch.device("cpu"), stage=STAGE)
    add_adapters(policy, config.lora, "another key than export's")
    generator = torch.Generator().manual_seed(step)
    trained = {name: p for name, p in policy.module.named_parameters() if p.requires_grad}
    masters = [(p.detach().float() + 0.02 * torch.randn(p.shape, generator=generator)) for p in trained.values()]
    policy.module.float()
    for parameter, master in zip(trained.values(), masters, strict=True):
        parameter.data.copy_(master)
    groups = plain_groups([[master.shape for master in masters]], config.optimizer)
    trainer = {"names": list(trained), "masters": masters, "optimizer": {"state": {}, "param_groups": groups}}
    state = {"trainer": {**trainer, "num_steps": step, "version": step}, "step": step, "world_size": 4}
    StateFolder(stage_directory(run_dir, STAGE), print).save(step, state)
    return policy


def weights_of(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def test_a_stage_under_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    config = open_run(run_dir, "--run.dtype", "bfloat16")
    save_state(config, run_dir, 3)
    policy = save_state(config, run_dir, 7)
    assert main([str(run_dir), "--stage", STAGE]) == 0
    out, _ = capsys.readouterr()
    assert f"{run_dir}/export/r1_zero: r1_zero, after step 7 of a stage that is not finished" in out
    assert f"{policy.module.num_parameters():,} parameters in bfloat16" in out
    expected = policy.module.state_dict()
    for name, value in weights_of(run_dir / "export" / STAGE).items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, expected[name].bfloat16())
    assert main([str(run_dir), "--stage", STAGE, "--dtype", "float32", "--out", str(tmp_path / "masters")]) == 0
    for name, value in weights_of(tmp_path / "masters").items():
        assert torch.equal(value, expected[name])

    auto: Any = AutoModelForCausalLM
    model, tokenizer = auto.from_pretrained(tmp_path / "masters"), AutoTokenizer.from_pretrained(tmp_path / "masters")
    assert model.dtype == torch.float32
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    generation = model.generation_config
    assert (generation.temperature, generation.top_p) == (config.evaluation.temperature, config.evaluation.top_p)
    assert generation.eos_token_id == list(policy.eos_token_ids)
    ids = torch.tensor([[3, 4, 5]])
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] <= 7
    # nothing is overwritten
    before = weights_of(tmp_path / "masters")
    assert main([str(run_dir), "--stage", STAGE, "--out", str(tmp_path / "masters")]) == 2
    assert "is there already and would be overwritten" in capsys.readouterr().err
    assert all(torch.equal(value, before[name]) for name, value in weights_of(tmp_path / "masters").items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_merged_in_float32(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run_dir = tmp_path / "run"
    config = open_run(run_dir, "--run.dtype", dtype, "--lora.rank", "4")
    policy = save_state(config, run_dir, 2)
    assert main([str(run_dir), "--stage", STAGE, "--out", str(tmp_path / "out"), "--dtype", "float32"]) == 0
    policy.save(tmp_path / "expected")
    found, expected = weights_of(tmp_path / "out"), weights_of(tmp_path / "expected")
    assert found.keys() == expected.keys()
    base = load_model(config, run_dir, "base", torch.device("cpu"), stage=STAGE).module.float().state_dict()
    adapted = {name.split(".lora_")[0] for name in adapter_parameters(policy.module)}
    for name, value in found.items():
        assert torch.equal(value, expected[name])
        assert torch.equal(value, base[name]) == (name.removesuffix(".weight") not in adapted)


def test_a_finished_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    config = open_run(run_dir)
    policy = save_state(config, run_dir, 1)
    policy.module.bfloat16()
    policy.save(stage_directory(run_dir, STAGE) / "checkpoint")
    write_json(stage_directory(run_dir, STAGE) / "result.json", {"wall_s": 1.0})
    save_state(config, run_dir, 9)  # what a kill has left behind: the checkpoint counts
    assert main([str(run_dir), "--stage", STAGE]) == 0
    assert "its checkpoint" in (out := capsys.readouterr().out) and "in bfloat16" in out
    for name, value in weights_of(run_dir / "export" / STAGE).items():
        assert torch.equal(value, policy.module.state_dict()[name])


def test_a_stage_that_ends_meanwhile_is_exported_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    config = open_run(run_dir)
    policy, directory = save_state(config, run_dir, 1), stage_directory(run_dir, STAGE)
    newest = StateFolder.newest

    def ends(folder: StateFolder) -> Any:
        policy.save(directory / "checkpoint")
        write_json(directory / "result.json", {"wall_s": 1.0})
        for path in (directory / "state").iterdir():
            path.unlink()
        return newest(folder)

    monkeypatch.setattr(StateFolder, "newest", ends)
    assert main([str(run_dir), "--stage", STAGE]) == 0
    assert "its checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tied_weights_are_written_once(dtype: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    policy = save_state(open_run(run_dir), run_dir, 1)
    assert policy.module.config.tie_word_embeddings
    assert main([str(run_dir), "--stage", STAGE, "--dtype", dtype]) == 0
    found = weights_of(run_dir / "export" / STAGE)
    assert sum(value.numel() for value in found.values()) == policy.module.num_parameters()


def test_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert main(list(words)) == 2
        return capsys.readouterr().err

    run_dir = tmp_path / "run"
    assert "is no run" in refused(str(tmp_path), "--stage", STAGE)
    config = open_run(run_dir)
    assert "its stages that do are r1_zero" in refused(str(run_dir), "--stage", "rl_1")
    assert "trains no model in this run" in refused(str(run_dir), "--stage", "base")
    assert "sequence classifiers" in refused(str(run_dir), "--stage", "reward_models")
    assert "has no saved state" in refused(str(run_dir), "--stage", STAGE)
    save_state(config, run_dir, 5)
    (state,) = (stage_directory(run_dir, STAGE) / "state").glob("step-*.pt")
    state.write_bytes(b"nonsense")
    error = refused(str(run_dir), "--stage", STAGE)
    assert "is corrupt" in error and "has no saved state" in error
    assert not (run_dir / "export").exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    save_state(open_run(run_dir), run_dir, 1)
    monkeypatch.setattr("r1fast.export.check_checkpoint", lambda directory: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([str(run_dir), "--stage", STAGE])
    assert not list((run_dir / "export").iterdir())


def test_stages_that_have_a_model() -> None:
    assert trained_stages() == ("r1_zero", "sft_1", "rl_1", "sft_2", "rl_2", "distill", "student_rl")
