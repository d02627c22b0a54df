"""Whether a recipe can run here: its data, models, template, memory and disk, and a first look at the base model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r1fast.checks import MODEL_REWARDS
from r1fast.config import RL_STAGES, Config, ConfigError
from r1fast.context import CONVERSATIONAL, START, compute_dtype, load_model, local_device
from r1fast.cpu_products import slow_dtype_hint
from r1fast.data.prompts import each_once
from r1fast.disk import check_directory, existing_parent, format_bytes
from r1fast.doctor.line import Line, Status
from r1fast.memory import available_bytes
from r1fast.metrics import ratios
from r1fast.options import differing_keys, read_config
from r1fast.phase_memory import MOMENTARY
from r1fast.policy import Policy
from r1fast.preflight import check_input, roots, space_needed
from r1fast.readings import group_sums, sample_sums
from r1fast.records import Prompt
from r1fast.rollout.backend import make_engine, release
from r1fast.run_dir import lock_holder, unfinished_stages
from r1fast.sampling import Sampling
from r1fast.schedule import Schedule, at
from r1fast.scorer import Scorer, written
from r1fast.source import Source
from r1fast.start import open_source, plan_of
from r1fast.templates import RESPONSE_PREFIX, write_prompts

NUM_PROMPTS = 8
MOST_SAMPLES = 8  # of a prompt
MOST_TOKENS = 512  # of a sample on a CPU: the look must stay short
JUDGED = {"accuracy": 1.0, "accuracy_any": 0.0, "format": 0.0}


def check_recipe(config: Config, run_dir: Path) -> Iterator[Line]:
    """Every check, cheapest first; what cannot be asked any more after a fail is left out."""
    yield _directory(config, run_dir)
    try:
        source = open_source(config)
    except ConfigError as error:
        yield Line(status="fail", name="data", value=str(error))
        return
    counts = ", ".join(f"{len(source.prompts(split)):,} {split}" for split in ("train", "dev", "held_out"))
    yield Line(status="ok", name="data", value=f"{config.data.source}: {counts} prompts")
    device = local_device(config)
    try:
        files = check_input(config, source, config.pipeline.stages)
        yield Line(status="ok", name="files", value="weights are whole, prompts fit the window, gold answers score 1")
        yield _disk(run_dir, space_needed(config, unfinished_stages(config, run_dir), files, device))
        yield _memory(config, device)
        hint = slow_dtype_hint(compute_dtype(config, device), device)
        if hint:
            yield Line(status="warn", name="dtype", value=hint, fix="--run.dtype float32")
        for root in roots(config, config.pipeline.stages):
            start = time.perf_counter()
            policy = load_model(config, run_dir, root, device)
            yield _model(root, policy, time.perf_counter() - start)
            yield _end_tokens(policy)
            look = Look.at(config, source, root, policy)
            if look is not None:
                yield look.template(config)
                yield from look.samples(config)
    except ConfigError as error:
        yield Line(status="fail", name="input", value=str(error))


def _directory(config: Config, run_dir: Path) -> Line:
    holder, path = lock_holder(run_dir), run_dir / "config.toml"
    if holder:
        fix = f"wait, stop it (kill {holder}), or --run.dir DIR"
        return Line(status="fail", name="run directory", value=f"{run_dir} is in use by process {holder}", fix=fix)
    if not path.exists():
        return Line(status="ok", name="run directory", value=f"{run_dir}: a new run")
    try:
        keys = differing_keys(read_config(path), config)
    except ConfigError as error:
        return Line(status="fail", name="run directory", value=str(error), fix="--run.dir DIR")
    if keys:
        value = f"{run_dir} holds a run with another recipe; it differs in {', '.join(keys)}"
        return Line(status="fail", name="run directory", value=value, fix="--run.dir DIR, or the options it began with")
    left = unfinished_stages(config, run_dir)
    state = f"an unfinished run, which continues at {left[0]}" if left else "a finished run"
    return Line(status="ok", name="run directory", value=f"{run_dir}: {state}")


def _disk(run_dir: Path, need_bytes: int) -> Line:
    try:
        free_bytes = check_directory(run_dir, need_bytes)
    except ConfigError as error:
        return Line(status="fail", name="disk", value=str(error))
    value = f"{format_bytes(free_bytes)} free in {existing_parent(run_dir)}, the run writes about"
    return Line(status="ok", name="disk", value=f"{value} {format_bytes(need_bytes)}")


def _memory(config: Config, device: torch.device) -> Line:
    largest = plan_of(config).largest
    what = f"{format_bytes(largest.peak_bytes)} at most ({largest.name})"
    if device.type == "cuda":
        free_bytes, where = torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    else:
        free_bytes, where = available_bytes(), "this machine"
    value = f"{what}; {format_bytes(free_bytes)} available on {where}"
    if largest.peak_bytes <= free_bytes:
        return Line(status="ok", name="memory", value=value)
    fix = "lower rollout.rows, optimizer.micro_batch_tokens or max_tokens, set optimizer.gradient_checkpointing, or "
    # an upper bound: every completion at its limit; what the weights and the optimizer take is certain
    certain = sum(size for name, size in largest.work.memory if name not in MOMENTARY)
    status: Status = "fail" if certain > free_bytes else "warn"
    return Line(status=status, name="memory", value=value, fix=fix + "a smaller model")


def _model(root: str, policy: Policy, load_s: float) -> Line:
    dtype = str(policy.dtype).removeprefix("torch.")
    name = type(policy.module).__name__
    size = f"{policy.module.num_parameters():,} parameters"
    value = f"{name}, {size}, {dtype} on {policy.device}, loaded in {load_s:.1f} s"
    return Line(status="ok", name=f"model {root}", value=value)


def _end_tokens(policy: Policy) -> Line:
    tokenizer: Any = policy.tokenizer
    shown = ", ".join(f"{tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in policy.eos_token_ids)
    outside = [token for token in policy.eos_token_ids if token >= policy.num_vocab]
    if outside:
        value = f"{shown}: the model has {policy.num_vocab} tokens, so {outside[0]} can never be drawn"
        return Line(
            status="fail", name="end tokens", value=value, fix="correct eos_token_id in the model's config.json"
        )
    return Line(status="ok", name="end tokens", value=shown)


@dataclass(frozen=True, kw_only=True)
class Look:
    """A model before its first RL stage: `prompts` of that stage, written in its template."""

    stage: str
    policy: Policy
    prompts: list[Prompt]

    @staticmethod
    def at(config: Config, source: Source, root: str, policy: Policy) -> Look | None:
        """For the first RL stage that starts from this very model; None where there is none."""
        stages = [stage for stage in config.pipeline.stages if stage in RL_STAGES and START[stage] == root]
        if not stages:
            return None
        prompts = write_prompts(each_once(source.prompts("train")[:NUM_PROMPTS]), policy.tokenizer)
        return Look(stage=stages[0], policy=policy, prompts=prompts)

    def template(self, config: Config) -> Line:
        """Gold answers in the forms that the stages want, through the tokenizer and back, must score 1."""
        forms = ["<think> . </think> <answer> {} </answer>"]
        if CONVERSATIONAL & set(config.pipeline.stages):
            forms.append("<think> . </think> \\boxed{{ {} }}")
        failed: list[str] = []
        for prompt in self.prompts:
            for form in forms:
                text = form.format(prompt.answer)
                kept = self._through_tokenizer(text.removeprefix(prompt.metadata.get(RESPONSE_PREFIX, "")))
                parts = _score([(prompt, kept)])[0]
                if min(parts["accuracy"], parts["format"]) < 1.0:
                    scores = f"accuracy {parts['accuracy']:g}, format {parts['format']:g}"
                    failed.append(f"{text!r} came back as {kept!r} ({scores})")
        total = len(self.prompts) * len(forms)
        name = f"{config.model.template}: {total - len(failed)} of {total} gold answers are read back right"
        if failed:
            fix = "the tokenizer must keep the tags and the answer; use another model, or another --model.template"
            return Line(status="fail", name="template", value=f"{name}; {failed[0]}", fix=fix)
        return Line(status="ok", name="template", value=name)

    def samples(self, config: Config) -> Iterator[Line]:
        """Format and pass rate of samples that are really drawn, as the stage would draw them."""
        rl = config.for_stage(self.stage).rl
        limit, count = at(rl.max_tokens, 0), min(rl.group_size, MOST_SAMPLES)
        most = limit if self.policy.device.type == "cuda" else min(limit, MOST_TOKENS)
        sampling = Sampling(
            temperature=at(rl.temperature, 0), top_p=at(rl.top_p, 0), max_tokens=most, stage=self.stage, visit=0
        )
        engine = make_engine(self.policy, config.for_stage(self.stage))
        try:
            rollouts = engine.generate(self.prompts, count, sampling)
        except FloatingPointError as error:
            yield Line(status="fail", name="samples", value=str(error))
            return
        finally:
            release(engine)
        weights = {kind: _rules(table) for kind, table in config.for_stage(self.stage).rewards.items()}
        scoring = config.scoring
        scorer = Scorer(
            {kind: {**JUDGED, **table} for kind, table in weights.items()}, custom=scoring.custom, gate=scoring.gate
        )
        try:
            scored = scorer.score(rollouts)
            means = ratios({**sample_sums(scored), **scorer.take_metrics()})
        finally:
            scorer.close()
        rewards = [[item.reward for item in scored[start : start + count]] for start in range(0, len(scored), count)]
        drawn = f"{len(self.prompts)} prompts x {count}"
        yield format_line(means, drawn)
        yield pass_line(means, drawn)
        yield length_line(means, most, limit)
        yield groups_line(ratios(group_sums(rewards))["zero_variance"], len(rewards))

    def _through_tokenizer(self, text: str) -> str:
        tokenizer: Any = self.policy.tokenizer
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        decoded: str = tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded


def format_line(means: dict[str, float], drawn: str) -> Line:
    """Share of samples with the format."""
    share, lenient = means["format"], means["accuracy_any"]
    value = f"{share:.0%} of {drawn} samples have it"
    if share == 0.0:
        fix = "use a template that shows the tags (examples in a .jinja file), or a model that follows instructions"
        return Line(status="warn", name="format", value=f"{value}, though {lenient:.0%} are right", fix=fix)
    return Line(status="ok", name="format", value=value)


def pass_line(means: dict[str, float], drawn: str) -> Line:
    """Share of samples that are right, strictly and leniently."""
    share, lenient = means["accuracy"], means["accuracy_any"]
    value = f"{share:.0%} of {drawn} samples are right ({lenient:.0%} with the format ignored)"
    if share == 0.0:
        return Line(
            status="warn", name="pass rate", value=value, fix="easier prompts, a larger rl.group_size, SFT first"
        )
    if share >= 0.95:
        return Line(status="warn", name="pass rate", value=value, fix="harder prompts: there is little left to learn")
    return Line(status="ok", name="pass rate", value=value)


def length_line(means: dict[str, float], most: int, limit: int) -> Line:
    """Mean length and what is cut off."""
    value = f"{means['length']:.0f} tokens, {means['truncated']:.0%} cut off at {most:,}"
    if most < limit:
        return Line(status="ok", name="length", value=f"{value} (the recipe's limit is {limit:,}: not judged here)")
    if means["truncated"] >= 0.2:
        fix = "raise rl.max_tokens; if nearly all are cut off, check template and end tokens"
        return Line(status="warn", name="length", value=value, fix=fix)
    return Line(status="ok", name="length", value=value)


def groups_line(share: float, count: int) -> Line:
    """Groups whose rewards are all equal teach nothing."""
    value = f"{share:.0%} of {count} groups have equal rewards"
    if share > 0.8:
        fix = "a larger rl.group_size, a higher temperature, prompts of another difficulty, another template"
        return Line(status="warn", name="groups", value=f"{value} and teach nothing", fix=fix)
    return Line(status="ok", name="groups", value=value)


def _rules(table: dict[str, Schedule] | Any) -> dict[str, Schedule]:
    return {name: weight for name, weight in table.items() if name not in MODEL_REWARDS}


def _score(texts: Sequence[tuple[Prompt, str]]) -> list[dict[str, float]]:
    scorer = Scorer({prompt.kind: {"accuracy": 1.0, "format": 1.0} for prompt, _ in texts})
    try:
        return [dict(item.parts) for item in scorer.score([written(prompt, text) for prompt, text in texts])]
    finally:
        scorer.close()
