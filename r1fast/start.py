"""From a checked configuration to a run: source, log and console put together; and the plan of a dry run."""

from __future__ import annotations

from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from r1fast.architectures import known_config
from r1fast.config import Config, user_input
from r1fast.console import Console
from r1fast.context import RunContext, compute_dtype, local_device, write_json
from r1fast.cpu_products import multiplied_in_fp32, slow_dtype_hint
from r1fast.distributed import Ranks, idle_gpu_hint
from r1fast.metrics import MetricsLog
from r1fast.model_size import ModelSize
from r1fast.phase_memory import Place
from r1fast.plan import Plan, make_plan, probe_speed
from r1fast.preflight import describe, roots
from r1fast.source import Source
from r1fast.stop import StopRequest
from r1fast.tiny.source import TinySource

TINY_TRAIN_PROMPTS = 4096


def open_source(config: Config) -> Source:
    """The source that [data] names."""
    data = config.data
    if data.source == "tiny":
        return TinySource(
            num_train=data.num_train or TINY_TRAIN_PROMPTS,
            num_dev=data.num_dev,
            num_held_out=data.num_held_out,
            seed=data.seed,
        )
    from r1fast.data.source import PromptSource

    with user_input():
        return PromptSource(data, config.general)


def open_run(
    config: Config, run_dir: Path, ranks: Ranks, stop: StopRequest | None = None, *, source: Source | None = None
) -> RunContext:
    """Everything the stages share; the source is opened unless it is given."""
    leads = ranks.rank == 0
    disable_progress_bar()  # type: ignore[no-untyped-call]  # loading and saving are short; their bars would tear the live line
    with user_input():  # a damaged metrics.jsonl
        metrics = MetricsLog(run_dir, tensorboard=config.run.tensorboard) if leads else None
    context = RunContext(
        config=config,
        run_dir=run_dir,
        ranks=ranks,
        console=Console(enabled=leads, every_steps=config.run.log_every_steps),
        metrics=metrics,
        source=source or open_source(config),
        stop=stop or StopRequest(),
    )
    if leads and context.source.report:
        write_json(run_dir / "data.json", context.source.report)
    for note in context.source.notes:
        context.console.note(f"data: {note}")
    for hint in (idle_gpu_hint(ranks), slow_dtype_hint(compute_dtype(config, ranks.device), ranks.device)):
        if hint:
            context.console.warn(hint)
    return context


def plan_of(config: Config) -> Plan:
    """What a run would do, from the models' configurations alone.

    Raises:
        ConfigError: a model is not there.
    """
    device = local_device(config)
    dtype = compute_dtype(config, device)
    model, student = model_sizes(config)
    speed = probe_speed(device, dtype)
    place = Place(
        on_gpu=device.type == "cuda",
        compute_bytes=dtype.itemsize,
        packed_bytes=4 if device.type == "cpu" and multiplied_in_fp32(dtype) else dtype.itemsize,
    )
    return make_plan(config, model, student=student, speed=speed, place=place)


def model_sizes(config: Config) -> tuple[ModelSize, ModelSize | None]:
    """Of the base model and the student, where a stage starts from it; of well-known checkpoints without a download."""
    sizes: dict[str, ModelSize] = {}
    with user_input():
        for root in roots(config, config.pipeline.stages):
            path = config.model.path if root == "base" else config.model.student
            sizes[root] = ModelSize.of(known_config(path) or describe(config, root))
    student = sizes.get("student")
    model = sizes.get("base", student)
    assert model is not None, "a pipeline has stages, and they start from some model"
    return model, student
