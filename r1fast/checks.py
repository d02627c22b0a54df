"""What must hold between options, checked once when a configuration is read; `schema.py` checks each value alone."""

from __future__ import annotations

from importlib.util import find_spec

from r1fast.config import EMBEDDED_MODELS, RL_STAGES, STAGES, Config, ConfigError
from r1fast.distributed_config import DistributedConfig
from r1fast.judge_checks import check_judge, check_rewriting
from r1fast.rollout_checks import check_rollout, check_teams
from r1fast.schedule import at, change_steps, values
from r1fast.training_checks import check_training, check_training_device
from r1fast.weight_sharing import shares_weights
from r1fast.zero_config import deepspeed_options

# Stage -> the stages whose results it reads. RL 2 needs `reward_models` too where its rewards do.
NEEDS = {
    "cold_start": ("r1_zero",),
    "sft_1": ("cold_start",),
    "rl_1": ("sft_1",),
    "rejection": ("rl_1",),
    "sft_2": ("rejection",),
    "rl_2": ("sft_2",),
    "distill": ("rejection",),
}
TRAINED_REWARDS = ("helpful", "safe")  # reward names that the stage `reward_models` trains
MODEL_REWARDS = (*TRAINED_REWARDS, "judge")  # that models give, to whole batches
STUDENT_STAGES = frozenset({"distill", "student_rl"})


def check_config(config: Config) -> None:
    """Refuse what cannot run.

    Raises:
        ConfigError: with value, constraint and fix; stage options are named `stages.STAGE.KEY`.
    """
    _check_pipeline(config)
    _check_keep_best(config)
    for stage in config.pipeline.stages:
        view = config.for_stage(stage)
        _check_model(view, stage)
        _check_data(view)
        _check_distributed(view, stage)
        check_training(view, stage)
        _check_faults(view)
        check_rollout(view, stage)
        if stage in RL_STAGES:
            _check_rl(view, stage)
            _check_skip(view, stage)
            _check_rewards(view, stage)
            _check_loss(view, stage)
        if stage == "cold_start":
            check_rewriting(view)
        if stage == "rejection" and view.rejection.min_grade:
            check_judge(view)


def check_processes(config: Config, world_size: int) -> None:
    """Refuse more processes than a stage has work for; a batch need not be divisible by their number.

    Raises:
        ConfigError: with value, constraint and fix.
    """
    for stage in config.pipeline.stages:
        view = config.for_stage(stage)
        sharing = view.distributed.sequence_parallel
        if world_size % sharing:
            raise ConfigError(
                f"distributed.sequence_parallel = {sharing} does not divide {world_size} processes; start a multiple "
                f"of {sharing}, or set it to 1"
            )
        check_teams(view.rollout.tensor_parallel, world_size)
        if stage in RL_STAGES:
            rl = view.rl
            sizes = [
                (at(rl.prompts_per_step, step) + at(rl.general_prompts_per_step, step)) * rl.updates_per_rollout
                for step in change_steps(rl.prompts_per_step, rl.general_prompts_per_step)
            ]
            key, num_items, unit = f"stages.{stage}.prompts_per_step", min(sizes), "prompts in a rollout"
            if rl.advantage_scale == "batch_std" and world_size > 1:
                raise ConfigError(
                    f"stages.{stage}.advantage_scale = 'batch_std' with {world_size} processes: each would scale by "
                    "its own share of the batch; use group_std or none, or one process"
                )
        elif STAGES[stage] in ("sft", "reward_model"):
            section = getattr(view, STAGES[stage])
            key, num_items, unit = f"stages.{stage}.batch_size", section.batch_size, "sequences in a batch"
        else:
            continue
        needed = world_size // sharing if STAGES[stage] == "sft" else world_size
        if num_items < needed:
            raise ConfigError(
                f"{key}: {num_items} {unit} for {needed} processes would leave {needed - num_items} of them "
                f"without work; start at most {num_items} processes, or raise it"
            )


def check_device(config: Config, device: str) -> None:
    """Refuse what holds on another device only; `device` is the type of the one that the run will use.

    Raises:
        ConfigError: with value, constraint and fix.
    """
    for stage in config.pipeline.stages:
        check_training_device(config.for_stage(stage), stage, device)
        if stage in RL_STAGES and config.for_stage(stage).rl.strict and device != "cpu":
            raise ConfigError(
                f"stages.{stage}.strict = true holds on the CPU, and this run is on {device}, where products may "
                "depend on the batch: set it to false (loss.correct_gap corrects what differs), or give --run.device "
                "cpu"
            )


