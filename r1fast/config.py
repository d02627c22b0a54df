"""Every option of a run: frozen, keyword-only dataclasses, one line of metadata a field.

The defaults are R1's published numbers where one exists (`source` says where), so a recipe states what it changes.
`Config.for_stage` gives a stage its own view; `options.py` reads recipes and the command line into a `Config`.
"""

# ruff: noqa: RUF009 -- `option` returns a dataclass field

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from r1fast.config_option import PAPER, option
from r1fast.distributed_config import DistributedConfig
from r1fast.faults_config import FaultsConfig
from r1fast.general_config import GeneralConfig
from r1fast.harvest_config import ColdStartConfig as ColdStartConfig
from r1fast.harvest_config import RejectionConfig as RejectionConfig
from r1fast.lora_config import LoraConfig as LoraConfig
from r1fast.optimizer_config import OptimizerConfig as OptimizerConfig
from r1fast.rollout_config import RolloutConfig
from r1fast.schedule import IntSchedule, Schedule, at, values
from r1fast.stage_names import EMBEDDED_MODELS as EMBEDDED_MODELS
from r1fast.stage_names import RL_STAGES as RL_STAGES
from r1fast.stage_names import STAGES as STAGES
from r1fast.user_input import ConfigError as ConfigError  # every option's errors, beside the options
from r1fast.user_input import user_input as user_input

if TYPE_CHECKING:
    from r1fast.kernels.grpo_loss import PolicyLoss

RewardWeights = Mapping[str, Mapping[str, Schedule]]  # prompt kind -> reward name -> weight
GymTasks = Mapping[str, Mapping[str, Any]]  # reasoning-gym task -> its arguments
FieldTexts = Mapping[str, Any]  # field of a prompt -> how it is made of columns, see r1fast.data.fields
FileWeights = Mapping[str, float]  # file of examples -> how often each is seen in a pass
StageOverrides = Mapping[str, Mapping[str, Any]]  # stage -> key or section -> value

