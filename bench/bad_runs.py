"""Record runs that go wrong on purpose: what `r1fast doctor RUN` is tested on.

`python -m bench.bad_runs [NAME ...]` starts each misconfiguration below on the embedded models, in a scratch directory,
and keeps what the doctor reads (config.toml, metrics.jsonl, results, the note of a crash) in `tests/data/runs/NAME`,
numbers rounded, times left out. The command of a recording is in its config.toml, under [about]. `--good RUN` keeps a
finished run beside them, on which the doctor must find nothing: its figures, which are many, are compressed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from r1fast.models import WEIGHTS
from r1fast.options import parse
from r1fast.start import open_source

ROOT = Path(__file__).parents[1]
RECORDINGS = ROOT / "tests" / "data" / "runs"
DIGITS = 5  # significant ones that a recording keeps
HARD = r"9^{9^{9^{9}}}"  # an answer that no verifier finishes reading
HARD_EVERY = 40  # one of so many answers
KILL_AFTER_LINES = 12

RL = (
    "--recipe tiny --run.tensorboard false --pipeline.stages r1_zero --stages.r1_zero.steps 20 "
    "--rl.prompts_per_step 8 --rl.dev_every_steps 0 --data.num_train 512"
)
OWN = "--model model --model.template chat --data.num_dev 64 --data.num_held_out 64 --rl.dev_problems 64"
SHORT = "--recipe smoke --run.tensorboard false --rl.dev_every_steps 0"
SFT = f"{SHORT} --pipeline.stages r1_zero,cold_start,sft_1"
REWARD_MODELS = f"{SHORT} --pipeline.stages r1_zero,cold_start,sft_1,rl_1,rejection,sft_2,reward_models"

# Name -> the options of the misconfigured run. The scratch directory has `model` (the embedded teacher) and its data.
RUNS: dict[str, str] = {
    "max_tokens_too_small": f"{RL} --rl.max_tokens 9",
    "lr_too_high": f"{RL} --rl.lr 1e-2 --rl.reference_refresh_steps 0 --data.num_held_out 64".replace(
        "stages r1_zero", "stages base,r1_zero,evaluation"
    ),
    "lr_beyond_reason": f"{RL} --rl.lr 1e6",
    "lr_too_low": f"{RL} --rl.lr 1e-9",
    "temperature_too_low": f"{RL} --rl.temperature 0.05".replace("r1_zero", "student_rl"),
    "template_of_unknown_words": f"{RL} {OWN} --data answers.jsonl".replace("template chat", "template r1_zero"),
    "answers_of_other_questions": f"{RL} {OWN} --data answers-shifted.jsonl",
    "answers_that_hang": f"{RL} {OWN} --data answers-hard.jsonl".replace("step 8", "step 16"),
    "rollouts_too_old": f"{RL} --rl.lr 5e-3 --rl.updates_per_rollout 5".replace("steps 20", "steps 40"),
    "gradient_clipping_too_tight": f"{RL} --optimizer.max_grad_norm 1e-8",
    "entropy_bonus_too_large": f"{RL} --loss.entropy_coef 1.0",
    "positions_that_change_with_length": f"{RL} {OWN} --data answers.jsonl".replace("model model", "model longrope"),
    "killed": RL,
    "sft_lr_too_high": f"{SFT} --stages.sft_1.steps 30 --stages.sft_1.lr 1.0 --stages.sft_1.lr_final 1.0",
    "sft_lr_too_low": f"{SFT} --stages.sft_1.steps 30 --stages.sft_1.lr 1e-9 --stages.sft_1.lr_final 1e-9",
    "sft_on_four_examples": (
        f"{SFT} --cold_start.max_kept 4 --sft.batch_size 8 --stages.sft_1.steps 120 --stages.sft_1.lr 3e-3"
    ),
    "cold_start_cut_off": f"{SFT} --cold_start.max_tokens 8",
    "reward_models_lr_too_high": f"{REWARD_MODELS} --reward_model.steps 40 --reward_model.lr 1.0",
    "reward_models_by_heart": f"{REWARD_MODELS} --reward_model.steps 120 --reward_model.pairs 48",
}


def prepare(scratch: Path) -> None:
    """The model as a directory of its own, and questions of its world with answers that are right, wrong or hang.

    `longrope`: the model with frequencies that change for all positions once any is beyond a limit, as Phi-3's do. A
    completion that passes it was sampled with two sets of them, and is trained on with one.
    """
    shutil.copytree(WEIGHTS / "teacher", scratch / "model")
    shutil.copytree(WEIGHTS / "teacher", scratch / "longrope")
    config = scratch / "longrope" / "config.json"
    fields = json.loads(config.read_text(encoding="utf-8"))
    pairs = fields["head_dim"] // 2
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * pairs, "long_factor": [1.1] * pairs}
    fields["rope_parameters"] |= {**scaling, "attention_factor": 1.0, "original_max_position_embeddings": 68}
    config.write_text(json.dumps(fields), encoding="utf-8")
    prompts = open_source(parse([]).config).prompts("train")[:600]
    rows = [{"id": p.id, "prompt": p.text, "answer": p.answer, "language": p.language} for p in prompts]
    shifted = [{**row, "answer": rows[n - 1]["answer"]} for n, row in enumerate(rows)]
    hard = [{**row, "answer": HARD} if n % HARD_EVERY == 0 else row for n, row in enumerate(rows)]
    for name, lines in (("answers", rows), ("answers-shifted", shifted), ("answers-hard", hard)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
        (scratch / f"{name}.jsonl").write_text(text, encoding="utf-8")


def record(name: str, scratch: Path) -> int:
    """Run one misconfiguration and keep its figures; returns its exit code."""
    words = [*shlex.split(RUNS[name]), "--run", name]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen([sys.executable, "-m", "r1fast.train", *words], cwd=scratch, env=environment) as process:
        metrics = scratch / name / "metrics.jsonl"
        while name == "killed" and process.poll() is None:
            time.sleep(0.05)
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= KILL_AFTER_LINES:
                process.kill()
    keep(scratch / name, RECORDINGS / name)
    return process.returncode


def keep(run_dir: Path, target: Path) -> None:
    """Copy what the doctor reads, in few digits."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    text = (run_dir / "config.toml").read_text(encoding="utf-8")
    (target / "config.toml").write_text(text.replace(str(run_dir), f"runs/{target.name}"), encoding="utf-8")
    if (run_dir / "failure.json").exists():
        shutil.copy(run_dir / "failure.json", target)
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [{k: rounded(v) for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]
    (target / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    for result in run_dir.glob("stages/*/result.json"):
        folder = target / result.parent.relative_to(run_dir)
        folder.mkdir(parents=True)
        text = json.dumps(rounded(json.loads(result.read_text(encoding="utf-8"))), ensure_ascii=False, indent=1)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Every float in it, in few digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.bad_runs", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)} (default: all)")
    parser.add_argument("--good", type=Path, metavar="RUN", help="record nothing, keep this finished run as `good`")
    arguments = parser.parse_args()
    names = arguments.names
    if arguments.good is not None:
        keep(arguments.good, RECORDINGS / "good")
        metrics = RECORDINGS / "good" / "metrics.jsonl"
        with gzip.GzipFile(f"{metrics}.gz", "wb", mtime=0) as file:
            file.write(metrics.read_bytes())
        metrics.unlink()
        return
    for name in names:
        if name not in RUNS:
            parser.error(f"{name!r} is not one of {', '.join(RUNS)}")
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        for name in names or RUNS:
            print(f"{name}: exit code {record(name, Path(scratch))}", flush=True)


if __name__ == "__main__":
    main()
