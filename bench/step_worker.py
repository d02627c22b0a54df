"""One variant of the training-step bench in a process of its own: `python -m bench.step_worker OPTIONS`, JSON on pipes.

OPTIONS (JSON): variant, model, threads, `ask` (that is timed), `check` (shorter sequences, for which `exact` wrote loss
and gradient to `expected`), and what the variant takes. It says {"ready": true}, then answers every {"check": bool}
with a training step on one of them: its seconds by phase, the process's CPU time, the peak of resident memory above
what the imports left; and of the check the errors of loss and gradient. What libraries print goes to stderr. Each
variant imports its own library alone, so that peaks of memory are its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.step_ranks import start_others
from bench.step_work import BETAS, CLIP, EPS, KL_COEF, MAX_NORM, RATE, Ask, compare, move

Options = dict[str, Any]
Answer = dict[str, Any]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Time, CPU time and peak memory of one step; `lap` ends a phase. Memory counts from when the meter was made."""

    def __init__(self) -> None:
        self.baseline = _resident("VmRSS")
        self.begin()

    def begin(self) -> None:
        if CLEAR.exists():
            CLEAR.write_text("5", encoding="ascii")  # the high-water mark starts anew
        self.phases: dict[str, float] = {}
        self.cpu, self.start = time.process_time(), time.perf_counter()
        self.last = self.start

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.phases[name] = self.phases.get(name, 0.0) + now - self.last
        self.last = now

    def answer(self, **more: Any) -> Answer:
        found = {"wall_s": time.perf_counter() - self.start, "cpu_s": time.process_time() - self.cpu}
        peak = _resident("VmHWM")
        return {**found, "phases": self.phases, "peak_bytes": peak and peak - self.baseline, **more}


def _resident(key: str) -> int:
    """0 where the system does not say."""
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(key)), 0)


def loss_options() -> Any:
    from r1fast.kernels.grpo_loss import PolicyLoss

    return PolicyLoss(clip_low=CLIP, clip_high=CLIP, kl="k3", kl_coef=KL_COEF)