def _check_pipeline(config: Config) -> None:
    stages, order = config.pipeline.stages, ", ".join(STAGES)
    if not stages:
        raise ConfigError(f"pipeline.stages is empty; name at least one of {order}")
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(f"pipeline.stages: stage {stage!r} does not exist; the stages are {order}")
        if stages.count(stage) > 1:
            raise ConfigError(f"pipeline.stages names {stage} {stages.count(stage)} times; a stage runs once")
        missing = [needed for needed in NEEDS.get(stage, ()) if needed not in stages]
        if missing and STAGES[stage] == "sft":
            _check_files_alone(config, stage, missing[0])
        elif missing:
            raise ConfigError(f"pipeline.stages: {stage} reads the result of {missing[0]}, which is missing; add it")
    in_order = tuple(stage for stage in STAGES if stage in stages)
    if stages != in_order:
        raise ConfigError(f"pipeline.stages = {list(stages)} is out of order; write {list(in_order)}")


def _check_files_alone(config: Config, stage: str, missing: str) -> None:
    """A supervised stage may learn from files alone, in the place of the stage that is `missing`."""
    sft = config.for_stage(stage).sft
    if not sft.files:
        raise ConfigError(
            f"pipeline.stages: {stage} reads the result of {missing}, which is missing; add it, or give "
            f"stages.{stage}.files to learn from"
        )
    if sft.general_share:
        raise ConfigError(
            f"stages.{stage}.general_share = {sft.general_share} is a share beside the result of {missing}, which is "
            "missing: set it to 0, and give general examples as a further file"
        )
    if not sft.steps:
        raise ConfigError(
            f"stages.{stage}.steps = 0 counts the result of {missing}, which is missing: give steps, epochs x examples "
            "/ batch_size"
        )


def _check_model(config: Config, stage: str) -> None:
    model, data = config.model, config.data
    names = {"model.path": model.path}
    if stage in STUDENT_STAGES:
        names["model.student"] = model.student
    for key, path in names.items():
        fix = "--model PATH" if key == "model.path" else f"--{key} PATH"
        if not path:
            raise ConfigError(f"{key} is empty, stage {stage} needs a model: give {fix} (a directory or a hub id)")
        embedded = path in EMBEDDED_MODELS
        if data.source == "tiny" and not embedded:
            raise ConfigError(
                f"data.source = 'tiny' is written for the embedded models ({', '.join(EMBEDDED_MODELS)}), "
                f"but {key} = {path!r}: give --data FILE, or data.source = 'gym' with data.gym_tasks"
            )
        if data.source != "tiny" and embedded:
            raise ConfigError(
                f"{key} = {path!r} knows only the words of the embedded data, but data.source = {data.source!r}: "
                f"give {fix}, or data.source = 'tiny'"
            )
        if embedded and (model.gguf_file or model.trust_remote_code):
            raise ConfigError(f"{key} = {path!r} is embedded: model.gguf_file and model.trust_remote_code do not apply")


def _check_distributed(config: Config, stage: str) -> None:
    options, defaults = config.distributed, DistributedConfig()
    if options.sequence_parallel > 1 and stage in RL_STAGES and config.rl.strict:
        raise ConfigError(
            f"stages.{stage}.strict = true with distributed.sequence_parallel = {options.sequence_parallel}: slices "
            "are not bitwise the rollout's; set one of them back"
        )
    if options.engine == "torch":
        both = ("engine", "sequence_parallel")
        given = [name for name, value in vars(options).items() if name not in both and value != getattr(defaults, name)]
        if given:
            raise ConfigError(
                f"distributed.{given[0]} is DeepSpeed's, and distributed.engine = 'torch': set it to 'deepspeed', or "
                "leave the option out"
            )
        return
    if not find_spec("deepspeed"):
        raise ConfigError("distributed.engine = 'deepspeed' needs deepspeed: pip install deepspeed, or use 'torch'")
    if options.zero_stage == 0 and options.offload_optimizer != "none":
        raise ConfigError(
            f"distributed.offload_optimizer = {options.offload_optimizer!r} needs zero_stage = 1 at least: ZeRO 0 "
            "moves nothing"
        )
    if options.zero_stage == 0 and config.run.dtype == "bfloat16":
        raise ConfigError(
            "distributed.zero_stage = 0 with run.dtype = 'bfloat16': DeepSpeed sums up float32 gradients for it from "
            "zero_stage = 1 on; use 1, or engine = 'torch', which shares nothing out either"
        )
    if options.zero_stage == 3 and config.optimizer.offload_activations and not config.optimizer.gradient_checkpointing:
        raise ConfigError(
            "optimizer.offload_activations with distributed.zero_stage = 3 would move the gathered weights, too: set "
            "optimizer.gradient_checkpointing = true, or use zero_stage = 1 or 2"
        )
    if options.offload_parameters != "none" and options.zero_stage < 3:
        raise ConfigError(
            f"distributed.offload_parameters = {options.offload_parameters!r} needs zero_stage = 3, not "
            f"{options.zero_stage}: only ZeRO 3 moves parameters"
        )
    if ("nvme" in (options.offload_optimizer, options.offload_parameters)) != bool(options.nvme_path):
        raise ConfigError(
            f"distributed.nvme_path = {options.nvme_path!r} belongs to offload_optimizer or offload_parameters = "
            "'nvme': give both or neither"
        )
    if "nvme" in (options.offload_optimizer, options.offload_parameters) and options.zero_stage < 3:
        raise ConfigError(f"distributed: offload to nvme needs zero_stage = 3, not {options.zero_stage}")
    if config.optimizer.offload_while_generating:
        raise ConfigError(
            "optimizer.offload_while_generating moves what DeepSpeed holds: set distributed.offload_optimizer = 'cpu' "
            "in its place"
        )
    if shares_weights(config, stage) and config.model.trust_remote_code:
        raise ConfigError(
            f"model.trust_remote_code = true in stage {stage}, whose weights ZeRO 3 shares out: only one process reads "
            "the model's files; use zero_stage = 2, or a model that transformers has"
        )
    if stage in RL_STAGES and config.rl.strict and options.zero_stage == 3:
        raise ConfigError(f"stages.{stage}.strict = true reads whole parameters: use zero_stage = 0, 1 or 2")
    deepspeed_options(options, "float32")  # so that bf16 is refused in the file, whatever run.dtype is