# Sources of the published numbers.
MATH = "DeepSeekMath"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """[run]: where, on what and how talkative."""

    name: str = option("", "name of the run; empty: the recipe's")
    dir: str = option("", "run directory; empty: runs/NAME")
    seed: int = option(0, "seed of sampling, shuffling and initialisation", need=">= 0")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: cuda where there is a GPU")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "compute dtype (masters are always float32); auto: bfloat16 on cuda, float32 on cpu"
    )
    threads: int = option(0, "CPU threads of a process; 0: torch's choice", unit="threads", need=">= 0")
    samples_per_step: int = option(4, "samples written to samples.jsonl", unit="samples/step", need=">= 0")
    log_every_steps: int = option(1, "a console line every so many steps", unit="steps", need=">= 1")
    save_every_steps: int = option(
        10, "state for resume every so many steps; 0: on SIGTERM and at stage ends only", unit="steps", need=">= 0"
    )
    async_save: Literal["auto", "on", "off"] = option(
        "auto",
        "write a state from a copy on the host while training goes on; auto: where twice the copy's memory is free",
    )
    keep_states: int = option(2, "newest states of a stage that are kept until it ends", unit="states", need=">= 1")
    keep_best: Literal["off", "accuracy", "accuracy_any", "format", "language"] = option(
        "off", "by what the model of a stage's best dev reading is kept, in best/ beside checkpoint/"
    )
    tensorboard: bool = option(True, "write TensorBoard events")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """[model]: the base model, the student, and how a prompt is written for them."""

    path: str = option("tiny-teacher", "base model: tiny-teacher (embedded), a directory or a hub id")
    student: str = option("tiny-student", "base of distill and student_rl: tiny-student, a directory or a hub id")
    gguf_file: str = option("", "file name of a GGUF inside model.path; empty: safetensors")
    template: str = option(
        "r1_zero",
        "r1_zero: the paper's; r1_zero_chat: the same as a system message; chat: the tokenizer's; none; or FILE.jinja",
        source=PAPER,
    )
    trust_remote_code: bool = option(False, "run Python code that comes with the model")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """[data]: prompts for training, `dev` (hyper-parameters) and held-out (closing evaluation), disjoint."""

    source: Literal["tiny", "file", "gym"] = option(
        "tiny", "tiny: embedded world; file: the data set of data.file; gym: reasoning-gym"
    )
    file: str = option(
        "",
        "file: training prompts: .jsonl, .jsonl.gz, .parquet, a pattern or directory of such, or a data set of the "
        "Hugging Face hub, OWNER/NAME[:SUBSET][#SPLIT]; empty: the preset's",
    )
    dev_file: str = option("", "file: dev prompts; empty: num_dev split off data.file")
    held_out_file: str = option(
        "", "file: held-out prompts; empty: the preset's, where data.file is; else num_held_out split off data.file"
    )
    preset: str = option("", "file: columns of a public data set: gsm8k, math, dapo, openr1_math, countdown or code")
    fields: FieldTexts = option({}, 'file: [data.fields] prompt = "question", answer = "solution | boxed", ...')
    bad_rows: Literal["error", "skip"] = option("error", "file: a row that is no prompt: stop, or count and skip it")
    eval_files: tuple[str, ...] = option(
        (), "evaluation sets, beside dev and held-out, that training prompts must not share ten words with"
    )
    pass_rates: str = option(
        "", "file of `r1fast data difficulty`: train on prompts between min_pass_rate and max_pass_rate"
    )
    min_pass_rate: float = option(0.0, "least share of right samples of the base model", need=">= 0 <= 1")
    max_pass_rate: float = option(1.0, "largest share of right samples of the base model", need=">= 0 <= 1")
    gym_tasks: GymTasks = option(
        {}, "gym: [data.gym_tasks.TASK] with the arguments of the task, and `languages` to ask in others, too"
    )
    num_train: int = option(0, "training prompts; 0: all", unit="prompts", need=">= 0")
    num_dev: int = option(256, "dev prompts", unit="prompts", need=">= 1")
    num_held_out: int = option(512, "held-out prompts", unit="prompts", need=">= 1")
    seed: int = option(0, "seed of generation and splits, apart from run.seed", need=">= 0")
    language: str = option("auto", "language of prompts that name none: a code like en, or auto to detect")
    max_bad_golds: float = option(
        0.0, "share of training prompts whose own answer may fail their rewards before the run refuses", need=">= 0 < 1"
    )


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """[pipeline]: which stages run."""

    stages: tuple[str, ...] = option(tuple(STAGES), "stages, in order")


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """[rl]: a GRPO stage. A step is one optimizer step; a rollout serves `updates_per_rollout` steps."""

    steps: int = option(10_400, "optimizer steps", unit="steps", need=">= 1", source=f"{PAPER}: R1-Zero")
    prompts_per_step: IntSchedule = option(
        32, "reasoning prompts of one optimizer step", unit="prompts/step", need=">= 0", source=f"{PAPER}: 512 / 16"
    )
    general_prompts_per_step: IntSchedule = option(
        0, "general prompts of one optimizer step, beside the reasoning ones", unit="prompts/step", need=">= 0"
    )
    group_size: int = option(16, "samples of a prompt, G", unit="samples/prompt", need=">= 1", source=PAPER)
    updates_per_rollout: int = option(
        16, "optimizer steps fed by one rollout; 1: on-policy", unit="steps", need=">= 1", source=f"{PAPER}: 8192 / 512"
    )
    temperature: Schedule = option(1.0, "rollout temperature", need="> 0", source=f"{PAPER}: 1; RL 2 0.7")
    top_p: Schedule = option(1.0, "rollout nucleus mass; 1: off", need="> 0 <= 1", source="not stated")
    max_tokens: IntSchedule = option(
        ((0, 32_768), (8_200, 65_536)), "completion limit", unit="tokens", need=">= 1", source=f"{PAPER}: R1-Zero"
    )
    lr: Schedule = option(3e-6, "learning rate", need=">= 0", source=f"{PAPER}: R1-Zero")
    warmup_steps: int = option(0, "linear warm-up of lr", unit="steps", need=">= 0", source="not stated")
    baseline: Literal["mean", "leave_one_out", "none"] = option(
        "mean", "subtracted from a group's rewards", source=f"{MATH}: mean"
    )
    advantage_scale: Literal["group_std", "batch_std", "none"] = option(
        "group_std", "divides the advantage", source=f"{MATH}: group_std"
    )
    reference_refresh_steps: int = option(
        400, "reference := policy every so many steps; 0: never", unit="steps", need=">= 0", source=f"{PAPER}: R1-Zero"
    )
    zero_variance: Literal["keep", "skip", "refill"] = option(
        "keep", "groups of equal rewards: keep, skip in the update (without KL, same gradient), or draw new prompts"
    )
    dev_every_steps: int = option(100, "dev evaluation every so many steps; 0: never", unit="steps", need=">= 0")
    dev_problems: int = option(128, "problems of a dev evaluation", unit="prompts", need=">= 1")
    strict: bool = option(
        False, "CPU: train by the rollout's own arithmetic, log-probs bitwise the rollout's; a difference stops the run"
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """[loss]: the policy loss, and what a train/rollout mismatch leads to; numbers are schedules, 0 turns one off."""

    objective: Literal["clip", "cispo", "reinforce", "nll"] = option("clip", "policy objective", source=MATH)
    level: Literal["token", "sequence", "sequence_sum"] = option(
        "token", "ratio per token, exp of the mean (GSPO), or exp of the sum as R1 prints it", source=MATH
    )
    clip_low: Schedule = option(0.2, "ratio >= 1 - clip_low", need=">= 0", source=f"not stated; {PAPER}: RL 1 10")
    clip_high: Schedule = option(0.2, "ratio <= 1 + clip_high", need=">= 0", source=f"not stated; {PAPER}: RL 1 10")
    dual_clip: Schedule = option(0.0, "bound of ratio x |advantage| where it is negative; > 1, or 0: off", need=">= 0")
    delta: Schedule = option(0.0, "two-sided clip, upper bound of the ratio; > 1 + clip_high, or 0: off", need=">= 0")
    kl: Literal["none", "k2", "k3", "weighted_k3"] = option("k3", "KL estimator against the reference", source=MATH)
    kl_coef: Schedule = option(0.001, "weight of the KL inside the loss", need=">= 0", source=f"{PAPER}: R1-Zero")
    correction: Literal["none", "truncate", "mask"] = option("none", "train/rollout mismatch: TIS or IcePop")
    correction_level: Literal["token", "sequence"] = option("token", "level of the correction weight")
    correction_cap: Schedule = option(2.0, "cap of the correction weight", need="> 0")
    entropy_coef: Schedule = option(0.0, "weight of the entropy bonus", need=">= 0")
    aggregate: Literal["sequence_mean", "token_mean", "constant"] = option(
        "sequence_mean", "GRPO, DAPO or Dr. GRPO", source=f"{MATH}: sequence_mean"
    )
    warn_gap: Schedule = option(
        0.05, "mean |log-prob of rollout - of trainer| from which the run warns; 0: never", unit="nats", need=">= 0"
    )
    correct_gap: Schedule = option(
        0.1, "from which correction none becomes truncate, until the stage ends; 0: never", unit="nats", need=">= 0"
    )
    stop_gap: Schedule = option(1.0, "from which the run stops; 0: never", unit="nats", need=">= 0")


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """[sft]: supervised stages, SFT 1, SFT 2 and distillation."""

    steps: int = option(0, "optimizer steps; 0: as epochs says", unit="steps", need=">= 0")
    epochs: float = option(
        2.0, "passes over the data, where steps is 0", unit="epochs", need="> 0", source=f"{PAPER}: 2-3"
    )
    batch_size: int = option(
        128, "sequences of one step", unit="sequences", need=">= 1", source=f"{PAPER}: 128 (?), distill 64"
    )
    lr: Schedule = option(5e-5, "learning rate at the start of the cosine", need=">= 0", source=f"{PAPER}: (?)")
    lr_final: Schedule = option(5e-6, "learning rate at its end", need=">= 0", source=f"{PAPER}: (?); distill lr / 10")
    warmup_steps: int = option(0, "linear warm-up of lr", unit="steps", need=">= 0", source="not stated")
    general_share: float = option(0.0, "non-reasoning share of what is drawn, beside the stage's data", need=">= 0 < 1")
    dev_every_steps: int = option(0, "dev evaluation every so many steps; 0: never", unit="steps", need=">= 0")
    files: FileWeights = option(
        {}, '{ "FILE.jsonl" = 0.5 }: further examples, lines of messages, and how often each is seen in a pass'
    )


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """[scoring]: how the rewards of [rewards.KIND] are put together, and rewards of your own."""

    custom: tuple[str, ...] = option((), "rewards of your own: FILE.py:NAME, a function of (prompt, rollout)")
    gate: str = option(
        "", "a reward without whose 1 no other pays (penalties stay), for example format; empty: added", source=PAPER
    )


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """[reward_model]: helpful (pairwise, summary only) and safe (pointwise, whole response)."""

    steps: int = option(
        0, "optimizer steps of each model; 0: one epoch", unit="steps", need=">= 0", source=f"{PAPER}: 1 epoch"
    )
    batch_size: int = option(256, "pairs, or single responses, of a step", unit="pairs", need=">= 1", source=PAPER)
    lr: Schedule = option(6e-6, "learning rate", need=">= 0", source=PAPER)
    pairs: int = option(66_000, "training pairs", unit="pairs", need=">= 1", source=f"{PAPER}: 66k; safety 106k")
    held_out_pairs: int = option(1024, "pairs that measure accuracy", unit="pairs", need=">= 1")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """[judge]: a language model that grades (reward `judge`) over an OpenAI-compatible endpoint; off by default."""

    endpoint: str = option("", "address up to /v1, for example http://localhost:8000/v1; empty: no judge")
    model: str = option("", "name of the model on that server")
    key_variable: str = option("", "environment variable that holds the key; empty: the server wants none")
    prompt: str = option("", "file with the prompt for grades ($question, $response, $reference); empty: built in")
    pair_prompt: str = option("", "file with the prompt for pairs ($question, $first, $second); empty: built in")
    temperature: float = option(0.0, "the judge's sampling temperature", need=">= 0")
    max_tokens: int = option(1024, "limit of a reply", unit="tokens", need=">= 1")
    votes: int = option(4, "votes on a pair, half with swapped positions; even", need=">= 2", source=f"{PAPER}: 4")
    concurrency: int = option(8, "calls at a time", unit="calls", need=">= 1 <= 256")
    timeout_s: float = option(60.0, "clock of one call", unit="s", need="> 0")
    total_timeout_s: float = option(600.0, "clock of a whole batch, retries included", unit="s", need="> 0")
    retries: int = option(4, "more attempts at a call that failed, with growing pauses", need=">= 0")
    prompt_price: float = option(0.0, "price of a million prompt tokens, for the cost counter", need=">= 0")
    reply_price: float = option(0.0, "price of a million reply tokens", need=">= 0")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """[evaluation]: the closing evaluation on held-out problems; dev evaluations use its temperature and top_p."""

    temperature: float = option(0.6, "sampling temperature", need="> 0", source=PAPER)
    top_p: float = option(0.95, "nucleus mass", need="> 0 <= 1", source=PAPER)
    samples_per_problem: int = option(
        8,
        "k of pass@1 and cons@k",
        unit="samples/prompt",
        need=">= 1",
        source=f"{PAPER}: 64 AIME, 16 MATH, 8 LiveCodeBench",
    )
    max_tokens: int = option(32_768, "completion limit", unit="tokens", need=">= 1", source=PAPER)
    high_temperature: float = option(1.0, "temperature of the second reading", need="> 0")
    high_temperature_samples: int = option(4, "its samples of a problem; 0: none", unit="samples/prompt", need=">= 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Sections are tables of the recipe."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    general: GeneralConfig = field(default_factory=GeneralConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    rewards: RewardWeights = option({}, "[rewards.KIND] NAME = weight (a schedule): rewards of prompts of that kind")
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    rejection: RejectionConfig = field(default_factory=RejectionConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    stages: StageOverrides = option({}, "[stages.STAGE] KEY = value: what one stage changes")

    def for_stage(self, name: str) -> Config:
        """The configuration as stage `name` sees it: [stages.NAME] merged in.

        Flat keys go to the stage's main section (`STAGES`), tables to the section of their name.

        Raises:
            ConfigError: no such stage.
        """
        if name not in STAGES:
            raise ConfigError(f"stage {name!r} does not exist; the stages are {', '.join(STAGES)}")
        changes: dict[str, dict[str, Any]] = {}
        for key, value in self.stages.get(name, {}).items():
            if key in SECTIONS and isinstance(value, Mapping):
                changes.setdefault(key, {}).update(value)
            else:
                changes.setdefault(STAGES[name], {})[key] = value
        rewards = {kind: {**self.rewards.get(kind, {}), **own} for kind, own in changes.pop("rewards", {}).items()}
        sections = {section: replace(getattr(self, section), **keys) for section, keys in changes.items()}
        return replace(self, rewards={**self.rewards, **rewards}, **sections)

    def active_rewards(self) -> frozenset[str]:
        """The rewards with a weight other than 0, for some kind of prompt and at some step."""
        tables = self.rewards.values()
        return frozenset(name for table in tables for name, weight in table.items() if any(values(weight)))

    def policy_loss(self, step: int) -> PolicyLoss:
        """The loss options in force at `step`; numbers that 0 turns off become None."""
        from r1fast.kernels.grpo_loss import PolicyLoss  # torch and Triton load only where a loss is needed

        options: dict[str, Any] = {}
        for option_field in fields(PolicyLoss):
            value = getattr(self.loss, option_field.name)
            options[option_field.name] = value if isinstance(value, str) else at(value, step)
        for name in ("dual_clip", "delta"):
            options[name] = options[name] or None
        return PolicyLoss(**options)


SECTIONS = tuple(section.name for section in fields(Config) if section.name != "stages")
