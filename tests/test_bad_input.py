"""Bad input, one test each: a message with value, constraint and fix, exit code 2, nothing written, no model loaded."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import copy_teacher, edit_json, sums, truncated, without_end, without_template, write_rows

from r1fast.failure import FAILURE_FILE, read_failure
from r1fast.metrics import read_metrics
from r1fast.policy import Policy
from r1fast.train import main

ROOT = Path(__file__).parents[1]
SHORT = [
    *("--recipe", "smoke", "--pipeline.stages", '["r1_zero"]', "--stages.r1_zero.steps", "2"),
    *("--rl.prompts_per_step", "2", "--rl.dev_every_steps", "0", "--rl.max_tokens", "16"),
    *("--data.num_train", "32", "--run.tensorboard", "false"),
]


def with_option(words: list[str], name: str, value: str) -> list[str]:
    """The words with another value for an option that they give."""
    place = words.index(name) + 1
    return [*words[:place], value, *words[place + 1 :]]


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the main job with these words; it must refuse them early. Returns its one line."""
    run_dir = tmp_path / "run"
    before = run_dir.exists()

    def load(*_: Any, **__: Any) -> Policy:
        raise AssertionError("a model was loaded before the input was checked")

    def run(*words: str) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(Policy, "load", load)
            code = main([*words, "--run", str(run_dir)])
        printed = capsys.readouterr()
        assert code == 2, printed.err
        assert printed.out == ""
        assert printed.err.startswith("r1fast: ") and printed.err.count("\n") == 1, printed.err
        assert run_dir.exists() == before
        return printed.err.removeprefix("r1fast: ").rstrip("\n")

    return run


@pytest.fixture
def jsonl(tmp_path: Path) -> list[str]:
    """Words of a run on a model and a file of the user's own."""
    model, file = copy_teacher(tmp_path / "model"), write_rows(tmp_path / "data.jsonl", sums(60))
    words = [*("--model", str(model), "--data", str(file), "--data.num_dev", "8", "--data.num_held_out", "8")]
    return [*SHORT, "--rl.dev_problems", "8", *words]


def test_unknown_key(refuse: Callable[..., str]) -> None:
    assert refuse("--rl.group_sise", "8").startswith("unknown key rl.group_sise: did you mean rl.group_size")


def test_wrong_type(refuse: Callable[..., str]) -> None:
    assert refuse("--rl.steps", "many") == "rl.steps = 'many' must be a whole number; for example 10400"


def test_batch_that_does_not_divide(refuse: Callable[..., str]) -> None:
    message = refuse("--rollout.rows", "40")
    assert "rollout.rows = 40 must be a multiple of 16" in message and message.endswith("give 48")


def test_group_of_one(refuse: Callable[..., str]) -> None:
    message = refuse("--rl.group_size", "1")
    assert "group_size = 1: the advantage of a group of one is always 0; give at least 2" in message


