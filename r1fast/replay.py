"""`r1fast replay DUMP`: one training step again, from what the run wrote when it gave the step up.

Prints the loss and the gradient's norm of every micro-batch, and which of its sequences are not finite. The weights are
not changed; the run is not needed but for its configuration and the model that the stage started from.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from r1fast.bad_step import BadStep
from r1fast.config import RL_STAGES, Config, ConfigError, user_input
from r1fast.context import START, load_model, local_device
from r1fast.distributed import Ranks
from r1fast.lora import add_adapters
from r1fast.records import Batch
from r1fast.rollout.strict import strict_logprobs
from r1fast.run_dir import open_config
from r1fast.step_dump import StepDump, read_dump
from r1fast.trainer import Logprobs, Trainer, micro_batch_loss
from r1fast.trainers import AnyTrainer, make_trainer

Device = Literal["auto", "cpu", "cuda"]
CLOSE = 1e-3  # relative; ranks add their gradients in another order


@dataclass(frozen=True)
class Part:
    """One sequence of a micro-batch, or all of it: tokens of prompt and completion, loss, norm of its gradient."""

    num_prompt: int
    num_completion: int
    advantage: float
    loss: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def main(argv: Sequence[str] | None = None) -> int:
    """0: the step came out as it was recorded, 1: it did not, 2: bad input."""
    parser = argparse.ArgumentParser(prog="r1fast replay", description=__doc__)
    parser.add_argument("dump", type=Path, help="RUN/faults/replay-STAGE-STEP")
    text = "auto: the run's, or the CPU where there is no GPU"
    parser.add_argument("--device", choices=get_args(Device), default="auto", help=text)
    options = parser.parse_args(argv)
    try:
        with user_input():
            dumps, weights = read_dump(options.dump)
        config = open_config(options.dump.absolute().parents[1]).for_stage(dumps[0].stage)
        return replay(dumps, weights, config, options.dump.absolute().parents[1], options.device)
    except ConfigError as error:
        print(f"r1fast: {error}", file=sys.stderr)
        return 2


def replay(dumps: list[StepDump], weights: dict[str, Any], config: Config, run_dir: Path, device: Device) -> int:
    """Print the step part by part, then run it whole, by the engine of the run; 0 where the result is the recorded.

    Raises ConfigError for a GPU that is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no GPU here; give --device cpu")
    dumps = dumps[:: config.distributed.sequence_parallel]  # a sequence group's processes all have its micro-batches
    first = dumps[0]
    config = replace(config, run=replace(config.run, device=config.run.device if device == "auto" else device))
    where = local_device(config)
    logprobs = strict_logprobs if first.stage in RL_STAGES and config.rl.strict else None
    torch_config = replace(config, distributed=type(config.distributed)())
    trainer = _trainer(torch_config, run_dir, first.stage, weights, where, logprobs)
    assert isinstance(trainer, Trainer)
    print(
        f"{first.stage}, step {first.step}, {len(dumps)} rank{'s' * (len(dumps) > 1)}, loss {first.loss.objective} "
        f"{first.loss.aggregate}, lr {first.arguments.lr:g}, policy version {trainer.policy.version}, {where}\n"
    )
    print("rank  micro-batch  sequences  tokens          loss     gradient")
    for dump in dumps:
        for number in range(len(dump.arguments.batches)):
            _show_micro_batch(trainer, dump, number)
    if config.distributed.engine != "torch":
        loss, grad_norm = _whole(_trainer(config, run_dir, first.stage, weights, where, logprobs), dumps)
    else:
        loss, grad_norm = _whole(trainer, dumps)
    same = _alike(loss, first.loss_sum) and (_alike(grad_norm, first.grad_norm) or math.isnan(first.grad_norm))
    print(
        f"\nthe step ({config.distributed.engine}): loss {loss:.6g}, recorded {first.loss_sum:.6g}; gradient "
        f"{grad_norm:.6g}, recorded {first.grad_norm:.6g}: {'reproduced' if same else 'NOT reproduced'}"
    )
    return 0 if same else 1


def _trainer(
    config: Config, run_dir: Path, stage: str, weights: dict[str, Any], device: torch.device, logprobs: Logprobs | None
) -> AnyTrainer:
    """The run's trainer as it was before the step, without moments: they do not matter to a gradient."""
    policy = load_model(config, run_dir, START[stage], device, stage=stage)
    with user_input():
        add_adapters(policy, config.lora, f"{stage} adapters {config.run.seed}")
    trainer = make_trainer(policy, config, Ranks(device=device), logprobs)
    fresh = trainer.state_dict()
    trainer.load_state_dict({**fresh, **weights, "optimizer": {**fresh["optimizer"], "state": {}}})
    return trainer


