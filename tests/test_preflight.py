"""What preflight asks of a run, beyond the messages in test_bad_input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import copy_teacher, sums, without_template, write_rows

from r1fast.config import STAGES, Config, ConfigError
from r1fast.context import write_json
from r1fast.options import parse
from r1fast.preflight import ModelFiles, check_run, check_source, roots
from r1fast.run_dir import stage_directory, unfinished_stages
from r1fast.start import open_source
from r1fast.templates import write_prompts
from r1fast.training_checks import check_offload

CPU = torch.device("cpu")


def test_the_recipe_of_the_package_passes(tmp_path: Path) -> None:
    for name in ("tiny", "smoke", "tiny-no-language"):
        config = parse(["--recipe", name]).config
        check_run(config, tmp_path / "run", open_source(config), device=CPU)
    assert not list(tmp_path.iterdir())


def test_only_unfinished_stages_are_asked(tmp_path: Path) -> None:
    """A finished run whose model has moved away still prints its table."""
    config = parse(["--recipe", "smoke", "--pipeline.stages", "base,r1_zero"]).config
    gone = replace(config, model=replace(config.model, path="/no/such/model"))
    assert unfinished_stages(config, tmp_path) == ("base", "r1_zero")
    with pytest.raises(ConfigError, match="'/no/such/model' is not a directory"):
        check_run(gone, tmp_path, open_source(config), device=CPU)
    for stage in ("base", "r1_zero"):
        write_json(stage_directory(tmp_path, stage) / "result.json", {"steps": 1})
    assert unfinished_stages(config, tmp_path) == ()
    check_run(gone, tmp_path, open_source(config), device=CPU)


def test_the_models_that_stages_come_from() -> None:
    config = parse([]).config
    assert roots(config, STAGES) == ["base", "student"]
    assert roots(config, ["distill"]) == ["student"]
    assert roots(config, ["rl_1"]) == ["base"]
    assert roots(config, ["evaluation"]) == ["base", "student"]
    without = parse(["--pipeline.stages", "base,r1_zero,evaluation"]).config
    assert roots(without, ["evaluation"]) == ["base"]


def test_the_longest_prompt_is_the_longest(tmp_path: Path) -> None:
    config = parse([]).config
    prompts = open_source(config).prompts("train")
    model = ModelFiles.read(config, "base")
    model.set_template(config, "r1_zero")
    longest = max(len(prompt.token_ids) for prompt in write_prompts(prompts, model.tokenizer))
    found = model.longest(prompts)
    assert found is not None and len(found.token_ids) == longest
    assert model.longest([]) is None


def on_data(tmp_path: Path, stages: str, *words: str) -> Config:
    """A run of these stages on a model with a window of 256 tokens, which answers in 100 where it is evaluated."""
    model, file = tmp_path / "model", tmp_path / "data.jsonl"
    if not model.exists():
        copy_teacher(model)
        write_rows(file, sums(60))
    words = (
        "--model",
        str(model),
        "--model.student",
        str(model),
        "--data",
        str(file),
        "--model.template",
        "none",
        *words,
    )
    sizes = ("--data.num_dev", "8", "--data.num_held_out", "8", "--rl.dev_problems", "8")
    return parse(["--pipeline.stages", stages, "--evaluation.max_tokens", "100", *sizes, *words]).config


def check_stages(config: Config, *stages: str) -> None:
    source = open_source(config)
    for root in roots(config, stages):
        ModelFiles.read(config, root).check_stages(config, source, stages)


def test_general_requests_that_the_evaluation_samples_fit_the_window(tmp_path: Path) -> None:
    """With its own limit; those for training, which it does not sample, may be longer."""
    texts = ["apples " * (number + 160) for number in range(24)]
    file = tmp_path / "requests.jsonl"
    config = on_data(tmp_path, "base,evaluation", "--general.prompts", str(file))
    write_rows(file, [{"prompt": text} for text in texts])
    held_out = {prompt.text for prompt in open_source(config).general_prompts("held_out")}
    assert 0 < len(held_out) < len(texts)
    with pytest.raises(
        ConfigError, match=r"evaluation\.max_tokens = 100: prompt 'general requests-\d+' has 1\d\d tokens"
    ):
        check_stages(config, "evaluation")
    write_rows(file, [{"prompt": text} for text in texts if text not in held_out])
    check_stages(config, "evaluation")
    short = ["apples " * number for number in range(1, 40)]
    write_rows(file, [{"prompt": text} for text in [*short, *(text for text in texts if text not in held_out)]])
    assert open_source(config).general_prompts("held_out")
    check_stages(config, "evaluation")


SFT = '--stages.STAGE.files {"a.jsonl"=1.0} --stages.STAGE.steps 4'


@pytest.mark.parametrize("made", ["sft_1", "distill"])
def test_the_evaluation_holds_every_model_against_the_window_in_its_own_template(tmp_path: Path, made: str) -> None:
    words = SFT.replace("STAGE", made).split()
    config = on_data(tmp_path, f"base,{made},evaluation", *words)
    check_stages(config, "base", made, "evaluation")
    with (tmp_path / "model" / "chat_template.jinja").open("a", encoding="utf-8") as file:
        file.write(" apples" * 160)
    check_stages(config, "base", made)
    with pytest.raises(ConfigError, match=r"evaluation\.max_tokens = 100: .* tokens in template 'chat', together"):
        check_stages(config, "evaluation")
    reading = on_data(tmp_path, made, *words, f"--stages.{made}.dev_every_steps", "2")
    with pytest.raises(ConfigError, match=r"evaluation\.max_tokens = 100: .* tokens in template 'chat', together"):
        check_stages(reading, made)


def test_prompts_are_held_against_the_limits_of_the_stages_that_sample_them(tmp_path: Path) -> None:
    long = {"prompt": "apples " * 200, "answer": "1"}
    rows = {"train": [*sums(60)[8:], long], "dev": sums(8)[4:], "held_out": sums(4)}
    files = {split: write_rows(tmp_path / f"{split}.jsonl", own) for split, own in rows.items()}
    words = [*("--rl.max_tokens", "16", "--rl.dev_every_steps", "2"), "--data.file", str(files["train"])]
    words += ["--data.dev_file", str(files["dev"]), "--data.held_out_file", str(files["held_out"])]
    stages = "base,r1_zero,evaluation"
    check_stages(on_data(tmp_path, stages, *words), *stages.split(","))
    with pytest.raises(ConfigError, match=r"stages\.r1_zero\.max_tokens = 64: .* together 264"):
        check_stages(on_data(tmp_path, stages, *words, "--stages.r1_zero.max_tokens", "64"), "r1_zero")
    longer = tmp_path / "longer.jsonl"
    for split, stage in (("dev", "base"), ("dev", "r1_zero"), ("held_out", "evaluation")):
        write_rows(longer, [*rows[split], long])
        changed = [str(longer) if word == str(files[split]) else word for word in words]
        with pytest.raises(ConfigError, match=r"evaluation\.max_tokens = 100: .* together 300"):
            check_stages(on_data(tmp_path, stages, *changed), stage)


def test_a_stage_gets_its_own_template(tmp_path: Path) -> None:
    config = parse([]).config
    model = ModelFiles.read(config, "base")
    assert model.set_template(config, "r1_zero") == "r1_zero"
    zero = model.tokenizer.chat_template
    assert model.set_template(config, "sft_1") == "chat"
    assert "<instruction>" in zero and "<instruction>" not in model.tokenizer.chat_template


def test_a_model_without_a_chat_template_may_run_r1_zero(tmp_path: Path) -> None:
    directory = without_template(copy_teacher(tmp_path / "model"))
    config = parse(["--pipeline.stages", "base,r1_zero"]).config
    config = replace(config, model=replace(config.model, path=str(directory)))
    check_run(config, tmp_path / "run", open_source(config), device=CPU)


def test_what_frees_a_gpus_memory_is_refused_on_a_cpu(tmp_path: Path) -> None:
    config = parse(["--stages.rl_1.optimizer.offload_while_generating", "true"]).config
    with pytest.raises(ConfigError, match=r"offload_while_generating = true in stage rl_1 .* run is on cpu; set it to"):
        check_run(config, tmp_path / "run", open_source(config), device=CPU)
    check_offload(config, ["rl_1"], "cuda")
    check_offload(config, ["r1_zero"], "cpu")


def test_a_missing_gguf_file_is_named(tmp_path: Path) -> None:
    directory = copy_teacher(tmp_path / "model")
    config = parse(["--pipeline.stages", "base,r1_zero"]).config
    config = replace(config, model=replace(config.model, path=str(directory), gguf_file="x.gguf"))
    with pytest.raises(ConfigError, match=r"model\.gguf_file = 'x\.gguf': no such file in .*model"):
        check_run(config, tmp_path / "run", open_source(config), device=CPU)


def test_a_hub_id_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = parse(["--pipeline.stages", "base,r1_zero"]).config
    config = replace(config, model=replace(config.model, path="nobody/no-such-model"))
    with pytest.raises(ConfigError) as error:
        check_run(config, tmp_path / "run", open_source(config), device=CPU)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("model 'nobody/no-such-model' cannot be read (")
    assert str(error.value).endswith("check a hub id that can be reached, or --model DIRECTORY")


def test_every_gold_answer_is_checked_and_a_share_may_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those far behind the first prompts, and once for stages with the same rewards."""
    file = tmp_path / "data.jsonl"
    rows = [{"prompt": f"question {n}", "answer": "\\frac{" if n % 20 == 19 else n} for n in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--model", str(tmp_path), "--data", str(file), "--data.num_dev", "8", "--data.num_held_out", "8"]
    config = parse([*words, "--pipeline.stages", "r1_zero,evaluation", "--rl.dev_problems", "8"]).config
    source = open_source(config)
    golds = [prompt.answer for prompt in source.prompts("train")]
    num_bad = golds.count("\\frac{")
    assert num_bad and len(golds) == 84
    with pytest.raises(ValueError, match=f"{num_bad} of 84 gold answers do not score 1: data-"):
        check_source(config, source, ["r1_zero"])
    tolerant = replace(config, data=replace(config.data, max_bad_golds=0.1))
    check_source(tolerant, source, ["r1_zero"])
    assert f"warning: {num_bad} of 84 gold answers do not score 1" in capsys.readouterr().err


def test_a_model_that_the_paged_cache_cannot_hold_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    directory = copy_teacher(tmp_path / "model")
    fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    fields |= {"kv_lora_rank": 512, "architectures": ["LatentForCausalLM"]}
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    config = parse(["--pipeline.stages", "base,r1_zero"]).config
    config = replace(config, model=replace(config.model, path=str(directory)))
    with pytest.raises(ConfigError, match=r"LatentForCausalLM keeps one latent vector a token .*kv_lora_rank = 512"):
        check_run(config, tmp_path / "run", open_source(config), device=CPU)