def test_empty_data(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n", encoding="utf-8")
    message = refuse(*jsonl)
    assert message == f'{tmp_path}/data.jsonl: no prompts; write one {{"prompt": ..., "answer": ...}} a line'


def test_no_data_file(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").unlink()
    message = refuse(*jsonl)
    assert message == f"{tmp_path}/data.jsonl: cannot read (No such file or directory); give an existing file"


def test_answer_missing_in_a_line(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", [*sums(2), {"prompt": "how many ?"}, *sums(40)])
    message = refuse(*jsonl)
    assert message == (
        f'{tmp_path}/data.jsonl, line 3: no "answer"; every row needs "prompt" and "answer", or data.fields to map its '
        "columns; this has ['prompt']"
    )


def test_answers_that_no_verifier_reads(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", [{**row, "answer": "\\frac{"} for row in sums(60)])
    message = refuse(*jsonl)
    assert "32 of 32 gold answers do not score 1" in message and "Fix or drop these prompts" in message


def test_prompts_of_a_kind_without_rewards(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    write_rows(tmp_path / "data.jsonl", [{**row, "kind": "code"} for row in sums(60)])
    message = refuse(*jsonl)
    assert "is of kind 'code', for which stage r1_zero has no rewards" in message
    assert "add [rewards.code], or drop such prompts" in message


def test_a_language_that_the_language_reward_cannot_tell(refuse: Callable[..., str], jsonl: list[str]) -> None:
    assert "is in language 'ko', and the reward rewards.math.language knows only en, " in refuse(
        *jsonl, "--data.language", "ko"
    )


def test_general_data_that_the_source_has_not(refuse: Callable[..., str], jsonl: list[str]) -> None:
    message = refuse(*jsonl, "--stages.r1_zero.general_prompts_per_step", "4")
    assert "stages.r1_zero.general_prompts_per_step = 4 but data.source = 'file' has no general prompts" in message
    message = refuse(*with_option(jsonl, "--pipeline.stages", "r1_zero,cold_start,sft_1,rl_1,rejection"))
    assert message.startswith("stages.rejection: general.examples is empty, and the stage needs it: name a file")


def test_prompt_longer_than_the_window(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    rows = [{"id": "long", "prompt": "apples " * 200, "answer": "1"}, *sums(60)]
    write_rows(tmp_path / "data.jsonl", rows)
    message = refuse(*with_option(jsonl, "--rl.max_tokens", "64"), "--model.template", "none")
    assert message == (
        "stages.r1_zero.max_tokens = 64: prompt 'long' has 200 tokens in template 'none', together 264, and model "
        f"'{tmp_path}/model' has a window of 256; lower it to at most 56, or drop the prompt"
    )


def test_model_without_chat_template(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    without_template(tmp_path / "model")
    message = refuse(*jsonl, "--model.template", "chat")
    assert message == (
        f"model.template = 'chat' needs a tokenizer with a chat template, and that of model '{tmp_path}/model' has "
        "none: give a model that has one (chat_template.jinja in its directory), or --model.template r1_zero"
    )
    words = with_option(jsonl, "--pipeline.stages", "r1_zero,cold_start,sft_1")
    assert refuse(*words).startswith("stage sft_1 needs a tokenizer with a chat template")


def test_base_model_that_cannot_rewrite(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    """Found before R1-Zero is trained, not when its chains are to be rewritten."""
    words = [*with_option(jsonl, "--pipeline.stages", "r1_zero,cold_start"), "--cold_start.rewrite", "model"]
    message = refuse(*words, "--cold_start.max_tokens", "100")
    found = re.fullmatch(
        r"cold_start\.max_tokens = 100: to rewrite a chain as long, model '.*' reads (\d+) tokens of instruction and "
        r"question and 100 of the chain and writes 100 more, and has a window of 256; (lower it to at most (\d+), or )?"
        r"set cold_start\.rewrite = 'endpoint'",
        message,
    )
    assert found is not None, message
    short = tmp_path / "short.txt"
    short.write_text("$question $response $language", encoding="utf-8")
    message = refuse(*words, "--cold_start.max_tokens", "150", "--cold_start.rewrite_prompt", str(short))
    room = int(message.partition("at most ")[2].partition(",")[0])
    assert 100 < room < 128
    without_template(tmp_path / "model")
    assert refuse(*words, "--cold_start.max_tokens", str(room)).startswith("cold_start.rewrite = 'model' asks the base")


def test_model_without_end_token(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    without_end(tmp_path / "model")
    message = refuse(*jsonl)
    assert message.startswith(f"model '{tmp_path}/model': the model has no end-of-sequence token")
    assert message.endswith("set eos_token_id in its config.json")


def test_model_whose_end_token_it_cannot_draw(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    edit_json(tmp_path / "model" / "tokenizer_config.json", lambda fields: fields.pop("eos_token"))
    for name in ("config.json", "generation_config.json"):
        edit_json(tmp_path / "model" / name, lambda fields: fields.update(eos_token_id=5000))
    assert "end-of-sequence tokens [5000] lie outside the model's 398 tokens" in refuse(*jsonl)


def test_truncated_weights(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    truncated(tmp_path / "model")
    assert refuse(*jsonl) == (
        f"{tmp_path}/model/model.safetensors has 1,000,000 bytes, by its header it should have 4,144,576: it is "
        "truncated or damaged; copy or download it again"
    )


def test_missing_config(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").unlink()
    model = tmp_path / "model"
    assert refuse(*jsonl) == (
        f"{model} is no Hugging Face checkpoint: cannot read {model}/config.json (No such file or directory); copy or "
        "download it again"
    )


def test_unknown_architecture(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    edit_json(tmp_path / "model" / "config.json", lambda fields: fields.update(model_type="lama"))
    assert "cannot be read (" in (message := refuse(*jsonl)) and "`lama`" in message


def test_missing_tokenizer(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    message = refuse(*jsonl)
    assert message.startswith(f"model '{tmp_path}/model': its tokenizer cannot be loaded (")
    assert message.endswith(
        "tokenizer.json and tokenizer_config.json must be in it, whole: copy or download them again"
    )


@pytest.mark.parametrize("fields", [{"version": "1.0"}, {"added_tokens": [], "model": {"type": "none"}}])
def test_tokenizer_that_is_none(
    refuse: Callable[..., str], jsonl: list[str], tmp_path: Path, fields: dict[str, Any]
) -> None:
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    message = refuse(*jsonl)
    assert message.startswith(f"model '{tmp_path}/model': its tokenizer cannot be loaded (")
    assert message.endswith("must be in it, whole: copy or download them again")


def test_config_of_other_weights(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    edit_json(tmp_path / "model" / "config.json", lambda fields: fields.update(intermediate_size=100))
    assert refuse(*jsonl) == (
        f"{tmp_path}/model: config.json does not describe these weights: model.layers.0.mlp.down_proj.weight has shape "
        "[128, 512], by the config it should have [128, 100]; use the config.json that came with the weights"
    )


def test_model_that_is_no_causal_language_model(refuse: Callable[..., str], jsonl: list[str], tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").write_text('{"model_type": "t5", "eos_token_id": 2}', encoding="utf-8")
    message = refuse(*jsonl)
    assert message.startswith(f"{tmp_path}/model: no causal language model can be built from its config.json (")
    assert message.endswith("; give a model that has one")


def test_run_directory_under_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([*SHORT, "--run", str(tmp_path / "file" / "run")]) == 2
    message = f"run directory {tmp_path}/file/run: {tmp_path}/file is a file; choose another with --run.dir DIR"
    assert capsys.readouterr().err == f"r1fast: {message}\n"


def test_damaged_stage_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the run itself: a later stage cannot load what an earlier one has written."""
    words = [*with_option(SHORT, "--pipeline.stages", "r1_zero,evaluation"), "--data.num_held_out", "4"]
    run_dir = tmp_path / "run"
    assert main([*words, "--run", str(run_dir)]) == 0
    stages = run_dir / "stages"
    truncated(stages / "01-r1_zero" / "checkpoint", 1000)
    for path in (stages / "11-evaluation").iterdir():
        path.unlink()
    capsys.readouterr()
    assert main([*words, "--run", str(run_dir)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("r1fast: ") and message.count("\n") == 1
    assert "model.safetensors" in message and f"delete {stages}/01-r1_zero to train it again" in message


def test_damaged_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text('{"stage": "r1\n{}\n', encoding="utf-8")
    assert main([*SHORT, "--run", str(run_dir)]) == 2
    assert "metrics.jsonl, line 1 is not JSON" in (message := capsys.readouterr().err)
    assert message.endswith("remove that line\n")


def test_another_process_in_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    code = f"from r1fast.distributed import *; f = lock_run_dir({str(run_dir)!r}); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert main([*SHORT, "--run", str(run_dir)]) == 2
        holder.communicate("\n")
    waiting, message = capsys.readouterr().err.splitlines()
    assert waiting == f"r1fast: {run_dir} is in use by process {holder.pid}; waiting 5 s"
    assert message == (
        f"r1fast: run directory {run_dir} is in use by process {holder.pid}; wait until it ends, stop it (kill "
        f"{holder.pid}), or choose another directory with --run.dir DIR"
    )
    assert [path.name for path in run_dir.iterdir()] == [".lock"]


def test_full_disk_at_the_start(small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    disk = small_disk("size=8m")
    assert main([*SHORT, "--run", str(disk / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"r1fast: run directory {disk}/run: 8 MiB are free there, this run writes about ")
    assert message.endswith("free some space, or choose another disk with --run.dir DIR\n")
    assert not list(disk.iterdir())


def test_read_only_directory(small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    disk = small_disk("size=8m,ro")
    assert main([*SHORT, "--run", str(disk / "run")]) == 2
    assert capsys.readouterr().err == (
        f"r1fast: run directory {disk}/run: {disk} is on a read-only file system; choose another with --run.dir DIR\n"
    )


def test_directory_that_this_user_may_not_write_to(tmp_path: Path) -> None:
    """Root, too, once it has given up the right to ignore permissions."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o555)
    command = [sys.executable, "-m", "r1fast.train", *SHORT, "--run", str(theirs / "run")]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root ignores permissions, and there is no setpriv (util-linux) here")
        command = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override", *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"r1fast: run directory {theirs}/run: {theirs} may not be written to by this user; choose another with "
        "--run.dir DIR\n"
    )
    assert not list(theirs.iterdir())


def test_disk_that_fills_up_while_the_run_writes(small_disk: Callable[[str], Path]) -> None:
    """A failure, not bad input: exit code 1, one line; with space again the same command finishes the run."""
    disk = small_disk("size=160m")
    run_dir = disk / "run"
    words = with_option(SHORT, "--stages.r1_zero.steps", "8")
    words += ["--run.save_every_steps", "1", "--run", str(run_dir)]
    command = [sys.executable, "-m", "r1fast.train", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    state = run_dir / "stages" / "01-r1_zero" / "state"
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not state.exists():
            time.sleep(0.01)
        with (disk / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert errors == (
        f"r1fast: the disk of {run_dir} is full, stage r1_zero stopped; what was saved before is intact: free some "
        "space there, and the same command continues\n"
    )
    (disk / "fill").unlink()
    assert main(words) == 0
    assert [line["step"] for line in read_metrics(run_dir)] == list(range(1, 9))


def test_a_failure_is_noted_until_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r1fast.stages.rl import RLLoop

    run_dir, words = tmp_path / "run", [*SHORT, "--run", str(tmp_path / "run")]

    def broken(self: RLLoop) -> None:
        raise RuntimeError("the gradient's norm is inf")

    with monkeypatch.context() as patched:
        patched.setattr(RLLoop, "_rollout_and_update", broken)
        with pytest.raises(RuntimeError):
            main(words)
    record = read_failure(run_dir)
    assert record is not None
    assert (record["stage"], record["error"]) == ("r1_zero", "RuntimeError: the gradient's norm is inf")
    assert main(words) == 0
    assert not (run_dir / FAILURE_FILE).exists()


@pytest.mark.slow
def test_under_torchrun_the_message_comes_first_and_once(tmp_path: Path) -> None:
    model = truncated(copy_teacher(tmp_path / "model"))
    file = write_rows(tmp_path / "data.jsonl", sums(60))
    words = [*SHORT, "--model", str(model), "--data", str(file), "--run.dir", str(tmp_path / "run")]
    words += ["--data.num_dev", "8", "--data.num_held_out", "8", "--rl.dev_problems", "8"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "r1fast.train", *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if "r1fast: " in line]
    assert lines == [
        f"r1fast: {model}/model.safetensors has 1,000,000 bytes, by its header it should have 4,144,576: it is "
        "truncated or damaged; copy or download it again"
    ]
    own = done.stderr[: done.stderr.index("Traceback")]  # torchrun's own, about its worker's exit code
    assert lines[0] in own and "ChildFailedError" in done.stderr
    assert not (tmp_path / "run").exists()