def _show_micro_batch(trainer: Trainer, dump: StepDump, number: int) -> None:
    batch, old, ref = _arguments(dump, number)
    found = _measure(trainer, dump, batch, old, ref)
    print(
        f"{dump.rank:4}  {number + 1:11}  {len(batch.advantage):9}  {len(batch.token_ids):6}  {found.loss:12.5g}  "
        f"{found.grad_norm:11.5g}{'' if found.is_finite else '  not finite'}"
    )
    if found.is_finite:
        return
    for place, (single, span) in enumerate(unpack(batch)):
        part = _measure(trainer, dump, single, *(None if x is None else x[span] for x in (old, ref)))
        if not part.is_finite:
            print(
                f"      sequence {place + 1} ({part.num_prompt} + {part.num_completion} tokens, advantage "
                f"{part.advantage:.4g}): loss {part.loss:.5g}, gradient {part.grad_norm:.5g}"
            )


def _measure(trainer: Trainer, dump: StepDump, batch: Batch, old: Tensor | None, ref: Tensor | None) -> Part:
    for parameter in trainer.parameters:
        parameter.grad = None
    value, _ = micro_batch_loss(
        trainer.policy,
        batch,
        old,
        ref,
        options=dump.loss,
        denominator=dump.arguments.denominator,
        temperature=dump.arguments.temperature,
        logprobs=trainer.logprobs,
    )
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.float() for p in trainer.parameters if p.grad is not None]
    norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm() if gradients else 0.0
    for parameter in trainer.parameters:
        parameter.grad = None
    num_completion = len(batch.targets)
    advantage = float(batch.advantage[0]) if len(batch.advantage) else 0.0
    return Part(len(batch.token_ids) - num_completion, num_completion, advantage, float(value.detach()), float(norm))


def _whole(trainer: AnyTrainer, dumps: list[StepDump]) -> tuple[float, float]:
    """Loss and norm of the whole step: all ranks' micro-batches in one process, and nothing updated."""
    parts = [_arguments(dump, number) for dump in dumps for number in range(len(dump.arguments.batches))]
    old = [x for _, x, _ in parts if x is not None]
    ref = [x for *_, x in parts if x is not None]
    first = dumps[0].arguments

    try:
        found = trainer.step(
            [batch for batch, *_ in parts],
            loss=dumps[0].loss,
            denominator=first.denominator,
            lr=0.0,
            temperature=first.temperature,
            old_logp=None if first.old_logp is None else old,
            ref_logp=None if first.ref_logp is None else ref,
        )
    except BadStep as bad:
        found = bad.sums
    return found["loss_sum"], found["grad_norm_sum"]


def _arguments(dump: StepDump, number: int) -> tuple[Batch, Tensor | None, Tensor | None]:
    given = dump.arguments
    old, ref = (None if values is None else values[number] for values in (given.old_logp, given.ref_logp))
    return given.batches[number], old, ref


def unpack(batch: Batch) -> Iterator[tuple[Batch, slice]]:
    """Each sequence of a micro-batch as one of its own, and where its completion's tokens were in [C].

    What `pack` would refuse, such as an advantage that is not finite, is kept. Sequences without a completion are left
    out.
    """
    ends = batch.cu_seqlens[1:].long().contiguous()
    offsets = batch.completion_cu_seqlens.tolist()
    for number, (low, high) in enumerate(pairwise(offsets)):
        if low == high:
            continue
        last_of_prompt = int(batch.predictor_index[low])
        segment = int(torch.searchsorted(ends, last_of_prompt, right=True))
        start, targets = int(batch.cu_seqlens[segment]), batch.targets[low:high]
        prompt = batch.token_ids[start : last_of_prompt + 1]
        length = len(prompt) + len(targets)
        whole = torch.tensor([0, length], dtype=torch.int32)
        single = Batch(
            token_ids=torch.cat([prompt, targets]),
            cu_seqlens=whole,
            predictor_index=torch.arange(len(prompt) - 1, length - 1),
            targets=targets,
            completion_cu_seqlens=torch.tensor([0, len(targets)], dtype=torch.int32),
            advantage=batch.advantage[number : number + 1],
            rollout_logp=None if batch.rollout_logp is None else batch.rollout_logp[low:high],
            log_kept_mass=None if batch.log_kept_mass is None else batch.log_kept_mass[low:high],
        )
        yield single, slice(low, high)


def _alike(found: float, recorded: float) -> bool:
    if not math.isfinite(recorded):
        return not math.isfinite(found)
    return abs(found - recorded) <= CLOSE * max(abs(recorded), 1e-6)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