def _check_faults(config: Config) -> None:
    faults = config.faults
    if faults.spike == "skip" and config.distributed.engine == "deepspeed":
        raise ConfigError(
            "faults.spike = 'skip' must know the gradient's norm before the update, and distributed.engine = "
            "'deepspeed' tells it with the update alone: use 'warn', or engine = 'torch'"
        )
    defaults = type(faults)()
    given = [name for name in ("spike_factor", "spike_window") if getattr(faults, name) != getattr(defaults, name)]
    if faults.spike == "off" and given:
        raise ConfigError(f"faults.{given[0]} is set but faults.spike = 'off' uses none: set it to 'warn' or 'skip'")


def _check_data(config: Config) -> None:
    data = config.data
    if data.source == "file" and not data.file and not data.preset:
        raise ConfigError(
            'data.source = \'file\' needs data.file: give --data FILE with {"prompt", "answer"} lines, or data.preset'
        )
    used = ("file", "dev_file", "held_out_file", "preset", "fields")
    given = [f"data.{name}" for name in used if getattr(data, name)]
    if data.source != "file" and given:
        raise ConfigError(f"{given[0]} is set but data.source = {data.source!r} reads none: set data.source = 'file'")
    if data.source == "tiny" and any(vars(config.general).values()):
        raise ConfigError('[general] names files, and data.source = "tiny" has general data of its own; leave one out')
    if data.source == "tiny" and (data.eval_files or data.pass_rates):
        name = "eval_files" if data.eval_files else "pass_rates"
        raise ConfigError(f"data.{name} is set but data.source = 'tiny' does not use it: leave it out")
    if not data.pass_rates and (data.min_pass_rate, data.max_pass_rate) != (0.0, 1.0):
        raise ConfigError(
            "data.min_pass_rate and data.max_pass_rate need data.pass_rates: measure them with r1fast data difficulty"
        )
    if data.min_pass_rate > data.max_pass_rate:
        raise ConfigError(
            f"data.min_pass_rate = {data.min_pass_rate} is above data.max_pass_rate = {data.max_pass_rate}: swap them"
        )
    if data.source == "gym" and not data.gym_tasks:
        raise ConfigError('data.source = "gym" needs at least one [data.gym_tasks.TASK], for example chain_sum')
    if data.source == "gym" and data.num_train == 0:
        raise ConfigError("data.num_train = 0 means all, but reasoning-gym has no end: give a number")


def _check_rl(config: Config, stage: str) -> None:
    rl = config.rl
    if rl.group_size < 2:
        raise ConfigError(
            f"stages.{stage}.group_size = {rl.group_size}: the advantage of a group of one is always 0; give at least 2"
        )
    for step in change_steps(rl.prompts_per_step, rl.general_prompts_per_step):
        num_prompts = at(rl.prompts_per_step, step) + at(rl.general_prompts_per_step, step)
        if num_prompts == 0:
            raise ConfigError(f"stages.{stage}: no prompts at step {step}; raise prompts_per_step to at least 1")
    if rl.dev_every_steps and rl.dev_problems > config.data.num_dev:
        raise ConfigError(
            f"stages.{stage}.dev_problems = {rl.dev_problems} exceeds data.num_dev = {config.data.num_dev}; "
            "lower one or raise the other"
        )


