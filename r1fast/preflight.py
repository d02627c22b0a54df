"""What is wrong with a run before a model is loaded or a byte is written: data, model files, lengths, space."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from r1fast.checks import MODEL_REWARDS, STUDENT_STAGES, check_device, check_processes
from r1fast.completion_limits import Limit, completion_limits, sampled_models
from r1fast.config import RL_STAGES, STAGES, Config, ConfigError, RewardWeights, user_input
from r1fast.context import CONVERSATIONAL, compute_dtype, local_device
from r1fast.data.examples import read_messages
from r1fast.data.prompts import most_bytes, varieties
from r1fast.device_memory import check_cache, check_gpu, sampling
from r1fast.disk import check_directory, run_bytes
from r1fast.language_checks import FILTERING, check_languages
from r1fast.models import check_checkpoint, model_path, read_json
from r1fast.policy import eos_token_ids, load_tokenizer
from r1fast.records import Prompt
from r1fast.rewards.code import is_code
from r1fast.rewrite_instruction import CONVERSATION, read_instruction
from r1fast.rollout.vllm_model import check_vllm
from r1fast.run_dir import unfinished_stages
from r1fast.sandbox.client import Sandbox
from r1fast.sandbox.layers import refusal
from r1fast.schedule import values
from r1fast.scorer import Scorer
from r1fast.sequence_parallel import check_sequence_parallel, check_tensor_parallel
from r1fast.source import Source, Split
from r1fast.templates import set_template, write_prompts
from r1fast.training_checks import ADAPTED, check_offload, check_targets
from r1fast.zero_config import check_nvme

logger = logging.getLogger(__name__)

NUM_GOLDS = 10_000  # gold answers that are scored
LONGEST = 16  # prompts that are written in the template, of those with most tokens


def check_run(config: Config, run_dir: Path, source: Source, *, device: torch.device, world_size: int = 1) -> None:
    """Check what the unfinished stages of a run need; reads headers, tokenizers and prompts, no weights.

    Raises:
        ConfigError: the first thing that is wrong, with value, constraint and fix.
    """
    stages = unfinished_stages(config, run_dir)
    if stages:
        check_processes(config, world_size)
        check_offload(config, stages, device.type)
        for stage in stages:
            check_nvme(config.for_stage(stage).distributed)
        check_device(config, device.type)
        files = check_input(config, source, stages)
        if device.type == "cuda":
            check_gpu(config, stages, {root: m.described for root, m in files.items()}, device, world_size)
        check_directory(run_dir, space_needed(config, stages, files, device))


def check_input(config: Config, source: Source, stages: Collection[str]) -> dict[str, ModelFiles]:
    """Check the data and the models that these stages start from; returns the latter by `base`, `student`.

    Raises:
        ConfigError: as `check_run`.
    """
    with user_input():
        check_backend(config, stages)
        check_source(config, source, stages)
        files = {root: ModelFiles.read(config, root) for root in roots(config, stages)}
        for model in files.values():
            model.check_stages(config, source, stages)
    return files


def check_backend(config: Config, stages: Collection[str]) -> None:
    """ValueError where the engine that a stage samples with is not installed."""
    if any(config.for_stage(stage).rollout.backend == "vllm" for stage in sampling(config, stages)):
        check_vllm()


def space_needed(config: Config, stages: Collection[str], files: Mapping[str, ModelFiles], device: torch.device) -> int:
    """Bytes that these stages write; models whose files do not tell their size count nothing."""
    params = {root: model.num_params for root, model in files.items()}
    adapters = {}
    for stage in stages:
        lora, model = config.for_stage(stage).lora, files.get("student" if stage in STUDENT_STAGES else "base")
        if lora.rank and stage in ADAPTED and model is not None and model.layers:
            adapters[stage] = lora.num_params(model.layers)
    return run_bytes(
        config,
        stages,
        num_params=params.get("base", 0),
        student_params=params.get("student", 0),
        compute_bytes=compute_dtype(config, device).itemsize,
        adapters=adapters,
    )


def roots(config: Config, stages: Collection[str]) -> list[str]:
    """The models of [model] that these stages start from in the end, or evaluate: `base`, `student`."""
    students = [stage for stage in stages if stage in STUDENT_STAGES]
    base = ["base"] if len(students) < len(stages) else []
    evaluated = "evaluation" in stages and not STUDENT_STAGES.isdisjoint(config.pipeline.stages)
    return [*base, "student"] if students or evaluated else base


def check_source(config: Config, source: Source, stages: Collection[str]) -> None:
    """General data where a stage needs them; rewards for every kind of prompt; gold answers that score 1."""
    prompts = source.prompts("train")
    if any(is_code(prompt) for prompt in varieties(prompts)):
        check_isolation()
    checked: list[RewardWeights] = []
    for stage in stages:
        view = config.for_stage(stage)
        try:
            if stage == "rejection" and view.rejection.general_share:
                source.general_examples(1, 0)
            if stage == "reward_models":
                counts: dict[Split, int] = {
                    "train": view.reward_model.pairs,
                    "held_out": view.reward_model.held_out_pairs,
                }
                for split, count in counts.items():
                    source.preference_pairs(split, count, 0)
                    source.safety_examples(split, count, 0)
            if STAGES[stage] == "sft":
                if view.sft.general_share:
                    source.general_examples(1, 0)
                for file in view.sft.files:
                    read_messages(file)
        except ValueError as error:
            raise ConfigError(f"stages.{stage}: {error}") from None
        if stage in FILTERING:
            check_languages(view, stage, varieties(prompts))
        if stage in RL_STAGES:
            general: Sequence[Prompt] = []
            if any(values(view.rl.general_prompts_per_step)):
                general = source.general_prompts("train")
            if any(values(view.rl.general_prompts_per_step)) and not general:
                raise ConfigError(
                    f"stages.{stage}.general_prompts_per_step = {view.rl.general_prompts_per_step} but data.source = "
                    f"{config.data.source!r} has no general prompts; set it to 0, or name some in general.prompts"
                )
            _check_kinds(view, stage, prompts, general)
            check_languages(view, stage, chain.from_iterable(map(varieties, (prompts, general))))
            if view.rewards not in checked:
                checked.append(view.rewards)
                _check_gold(view, list(prompts[:NUM_GOLDS]))


def _check_kinds(config: Config, stage: str, *sequences: Sequence[Prompt]) -> None:
    for prompt in chain.from_iterable(map(varieties, sequences)):
        table = config.rewards.get(prompt.kind)
        if table is None:
            raise ConfigError(
                f"prompt {prompt.id!r} is of kind {prompt.kind!r}, for which stage {stage} has no rewards (it has "
                f"{', '.join(sorted(config.rewards)) or 'none'}); add [rewards.{prompt.kind}], or drop such prompts"
            )


def check_isolation() -> None:
    """Refuse to run programs of the model without isolation from the network; warn where another wall is missing."""
    with Sandbox() as sandbox:
        layers = sandbox.layers
    if why := refusal(layers):
        raise ConfigError(why)
    for missing in layers.missing:
        logger.warning("code rewards: %s", missing)
    if shutil.which("g++") is None:
        logger.warning("code rewards: no g++ here, so programs in C++ score as unparsed; apt install g++")


def _check_gold(config: Config, prompts: list[Prompt]) -> None:
    rules = {
        kind: {name: weight for name, weight in table.items() if name not in MODEL_REWARDS}
        for kind, table in config.rewards.items()
    }
    with user_input():
        scorer = Scorer(rules, custom=config.scoring.custom)
    try:
        bad = scorer.check_gold(prompts, max_bad_share=config.data.max_bad_golds)
    finally:
        scorer.close()
    if bad:
        print(
            f"r1fast: warning: {bad} of {len(prompts):,} gold answers do not score 1, as data.max_bad_golds = "
            f"{config.data.max_bad_golds} allows; r1fast rewards check lists those of a JSONL file",
            file=sys.stderr,
        )


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model of [model] as its files describe it. `num_params` is 0 and `window` None where they do not say."""

    root: str
    name: str
    tokenizer: Any
    own_template: Any
    window: int | None
    num_params: int
    described: Any
    layers: Mapping[str, tuple[int, int]]  # linear ones but the head: features in and out; empty where unknown

    @staticmethod
    def read(config: Config, root: str) -> ModelFiles:
        """Read it; ValueError for files that are missing, truncated, or without an end token."""
        model, described = config.model, describe(config, root)
        name, path, gguf_file = _named(config, root)
        for stage in config.pipeline.stages:
            view = config.for_stage(stage)
            check_sequence_parallel(described, view.distributed.sequence_parallel)
            check_tensor_parallel(described, view.rollout.tensor_parallel)
        files = check_checkpoint(path) if isinstance(path, Path) and not gguf_file else None
        layers = check_shapes(Path(path), described, trust_remote_code=model.trust_remote_code) if files else {}
        tokenizer = load_tokenizer(path, gguf_file=gguf_file, trust_remote_code=model.trust_remote_code)
        try:
            num_vocab = getattr(described.get_text_config(), "vocab_size", None)
            eos_token_ids(tokenizer, _generation_config(path), described, num_vocab=num_vocab)
        except ValueError as error:
            raise ConfigError(f"model {name!r}: {error}") from None
        return ModelFiles(
            root=root,
            name=name,
            tokenizer=tokenizer,
            own_template=tokenizer.chat_template,
            window=getattr(described.get_text_config(), "max_position_embeddings", None),
            num_params=files.num_params if files else 0,
            described=described,
            layers=layers,
        )

    def check_stages(self, config: Config, source: Source, stages: Iterable[str]) -> None:
        """Each stage that starts from this model in the end: its template exists, its prompts fit the window."""
        longest: dict[tuple[str, Split, bool], Prompt | None] = {}
        for stage in stages:
            if self.root not in roots(config, [stage]):
                continue
            check_cache(config, self.described, [stage], local_device(config))
            check_targets(config.for_stage(stage).lora, stage, self.name, self.layers)
            for sampled in sampled_models(config, stage, self.root):
                template = self.set_template(config, sampled)
                for limit in completion_limits(config, stage):
                    key = template, limit.split, limit.general
                    if key not in longest:
                        longest[key] = self.longest(limit.prompts(source))
                    self._check_window(limit, longest[key], template)
            if stage == "cold_start" and config.for_stage(stage).cold_start.rewrite == "model":
                self.check_rewriting(config, source)

    def _check_window(self, limit: Limit, prompt: Prompt | None, template: str) -> None:
        if self.window is None or prompt is None:
            return
        num_tokens, most = len(prompt.token_ids), limit.max_tokens
        if num_tokens + most > self.window:
            room = self.window - num_tokens
            fix = f"lower it to at most {room}, or drop the prompt" if room > 0 else "drop the prompt"
            raise ConfigError(
                f"{limit.key} = {most}: prompt {prompt.id!r} has {num_tokens} tokens in template {template!r}, "
                f"together {num_tokens + most}, and model {self.name!r} has a window of {self.window}; {fix}"
            )

    def check_rewriting(self, config: Config, source: Source) -> None:
        """It can rewrite the cold start's chains: it has a template of its own, and room for any chain and its like."""
        options = config.for_stage("cold_start").cold_start
        if not self.own_template:
            raise ConfigError(
                "cold_start.rewrite = 'model' asks the base model in its own chat template, and that of model "
                f"{self.name!r} has none: give a model that has one, or rewrite = 'endpoint' or 'source'"
            )
        self.set_template(config, CONVERSATION)
        instruction, limit = read_instruction(options.rewrite_prompt), options.max_tokens
        asked = [
            replace(prompt, text=instruction.substitute(question=prompt.text, response="", language=prompt.language))
            for prompt in most_bytes(source.prompts("train"))
        ]
        longest = self.longest(asked)
        assert longest is not None, "a source has training prompts"
        num_tokens = len(longest.token_ids)
        if self.window is not None and num_tokens + 2 * limit > self.window:
            room = (self.window - num_tokens) // 2
            fix = f"lower it to at most {room}, or " if room > 0 else ""
            raise ConfigError(
                f"cold_start.max_tokens = {limit}: to rewrite a chain as long, model {self.name!r} reads {num_tokens} "
                f"tokens of instruction and question and {limit} of the chain and writes {limit} more, and has a "
                f"window of {self.window}; {fix}set cold_start.rewrite = 'endpoint'"
            )

    def set_template(self, config: Config, stage: str) -> str:
        """Give the tokenizer the template of a stage, and return its name."""
        name = "chat" if stage in CONVERSATIONAL else config.model.template
        embedded = config.data.source == "tiny"
        self.tokenizer.chat_template = self.own_template
        if name == "chat" and not embedded and not self.own_template:
            asks, other = "model.template = 'chat'", "--model.template r1_zero"
            if stage in CONVERSATIONAL:
                asks, other = f"stage {stage}", "--pipeline.stages without it"
            raise ConfigError(
                f"{asks} needs a tokenizer with a chat template, and that of model {self.name!r} has none: give a "
                f"model that has one (chat_template.jinja in its directory), or {other}"
            )
        set_template(self.tokenizer, name, embedded=embedded)
        return name

    def longest(self, prompts: Sequence[Prompt]) -> Prompt | None:
        """The prompt with most tokens in the tokenizer's template, written in it; None of none."""
        if not prompts:
            return None
        lengths = [len(ids) for ids in self.tokenizer([p.text for p in prompts], add_special_tokens=False)["input_ids"]]
        order = sorted(range(len(prompts)), key=lambda n: -lengths[n])[:LONGEST]
        return max(write_prompts([prompts[n] for n in order], self.tokenizer), key=lambda p: len(p.token_ids))


