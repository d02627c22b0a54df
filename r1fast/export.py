"""`r1fast export RUN --stage NAME [--out DIR] [--dtype TYPE]`: one Hugging Face directory from any state of a run.

Of a finished stage that is its checkpoint; of one that is under way its newest whole state, whose masters are float32,
whatever engine, ZeRO stage and number of processes saved it. Adapters are merged in float32. The directory is whole or
not there; nothing is overwritten, and a run that is going on is not disturbed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from r1fast.adapters import adapted_layers, merged_weights
from r1fast.atomic import atomic_directory
from r1fast.checkpoint import StateFolder, read_state
from r1fast.config import STAGES, Config, ConfigError, user_input
from r1fast.context import START, compute_dtype, load_model, local_device
from r1fast.lora import add_adapters
from r1fast.models import check_checkpoint, read_json
from r1fast.policy import Policy
from r1fast.run_dir import open_config, stage_directory

BAD_INPUT = 2
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTEMPTS = 3  # a run that is going on may drop a state between finding and reading it


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written where: `origin` says of which state, `num_params` counts tied weights once."""

    path: Path
    origin: str
    num_params: int
    dtype: torch.dtype


def main(argv: Sequence[str] | None = None) -> int:
    """Export and say what; 2 for a run, a stage, a state or a place that cannot be."""
    parser = argparse.ArgumentParser(prog="r1fast export", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run, finished or going on")
    parser.add_argument("--stage", required=True, metavar="NAME", help=f"one of {', '.join(trained_stages())}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a directory that is not there (RUN/export/NAME)")
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="of the weights; auto: as the stage's checkpoint"
    )
    options = parser.parse_args(argv)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        done = export(options.run, options.stage, out=options.out, dtype=DTYPES.get(options.dtype))
    except ConfigError as error:
        print(f"r1fast export: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT
    print(
        f"{done.path}: {options.stage}, {done.origin}; {done.num_params:,} parameters in "
        f"{str(done.dtype).removeprefix('torch.')}"
    )
    return 0


def trained_stages() -> tuple[str, ...]:
    """The stages that leave a causal LM."""
    return tuple(stage for stage, section in STAGES.items() if section in ("rl", "sft"))


def export(run_dir: Path, stage: str, *, out: Path | None = None, dtype: torch.dtype | None = None) -> Exported:
    """Write the model of a stage as it is now; `dtype` None: the one that the stage's checkpoint has, or would have.

    Raises:
        ConfigError: no run, no such stage in it, no state yet, a model that is gone, or a place that is taken.
    """
    config = open_config(run_dir)
    _check_stage(config, stage)
    path = out if out is not None else run_dir / "export" / stage
    if path.exists():
        raise ConfigError(f"{path} is there already and would be overwritten: give another --out DIR, or remove it")
    policy, origin, own_dtype = _policy_of(config, run_dir, stage)
    dtype = dtype or own_dtype
    weights = _converted(merged_weights(policy.module), dtype)
    _set_generation(policy, config)
    policy.module.to(dtype)  # type: ignore[arg-type]  # what config.json says
    num_params = policy.module.num_parameters() - sum(_extra(layer) for layer in adapted_layers(policy.module).values())
    with atomic_directory(path) as partial:
        policy.module.save_pretrained(str(partial), state_dict=weights)
        policy.tokenizer.save_pretrained(str(partial))
        check_checkpoint(partial)
    return Exported(path=path, origin=origin, num_params=num_params, dtype=dtype)


def _converted(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in another dtype; those that are tied stay so, and are written once."""
    made: dict[Any, Tensor] = {}
    keys = {name: (value.data_ptr(), value.shape, value.stride()) for name, value in weights.items()}
    for name, value in weights.items():
        if keys[name] not in made:
            made[keys[name]] = value.to(dtype)
    return {name: made[key] for name, key in keys.items()}


def _check_stage(config: Config, stage: str) -> None:
    if stage == "reward_models":
        raise ConfigError(
            "--stage reward_models: its models, helpful/ and safe/ in the stage's directory, are sequence classifiers "
            "and need no export: AutoModelForSequenceClassification loads them"
        )
    if stage not in trained_stages() or stage not in config.pipeline.stages:
        there = ", ".join(name for name in config.pipeline.stages if name in trained_stages())
        raise ConfigError(f"--stage {stage!r} trains no model in this run; its stages that do are {there or 'none'}")


def _policy_of(config: Config, run_dir: Path, stage: str) -> tuple[Policy, str, torch.dtype]:
    """The stage's model in float32, which state that is, and the dtype that its checkpoint has or will have here."""
    directory, cpu = stage_directory(run_dir, stage), torch.device("cpu")
    found = None if _is_finished(directory) else _newest(directory, stage)
    if found is None:
        policy = load_model(_with_dtype(config, torch.float32), run_dir, stage, cpu)
        saved = read_json(directory / "checkpoint" / "config.json", f"the checkpoint of {stage}").get("dtype")
        return policy, "its checkpoint", DTYPES.get(str(saved), torch.float32)
    step, trainer = found
    dtype = compute_dtype(config, local_device(config))
    view = _with_dtype(config, dtype).for_stage(stage)  # adapters were trained on weights of this dtype
    policy = load_model(view, run_dir, START[stage], cpu, stage=stage)
    with user_input():
        add_adapters(policy, view.lora, stage)
    nn.Module.float(policy.module)
    own = dict(policy.module.named_parameters())
    if not set(trainer["names"]) <= own.keys():
        odd = sorted(set(trainer["names"]) - own.keys())[:3]
        raise ConfigError(f"the state of {stage} is of another model than {START[stage]}'s: it has {', '.join(odd)}")
    with torch.no_grad():
        for name, master in zip(trainer["names"], trainer["masters"], strict=True):
            own[name].copy_(master)
    return policy, f"after step {step} of a stage that is not finished", dtype


def _with_dtype(config: Config, dtype: torch.dtype) -> Config:
    name: Any = str(dtype).removeprefix("torch.")
    return replace(config, run=replace(config.run, dtype=name))


def _is_finished(directory: Path) -> bool:
    return (directory / "result.json").exists()


def _newest(directory: Path, stage: str) -> tuple[int, dict[str, Any]] | None:
    """Step and trainer of the newest whole state; None of a stage that has ended meanwhile and dropped its states."""
    warnings: list[str] = []
    for _ in range(ATTEMPTS):
        try:
            found = StateFolder(directory, warnings.append).newest()
            if found is None:
                break
            state = read_state(found[1])
        except FileNotFoundError:
            continue
        for warning in warnings:
            print(f"r1fast export: {warning}", file=sys.stderr)
        return found[0], state["trainer"]
    if _is_finished(directory):
        return None
    detail = f" ({'; '.join(warnings)})" if warnings else ""
    raise ConfigError(
        f"--stage {stage} is not finished and has no saved state{detail}: it saves one every run.save_every_steps "
        "steps and on SIGTERM"
    )


def _set_generation(policy: Policy, config: Config) -> None:
    """generation_config.json: how the run's evaluation samples, and every token that ends a completion."""
    evaluation, generation = config.for_stage("evaluation").evaluation, policy.module.generation_config
    assert generation is not None
    generation.do_sample, generation.temperature, generation.top_p = True, evaluation.temperature, evaluation.top_p
    generation.eos_token_id = list(policy.eos_token_ids)
    if generation.pad_token_id is None:
        generation.pad_token_id = policy.tokenizer.pad_token_id
    if generation.pad_token_id is None:
        generation.pad_token_id = policy.eos_token_ids[0]


def _extra(layer: Any) -> int:
    """Numbers of a layer's adapter, which are merged."""
    return sum(p.numel() for name, p in layer.named_parameters() if not name.startswith("base_layer."))