def _check_skip(config: Config, stage: str) -> None:
    """Sequences without an advantage may be left out only where nothing else gives them a gradient."""
    loss = config.loss
    others = []
    if loss.kl != "none" and any(values(loss.kl_coef)):
        others.append(f"loss.kl = {loss.kl!r} with kl_coef {loss.kl_coef}")
    if any(values(loss.entropy_coef)):
        others.append(f"loss.entropy_coef = {loss.entropy_coef}")
    if loss.objective == "nll":
        others.append("loss.objective = 'nll', which raises every completion,")
    if config.rl.zero_variance == "skip" and others:
        raise ConfigError(
            f"stages.{stage}.zero_variance = 'skip' would drop the gradient of {' and '.join(others)}; "
            "use keep, or loss.kl = 'none', loss.entropy_coef = 0 and a clipped objective"
        )


def _check_rewards(config: Config, stage: str) -> None:
    from r1fast.rewards import REWARDS  # torch loads only where a configuration is checked, not for --help
    from r1fast.rewards.custom import split_spec

    try:
        custom = [split_spec(spec)[1] for spec in config.scoring.custom]
    except ValueError as error:
        raise ConfigError(f"scoring.custom: {error}") from None
    known = (*REWARDS, *MODEL_REWARDS, *custom)
    for name in custom:
        if not any(name in table for table in config.rewards.values()):
            raise ConfigError(f"stages.{stage}: reward {name} has no weight; give one, --rewards.KIND.{name} 1.0")
    if gate := config.scoring.gate:
        without = sorted(kind for kind, table in config.rewards.items() if gate not in table)
        if without or gate in MODEL_REWARDS:
            raise ConfigError(
                f"stages.{stage}: scoring.gate = {gate!r} must be a rule reward with a weight, 0 is enough, for every "
                f"kind of prompt; kinds without: {', '.join(without) or 'none'}"
            )
    for kind, weights in config.rewards.items():
        for name in weights:
            if name not in known:
                raise ConfigError(
                    f"stages.{stage}: no reward rewards.{kind}.{name}; the rewards are {', '.join(known)}"
                )
    active = config.active_rewards()
    if not active:
        raise ConfigError(
            f"stages.{stage}: every reward weight is 0; give one, for example rewards.math.accuracy = 1.0"
        )
    from_models = sorted(active.intersection(TRAINED_REWARDS))
    if from_models and "reward_models" not in config.pipeline.stages:
        raise ConfigError(
            f"stages.{stage}: rewards {from_models} come from the stage reward_models, which does not run; "
            "add it to pipeline.stages or set their weights to 0"
        )
    order = list(STAGES)
    if from_models and order.index(stage) < order.index("reward_models"):
        kind, name = next((k, n) for k, table in config.rewards.items() for n in table if n in from_models)
        raise ConfigError(
            f"stages.{stage}: rewards {from_models} come from the stage reward_models, which runs after it; set their "
            f"weights to 0 here (stages.{stage}.rewards.{kind}.{name} = 0), or give them to a later stage alone "
            f"(stages.rl_2.rewards.{kind}.{name})"
        )
    if "judge" in active:
        check_judge(config)


def _check_loss(config: Config, stage: str) -> None:
    numbers = [value for value in vars(config.loss).values() if not isinstance(value, str)]
    for step in change_steps(*numbers):
        try:
            config.policy_loss(step)
        except ValueError as error:
            raise ConfigError(f"stages.{stage}.loss at step {step}: {error}") from None
        gaps = {name: at(getattr(config.loss, name), step) for name in ("warn_gap", "correct_gap", "stop_gap")}
        on = [value for value in gaps.values() if value]
        if on != sorted(on):
            listed = ", ".join(f"{name} = {value:g}" for name, value in gaps.items())
            raise ConfigError(f"stages.{stage}.loss at step {step}: {listed} must not fall; 0 turns one off")


def reads_dev(config: Config, stage: str) -> bool:
    """Whether a stage reads dev: the base model's once, others while they train."""
    section = getattr(config.for_stage(stage), STAGES[stage])
    return stage == "base" or bool(getattr(section, "dev_every_steps", 0))


def keeps_best(config: Config, stage: str) -> bool:
    """Whether a stage keeps the model of the best reading of dev while it trains."""
    return config.run.keep_best != "off" and stage != "base" and reads_dev(config, stage)


def _check_keep_best(config: Config) -> None:
    if config.run.keep_best == "off" or any(keeps_best(config, stage) for stage in config.pipeline.stages):
        return
    raise ConfigError(
        f"run.keep_best = {config.run.keep_best!r}, but no stage of this run reads dev while it trains; set "
        "rl.dev_every_steps or sft.dev_every_steps, or run.keep_best = 'off'"
    )