def describe(config: Config, root: str) -> Any:
    """The Hugging Face config of `base` or `student`; ValueError where there is none."""
    name, path, gguf_file = _named(config, root)
    if isinstance(path, Path):
        if gguf_file and not (path / gguf_file).is_file():
            raise ConfigError(f"model.gguf_file = {gguf_file!r}: no such file in {path}")
        if not gguf_file:
            read_json(path / "config.json", f"{path} is no Hugging Face checkpoint")
    options: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    options |= {"trust_remote_code": config.model.trust_remote_code, "local_files_only": isinstance(path, Path)}
    try:
        return AutoConfig.from_pretrained(str(path), **options)
    except (OSError, ValueError) as error:
        fix = "its config.json" if isinstance(path, Path) else "a hub id that can be reached, or --model DIRECTORY"
        raise ConfigError(f"model {name!r} cannot be read ({str(error).splitlines()[0]}); check {fix}") from error


def check_shapes(path: Path, described: Any, *, trust_remote_code: bool) -> dict[str, tuple[int, int]]:
    """ValueError where the weights of `path` are not of the sizes that its config gives them; reads headers alone.

    Returns the linear layers but the head, with their features in and out; none of a quantised model.

    Loading checks names and order of dimensions, too: transformers renames, fuses and transposes some on the way.
    """
    if getattr(described, "quantization_config", None) is not None:  # packed: stored in other shapes
        return {}
    auto_model: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            module = auto_model.from_config(described, trust_remote_code=trust_remote_code)
    except ValueError as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: no causal language model can be built from its config.json ({why}); give a model that has one"
        ) from error
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(wanted.keys() & set(tensors.keys())):
                stored = list(tensors.get_slice(name).get_shape())
                if sorted(stored) != sorted(wanted[name]):
                    raise ValueError(
                        f"{path}: config.json does not describe these weights: {name} has shape {stored}, by the "
                        f"config it should have {wanted[name]}; use the config.json that came with the weights"
                    )
    head = module.get_output_embeddings()
    linear = {name: x for name, x in module.named_modules() if isinstance(x, torch.nn.Linear) and x is not head}
    return {name: (layer.in_features, layer.out_features) for name, layer in linear.items()}


def _named(config: Config, root: str) -> tuple[str, str | Path, str]:
    """Name, path and GGUF file of `base` or `student`."""
    model = config.model
    name, gguf_file = (model.path, model.gguf_file) if root == "base" else (model.student, "")
    return name, model_path(name), gguf_file


def _generation_config(path: str | Path) -> GenerationConfig | None:
    if isinstance(path, Path) and not (path / "generation_config.json").exists():
        return None
    try:
        return GenerationConfig.from_pretrained(str(path), local_files_only=isinstance(path, Path))
    except OSError:  # a hub model without one
        return None
