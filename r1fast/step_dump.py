"""One optimizer step on the disk, as `r1fast replay` reads it: micro-batches of every rank, weights, and the result.

faults/replay-STAGE-STEP/weights.pt    the masters before the step, of rank 0
faults/replay-STAGE-STEP/rank-N.pt     what rank N trained on, and the loss and the gradient's norm that came of it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1fast.atomic import atomic_file
from r1fast.bad_step import BadStep
from r1fast.context import RunContext
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.records import Batch
from r1fast.trainers import AnyTrainer

WEIGHTS_FILE = "weights.pt"


@dataclass(frozen=True, kw_only=True)
class StepArguments:
    """What `Trainer.step` takes of a step, by its names."""

    batches: list[Batch]
    denominator: float
    lr: float
    temperature: float = 1.0
    old_logp: list[Tensor] | None = None
    ref_logp: list[Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class StepDump:
    """What a rank trained on in one step, and the loss and the gradient's norm that came of it, over all ranks."""

    stage: str
    step: int
    rank: int
    world_size: int
    arguments: StepArguments
    loss: PolicyLoss
    loss_sum: float
    grad_norm: float


def dump_directory(run_dir: Path, stage: str, step: int) -> Path:
    """Where the dump of a step is."""
    return run_dir / "faults" / f"replay-{stage}-{step:08}"


def dumper(
    context: RunContext,
    stage: str,
    step: int,
    trainer: AnyTrainer,
    arguments: StepArguments,
    loss: Callable[[], PolicyLoss],
) -> Callable[[BadStep], Path]:
    """What a `StepGuard` calls to write a step (collective): it returns the dump's directory, whole on all ranks."""

    def dump(bad: BadStep) -> Path:
        ranks, directory = context.ranks, dump_directory(context.run_dir, stage, step)
        results = {"loss_sum": bad.sums["loss_sum"], "grad_norm": bad.sums["grad_norm_sum"]}
        part = StepDump(
            stage=stage,
            step=step,
            rank=ranks.rank,
            world_size=ranks.world_size,
            arguments=arguments,
            loss=loss(),
            **results,
        )
        write_dump(directory, part, trainer.state_dict())
        ranks.barrier()
        return directory

    return dump


def write_dump(directory: Path, dump: StepDump, state: Mapping[str, Any]) -> None:
    """Write a rank's part; `state`: the trainer's `state_dict()`, of which rank 0 writes the weights."""
    if dump.rank == 0:
        weights = {name: value for name, value in state.items() if name != "optimizer"}
        with atomic_file(directory / WEIGHTS_FILE, "wb") as file:
            torch.save(weights, file)
    arguments = dict(vars(dump.arguments))
    arguments["batches"] = [dict(vars(batch)) for batch in dump.arguments.batches]
    for name in ("old_logp", "ref_logp"):
        if arguments[name] is not None:
            arguments[name] = [tensor.detach().cpu() for tensor in arguments[name]]
    values = {**vars(dump), "arguments": arguments, "loss": asdict(dump.loss)}
    with atomic_file(directory / f"rank-{dump.rank}.pt", "wb") as file:
        torch.save(values, file)


def read_dump(directory: Path) -> tuple[list[StepDump], dict[str, Any]]:
    """The parts of all ranks, and the weights; code in the files is not run.

    Raises ValueError for a directory that holds no whole dump.
    """
    paths = sorted(directory.glob("rank-*.pt"), key=lambda path: int(path.stem.partition("-")[2]))
    if not paths or not (directory / WEIGHTS_FILE).exists():
        raise ValueError(f"{directory} holds no dump of a step: it has no {WEIGHTS_FILE if paths else 'rank-*.pt'}")
    dumps = []
    for path in paths:
        values = torch.load(path, map_location="cpu", weights_only=True)
        arguments = values["arguments"]
        arguments["batches"] = [Batch(**batch) for batch in arguments["batches"]]
        values |= {"arguments": StepArguments(**arguments), "loss": PolicyLoss(**values["loss"])}
        dumps.append(StepDump(**values))
    if len(dumps) != dumps[0].world_size:
        raise ValueError(f"{directory} has the parts of {len(dumps)} of {dumps[0].world_size} ranks; copy all of it")
    return dumps, torch.load(directory / WEIGHTS_FILE, map_location="cpu", weights_only=True)
