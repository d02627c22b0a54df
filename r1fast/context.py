"""What every stage works with: configuration, directories, ranks, source, log; and where a stage's models live."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from r1fast.atomic import atomic_directory, atomic_file, whole_lines
from r1fast.background import BackgroundWriter
from r1fast.checkpoint import StateFolder
from r1fast.config import STAGES, Config, user_input
from r1fast.console import Console
from r1fast.distributed import Ranks
from r1fast.metrics import MetricsLog, read_metrics
from r1fast.models import model_path
from r1fast.policy import Policy
from r1fast.records import Prompt, ScoredRollout
from r1fast.run_dir import stage_directory
from r1fast.samples import Decoder, sample_row
from r1fast.sharded import Shards, end_engines
from r1fast.source import Source
from r1fast.stop import StopRequest
from r1fast.templates import WrittenPrompts, end_of_turn, set_template, write_prompts
from r1fast.weight_sharing import shares_weights

# Stage -> the stage whose checkpoint it starts from; "base" and "student" are the models of [model].
START = {
    "r1_zero": "base",
    "cold_start": "r1_zero",
    "sft_1": "base",
    "rl_1": "sft_1",
    "rejection": "rl_1",
    "sft_2": "base",
    "reward_models": "sft_2",
    "rl_2": "sft_2",
    "distill": "student",
    "student_rl": "student",
}
# Stages whose models answer in the plain conversation; the others see R1-Zero's template.
CONVERSATIONAL = frozenset({"sft_1", "rl_1", "rejection", "sft_2", "reward_models", "rl_2", "distill"})
# Row of the closing table -> the stage whose model it shows ("base" and "student": the models of [model]).
ROWS = {
    "base": "base",
    "r1_zero": "r1_zero",
    "sft_1": "sft_1",
    "rl_1": "rl_1",
    "sft_2": "sft_2",
    "r1": "rl_2",
    "student_base": "student",
    "student_distilled": "distill",
    "student_rl": "student_rl",
}


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Shared by all stages of one run; only rank 0 writes files and prints."""

    config: Config
    run_dir: Path
    ranks: Ranks
    console: Console
    metrics: MetricsLog | None
    source: Source
    stop: StopRequest
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)

    def __enter__(self) -> RunContext:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is being written, give the terminal back and close the log, also after an error."""
        try:
            self.writer.wait()
        finally:
            self.console.close()
            if self.metrics is not None:
                self.metrics.close()

    def directory(self, stage: str) -> Path:
        """Where the stage's files are."""
        return stage_directory(self.run_dir, stage)

    def load(self, origin: str, *, stage: str | None = None, user: str | None = None, idles: bool = False) -> Policy:
        """The model of a finished stage, or of [model] for `base` and `student`, with the template `stage` uses.

        `user`: the stage that works with it, without which it is `stage`: where that never needs the weights whole they
        are shared out (collective). `idles`: what is shared out waits in the host's memory.
        """
        config, device = self.config, self.ranks.device
        user = user or stage
        if user is None or user not in STAGES or not shares_weights(config, user):
            return load_model(config, self.run_dir, origin, device, stage=stage)
        distributed = config.for_stage(user).distributed
        if idles:
            distributed = replace(distributed, offload_parameters="cpu")
        dtype = compute_dtype(config, device)

        def load() -> Policy:
            return load_model(config, self.run_dir, origin, torch.device("cpu"), stage=stage, dtype=dtype)

        return Shards.load(load, device, distributed, self.ranks)

    def prompts(self, policy: Policy, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """The prompts with token ids for a policy's tokenizer and template; those of a lazy sequence when drawn."""
        if isinstance(prompts, list):
            return write_prompts(prompts, policy.tokenizer)
        return WrittenPrompts(prompts, policy.tokenizer)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and of the console; steps count from 1, 0 is before the first."""
        if self.metrics is not None:
            self.metrics.log(stage, step, dict(values))
        if step > 0:
            self.console.step(step, values)

    def logged(self, stage: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of a stage's steps so far; empty on ranks that do not write it."""
        lines = read_metrics(self.run_dir) if self.metrics is not None else []
        return [line for line in lines if line["stage"] == stage and line["step"] > 0]

    def truncate(self, stage: str, step: int) -> None:
        """Forget what a stage logged and sampled at `step` and later: those steps are about to be repeated."""
        if self.metrics is not None:
            self.metrics.truncate(stage, step)
            samples = self.directory(stage) / "samples.jsonl"
            if samples.exists():
                write_lines(samples, [row for row in map(json.loads, whole_lines(samples)) if row["step"] < step])

    def write_samples(self, stage: str, step: int, scored: Sequence[ScoredRollout], tokenizer: Decoder) -> None:
        """Append completions to the stage's samples.jsonl: `step` and what `sample_row` says of each."""
        path = self.directory(stage) / "samples.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for item in scored:
                row = {"step": step, **sample_row(item, tokenizer)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def interruptible(self, stage: str) -> AbstractContextManager[object]:
        """Within, SIGTERM ends a stage at once, but not where the other processes would then wait for this one."""
        view = self.config.for_stage(stage)
        together = shares_weights(self.config, stage) or view.rollout.tensor_parallel > 1
        return nullcontext() if together and self.ranks.world_size > 1 else self.stop.interruptible()

    def free(self) -> None:
        """Give back what a stage held: engines and parameters hold each other until Python looks for that."""
        end_engines()
        gc.collect()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def sync_logs(self, stage: str) -> None:
        """Bring what a stage has logged and sampled to the disk: a state that is saved next relies on it."""
        if self.metrics is not None:
            self.metrics.sync()
            samples = self.directory(stage) / "samples.jsonl"
            if samples.exists():
                with samples.open("rb") as file:
                    os.fsync(file.fileno())

    def state_folder(self, stage: str) -> StateFolder:
        """Where an unfinished stage saves its state."""
        return StateFolder(self.directory(stage), self.console.warn, self._beat, keep=self.config.run.keep_states)

    def _beat(self, doing: str) -> None:
        """A sign of progress, unless it is of a write beside the work: that may hang all the while."""
        if not self.writer.works_apart:
            self.ranks.pulse.beat(doing)

    def save_model(self, stage: str, name: str, saver: Callable[[], Callable[[Path], object]]) -> None:
        """Let rank 0 write a model's files to the directory `name` of a stage, which is whole or not there.

        `saver`: called on every rank, gives what writes them.
        """
        with self.ranks.pulse.during("save"):
            write = saver()
            if self.ranks.rank == 0:
                with atomic_directory(self.directory(stage) / name) as partial:
                    write(partial)
            self.ranks.barrier()

    def finish(self, stage: str, result: Mapping[str, Any]) -> None:
        """Mark a stage as done, atomically: what `done` reads."""
        if self.ranks.rank == 0:
            write_json(self.directory(stage) / "result.json", result)

    def result(self, stage: str) -> dict[str, Any] | None:
        """The result of a finished stage, None while it is unfinished."""
        path = self.directory(stage) / "result.json"
        if not path.exists():
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:  # only a disk that returns something else: it was written whole
            self.console.warn(f"{path} is corrupt ({error}): {stage} counts as unfinished and runs again")
            return None


def load_model(
    config: Config,
    run_dir: Path,
    origin: str,
    device: torch.device,
    *,
    stage: str | None = None,
    dtype: torch.dtype | None = None,
) -> Policy:
    """The model of a finished stage, or of [model] for `base` and `student`, with the template `stage` uses.

    `dtype`: None for that of the device.
    Raises:
        ConfigError: it is not there, damaged, or of a kind that cannot be trained.
    """
    model = config.model
    optimizer = (config.for_stage(stage) if stage and stage in STAGES else config).optimizer
    trained = origin not in ("base", "student")
    folder = stage_directory(run_dir, origin) if trained else run_dir
    with user_input(f"; delete {folder} to train it again" if trained else ""):
        path = folder / "checkpoint" if trained else model_path(model.path if origin == "base" else model.student)
        policy = Policy.load(
            path,
            device=device,
            dtype=dtype or compute_dtype(config, device),
            gguf_file="" if trained or origin == "student" else model.gguf_file,
            trust_remote_code=model.trust_remote_code,
            gradient_checkpointing=optimizer.gradient_checkpointing,
        )
        name = "chat" if (stage or origin) in CONVERSATIONAL else model.template
        set_template(policy.tokenizer, name, embedded=config.data.source == "tiny")
    policy.offload_activations = optimizer.offload_activations
    end = end_of_turn(policy.tokenizer)
    if end is not None and end not in policy.eos_token_ids:  # of a base model with a conversation's template
        policy.eos_token_ids = (*policy.eos_token_ids, end)
    return policy


def local_device(config: Config) -> torch.device:
    """Where one process without others computes: the GPU, unless there is none or [run] device says cpu."""
    return torch.device("cuda" if config.run.device != "cpu" and torch.cuda.is_available() else "cpu")


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """[run] dtype; auto is bfloat16 on a GPU and float32 on a CPU."""
    if config.run.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.run.dtype == "bfloat16" else torch.float32


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that is whole or not there."""
    with atomic_file(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSON-lines file that is whole or not there."""
    with atomic_file(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
