"""`r1fast plan --gpu`: exit codes, what is printed at the widths of terminals, and recipes that come with r1fast."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from r1fast.architectures import known_config
from r1fast.cluster import ClusterPlan, plan_cluster
from r1fast.gpus import GPUS
from r1fast.model_size import ModelSize
from r1fast.options import parse
from r1fast.plan_command import DOES_NOT_FIT, main, print_cluster_plan
from r1fast.start import model_sizes
from r1fast.train import main as train

# Recipe -> GPUs, their number, exit code.
RECIPES = {
    "r1-zero-qwen2.5-1.5b-gsm8k": ("h100", 1, 0),
    "r1-qwen2.5-7b": ("h100", 8, 0),
    "r1-zero-qwen2.5-32b": ("h100", 64, 0),
    "r1-deepseek-v3": ("h800", 512, DOES_NOT_FIT),
    "distill-qwen2.5-1.5b": ("h100", 1, 0),
    "distill-qwen2.5-7b": ("h100", 8, 0),
    "distill-qwen2.5-14b": ("h100", 16, 0),
    "distill-qwen2.5-32b": ("h100", 32, 0),
    "distill-llama3.1-8b": ("h100", 8, 0),
    "distill-llama3.3-70b": ("h100", 64, 0),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_are_planned_for_the_gpus_they_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpu, num_gpus, code = RECIPES[name]
    assert main(["--recipe", name, "--gpu", gpu, "--gpus", str(num_gpus)]) == code
    shown = capsys.readouterr().out
    for stage in parse(["--recipe", name]).config.pipeline.stages:
        assert re.search(rf"^ ?{stage}\b", shown, re.M), stage
    assert ("does not fit:" in shown) == (code == DOES_NOT_FIT)


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_pass_a_dry_run_without_a_download(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--recipe", name, "--dry-run"]) == 0
    assert "upper bounds" in capsys.readouterr().out


def test_a_recipe_that_cannot_start_is_planned_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", "r1-deepseek-v3", "--gpu=h800", "--gpus=512"]) == DOES_NOT_FIT
    shown = " ".join(capsys.readouterr().out.split())
    assert "671.03B parameters, 37.55B of them active" in shown
    for words in (
        "128 sequences in a batch for 512 processes",
        "latent attention (MLA)",
        "weights and gradients of reward models are whole",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rl.strict true --rollout.draft_tokens 0", "strict = true holds on the CPU"),
        ("--optimizer.name deepspeed_cpu --distributed.engine deepspeed", "'deepspeed_cpu' updates masters"),
    ],
)
def test_what_a_gpu_would_refuse_is_said(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["--recipe", "r1-zero-qwen2.5-1.5b-gsm8k", *words.split()]
    assert main([*recipe, "--gpu", "h100"]) == DOES_NOT_FIT
    shown = " ".join(capsys.readouterr().out.split())
    assert "would not start: " in shown and message in shown and "fits: every phase" not in shown


def test_what_this_machine_would_refuse_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", "smoke", "--run.device", "cpu", "--optimizer.offload_activations", "true"]
    assert main(words) == 0
    assert "here it would not start: optimizer.offload_activations = true" in capsys.readouterr().err


@pytest.fixture(scope="module")
def qwen() -> ClusterPlan:
    config = parse(["--recipe", "r1-qwen2.5-7b"]).config
    model, student = model_sizes(config)
    return plan_cluster(config, model, student, GPUS["h100"], 8)


@pytest.mark.parametrize("width", [100, 160])
def test_tables_are_whole_on_terminals(qwen: ClusterPlan, width: int) -> None:
    output = io.StringIO()
    print_cluster_plan(qwen, [], Console(file=output, width=width))
    text = output.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for column in ("weights", "copies", "optim.", "grads", "activ.", "logits", "cache", "peak"):
        assert f" {column} " in text
    for words in ("40% of 989 TFLOP/s", "FLOPs", "sent a step", "tokens", "GPU-hours"):
        assert words in " ".join(text.split())


def test_a_row_of_the_memory_table_adds_up(qwen: ClusterPlan) -> None:
    output = io.StringIO()
    print_cluster_plan(qwen, [], Console(file=output, width=160))
    rows = output.getvalue().partition("memory of a GPU in GiB")[2].splitlines()
    found = [[float(cell) for cell in re.findall(r"(?<= )\d+\.\d(?= )", f"{row} ")] for row in rows]
    sums = [numbers for numbers in found if len(numbers) >= 3]
    assert len(sums) == sum(len(stage.phases) for stage in qwen.stages.values())
    for numbers in sums:
        assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.06 * len(numbers))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "8"], "--gpus needs --gpu, one of h100"),
        (["--gpu", "h900"], "--gpu h900 is none of h100"),
        (["--gpu", "h100", "--gpus", "many"], "--gpus many must be a whole number"),
        (["--gpu", "h100", "--gpus", "0"], "--gpus 0 must be a whole number"),
        (["--gpu", "h100", "--gpus", "12"], "of several nodes a multiple of 8"),
        (["--gpu"], "--gpu needs a value"),
        (["--gpu", "h100", "--rl.stepz", "3"], "rl.steps"),
    ],
)
def test_bad_input_is_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", "r1-zero-qwen2.5-1.5b-gsm8k", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_is_neither_known_nor_there_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", "r1-zero-qwen2.5-1.5b-gsm8k", "--model", "/no/such/model", "--gpu", "h100"]
    assert main(words) == 2
    assert "/no/such/model" in capsys.readouterr().err


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "h800" in capsys.readouterr().out


def test_any_config_of_hugging_face_is_planned() -> None:
    config = parse(["--recipe", "r1-zero-qwen2.5-1.5b-gsm8k"]).config
    for name in ("mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-8B"):
        plan = plan_cluster(config, ModelSize.of(known_config(name)), None, GPUS["b200"], 8)
        assert plan.time_s > 0