def exact(options: Options) -> None:
    """Write loss and gradient of the check: float32, transformers' attention, one sequence at a time.

    As in the first update after a rollout the old policy is the policy: the ratio is 1, its gradient the log-prob's.
    """
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(options["threads"])
    ask, module = Ask(**options["check"]), load(options["model"], "float32", "sdpa")
    prompts, completions = sequences(ask, module.config.vocab_size)

    def logp(prompt: list[int], completion: list[int]) -> Any:
        logits = module(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.tensor(completion)[:, None]
        return torch.log_softmax(logits, -1).gather(1, chosen)[:, 0]

    with torch.no_grad():
        refs = [logp(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    move(module)
    total, scale, losses = 0.0, 0.0, []
    for prompt, completion, advantage, ref_C in zip(prompts, completions, ask.advantages(), refs, strict=True):
        logp_C = logp(prompt, completion)
        ratio, apart = torch.exp(logp_C - logp_C.detach()), ref_C - logp_C
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        terms = KL_COEF * (torch.exp(apart) - apart - 1) - gain
        losses.append(terms.mean() / len(refs))
        scale += float(terms.detach().abs().mean()) / len(refs)
        if len(losses) == ask.group_size:  # fewer passes over the gradient, in memory that is there
            loss = torch.stack(losses).sum()
            loss.backward()
            total, losses = total + float(loss.detach()), []
    found = {f"gradient {name}": parameter.grad for name, parameter in module.named_parameters()}
    save_file({**found, "loss": torch.tensor([total, scale])}, options["expected"])


def sequences(ask: Ask, num_vocab: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompt and completion of every sample."""
    prompts = ask.prompts(num_vocab)
    return [prompt for prompt in prompts for _ in range(ask.group_size)], ask.completions(num_vocab)


def load(model: str, dtype: str, attention: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype), attn_implementation=attention, local_files_only=True
    )


def gradient_error(options: Options, named: dict[str, Any]) -> float:
    from safetensors import safe_open

    with safe_open(options["expected"], "pt") as file:
        names = {name.removeprefix("gradient ") for name in file.keys()} - {"loss"}  # noqa: SIM118 it is no dict
        return compare(named, names, lambda name: file.get_tensor(f"gradient {name}"))


def norm_error(options: Options, norm: float) -> float:
    from safetensors import safe_open

    with safe_open(options["expected"], "pt") as file:
        names = [name for name in file.keys() if name.startswith("gradient ")]  # noqa: SIM118
        exact = sum(float(file.get_tensor(name).double().square().sum()) for name in names) ** 0.5
    return abs(norm / exact - 1)


def loss_error(options: Options, loss: float) -> float:
    """Over the mean absolute value of its terms, of which it is a small difference."""
    from safetensors import safe_open

    with safe_open(options["expected"], "pt") as file:
        expected, scale = file.get_tensor("loss").tolist()
    return float(abs(loss - expected) / scale)


def ours(options: Options, ask_next: Callable[[], Any], answer: Callable[[Answer], None]) -> None:
    """The trainer as an RL stage calls it, packing included."""
    import torch

    from r1fast import distributed
    from r1fast.config import Config, OptimizerConfig
    from r1fast.distributed_config import DistributedConfig
    from r1fast.packing import pack
    from r1fast.policy import Policy
    from r1fast.records import Sequence
    from r1fast.trainer import score
    from r1fast.trainers import make_trainer

    deepspeed = options.get("engine") == "deepspeed"
    if deepspeed:
        from r1fast.optimizers import import_deepspeed

        import_deepspeed("--only process")
    torch.set_num_threads(max(1, options["threads"] // options.get("processes", 1)))
    ranks = distributed.start("cpu")
    meter = Meter()
    policy = Policy.load(
        options["model"],
        device="cpu",
        dtype=getattr(torch, options.get("own_dtype", "bfloat16")),
        gradient_checkpointing=options.get("gradient_checkpointing", False),
    )
    reference = policy.copy()
    move(policy.module)
    optimizer = OptimizerConfig(beta1=BETAS[0], beta2=BETAS[1], eps=EPS, max_grad_norm=MAX_NORM)
    engine = DistributedConfig(engine="deepspeed", zero_stage=1) if deepspeed else DistributedConfig()
    trainer: Any = make_trainer(policy, Config(optimizer=optimizer, distributed=engine), ranks)
    num_vocab = policy.head_weight.shape[0]

    def given(ask: Ask) -> list[Sequence]:
        prompts, completions = sequences(ask, num_vocab)
        whole = [
            Sequence(
                token_ids=torch.tensor(prompt + completion),
                num_prompt_tokens=len(prompt),
                advantage=advantage,
            )
            for prompt, completion, advantage in zip(prompts, completions, ask.advantages(), strict=True)
        ]
        groups = [whole[start : start + ask.group_size] for start in range(0, len(whole), ask.group_size)]
        return [sequence for group in ranks.shard(groups) for sequence in group]

    ask, check = Ask(**options["ask"]), Ask(**options["check"])
    timed, checked = given(ask), given(check)
    while (question := ask_next()) is not None:
        error: dict[str, float] = {}

        def before_update(_sums: Any, question: Any = question, error: dict[str, float] = error) -> None:
            meter.lap("loss and gradient")
            if question["check"] and not deepspeed:
                named = zip(trainer.names, trainer.masters, strict=True)
                error["gradient_error"] = gradient_error(options, {name: master.grad for name, master in named})

        meter.begin()
        batches = pack(
            checked if question["check"] else timed,
            micro_batch_tokens=options["micro_batch_tokens"],
            num_vocab=num_vocab,
            share_prompts=options["share_prompts"],
        )
        ref = score(reference, batches, temperature=1.0)
        meter.lap("score")
        sums = trainer.step(
            batches,
            loss=loss_options(),
            denominator=ask.num_samples,
            lr=RATE,
            ref_logp=ref,
            check=before_update,
        )
        meter.lap("update")
        if question["check"]:
            error["loss_error"] = loss_error(options, sums["loss_sum"])
            # DeepSpeed shares gradients out: of those the norm alone is known everywhere
            error.setdefault("gradient_error", norm_error(options, sums["grad_norm_sum"]))
        answer(meter.answer(micro_batches=len(batches), **error))


def trl(options: Options, ask_next: Callable[[], Any], answer: Callable[[Answer], None]) -> None:
    """`GRPOTrainer.train()` itself; what it would generate is given, and it scores, learns and updates as ever."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.models.utils import disable_gradient_checkpointing

    torch.set_num_threads(options["threads"])
    meter = Meter()
    ask, check = Ask(**options["ask"]), Ask(**options["check"])
    rows, batch_size = ask.num_samples, options["batch_size"]
    folder = tempfile.TemporaryDirectory()
    arguments = GRPOConfig(
        output_dir=folder.name,
        use_cpu=True,
        bf16=True,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=rows // batch_size,
        gradient_checkpointing=options["gradient_checkpointing"],
        num_generations=ask.group_size,
        max_completion_length=ask.most,
        max_steps=1 << 20,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay=0.0,
        max_grad_norm=MAX_NORM,
        beta=KL_COEF,
        epsilon=CLIP,
        loss_type="grpo",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        model_init_kwargs={"dtype": options["dtype"], "attn_implementation": "sdpa"},
    )
    trainer = GRPOTrainer(
        model=options["model"],
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["x"] * rows}),
        processing_class=AutoTokenizer.from_pretrained(options["model"], padding_side="left"),
    )
    move(trainer.model)
    num_vocab = trainer.model.config.vocab_size
    timed, checked = padded(ask, num_vocab), padded(check, num_vocab)
    state: dict[str, Any] = {}

    def given(_: Any) -> dict[str, Any]:
        inputs = checked if state["question"]["check"] else timed
        ids, mask = (
            torch.cat([inputs[f"{part}_{x}"] for part in ("prompt", "completion")], 1) for x in ("ids", "mask")
        )
        with torch.no_grad(), disable_gradient_checkpointing(trainer.model, arguments.gradient_checkpointing_kwargs):
            ref, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.ref_model, ids, mask, inputs["completion_ids"].size(1), batch_size=batch_size
            )
        meter.lap("score")
        return {**inputs, "ref_per_token_logps": ref}

    trainer._generate_and_score_completions = given
    clip = trainer._clip_grad_norm

    def clip_and_compare(model: Any) -> Any:
        meter.lap("loss and gradient")
        if state["question"]["check"]:
            named = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
            state["error"] = {"gradient_error": gradient_error(options, named)}
        return clip(model)

    trainer._clip_grad_norm = clip_and_compare
    one = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = one(*args, **kwargs)
        state["loss"] += float(loss.detach())
        return loss

    trainer.compute_loss = compute_loss

    class Asked(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            question = ask_next()
            if question is None:
                folder.cleanup()
                os._exit(0)  # in the middle of its training
            state.update(question=question, error={}, loss=0.0)
            meter.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.lap("update")
            if state["question"]["check"]:
                state["error"]["loss_error"] = loss_error(options, state["loss"])
            answer(meter.answer(micro_batches=rows // batch_size, **state["error"]))

    trainer.add_callback(Asked())
    trainer.train()


def padded(ask: Ask, num_vocab: int) -> dict[str, Any]:
    """What the peer makes of completions: prompts end together, completions begin together."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def pad(rows: list[Any], side: str) -> Any:
        return pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_side=side)

    prompts, completions = sequences(ask, num_vocab)
    ones = [[[1] * len(row) for row in rows] for rows in (prompts, completions)]
    found = {
        "prompt_ids": pad(prompts, "left"),
        "prompt_mask": pad(ones[0], "left"),
        "completion_ids": pad(completions, "right"),
        "completion_mask": pad(ones[1], "right"),
        "advantages": torch.tensor(ask.advantages()),
    }
    return found | {"num_items_in_batch": found["completion_mask"].sum()}


VARIANTS = {"ours": ours, "trl": trl}


def main() -> None:
    """Load, then serve; the variant `exact` writes its file and says so."""
    options: Options = json.loads(sys.argv[1])
    others = start_others(options)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def answer(found: Answer) -> None:
            print(json.dumps(found), file=answers, flush=True)

        started: list[bool] = []

        def ask_next() -> Any:
            if not started:
                started.append(True)
                answer({"ready": True})
            line = sys.stdin.readline()
            for other in others:
                assert other.stdin is not None
                other.stdin.write(line)
                other.stdin.flush() if line else other.stdin.close()
            return json.loads(line) if line else None

        if options["variant"] == "exact":
            exact(options)
            answer({"ready": True})
        else:
            VARIANTS[options["variant"]](options, ask_next, answer)
    for other in others:
        other.wait()


if __name__ == "__main__":
    main()
