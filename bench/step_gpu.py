"""The training step by itself at a large model's shape: its phases and the share of the GPU's peak that it reaches.

Weights are random. Of the 7B shape some layers, for whose masters, moments and gradients one GPU has room: a layer's
work is the same, and the head's share of the whole larger than in the full model.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.harness import Case, Figure, Measured, Outputs, Variant, Work
from bench.rollout_models import write_model
from bench.rollout_work import QWEN, TINY, Shape
from bench.step_work import KL_COEF, MAX_NORM, RATE, SEED

if TYPE_CHECKING:
    from r1fast.records import Batch

PACK = (4096, 2048, 1024, 512, 512)  # tokens of the sequences: 8,192
PROMPT_TOKENS = 128
H100_PEAK = 989e12  # dense bf16, FLOP/s
MFU = 0.45
LAYERS_7B = 6
WHOLE, TRAINING = "whole step", "loss, gradient, update"


@dataclass(frozen=True)
class Pack:
    """Sequences of one micro-batch, a prompt of `prompt_tokens` in each."""

    lengths: tuple[int, ...]
    prompt_tokens: int

    def forward_flops(self, shape: Shape) -> float:
        """Products of one forward pass, the head for completions alone; causal attention by half."""
        tokens, drawn = sum(self.lengths), sum(self.lengths) - self.prompt_tokens * len(self.lengths)
        pairs = sum(length * length / 2 for length in self.lengths)
        attention = 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * pairs
        return 2 * shape.layer_weights * tokens + 2 * shape.hidden_size * shape.vocab_size * drawn + attention

    def training_flops(self, shape: Shape) -> float:
        """Forward and backward of the policy."""
        return 3 * self.forward_flops(shape)

    def num_bytes(self, shape: Shape) -> float:
        """The least: weights of four passes in bf16, the fp32 gradient, masters and moments read and written."""
        return 4 * shape.weight_bytes + shape.weight_bytes / 2 * (8 + 2 * 12 + 2)


class Phases:
    """Seconds of score, loss and gradient, update, of every whole step; each ends with a synchronisation."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.taken: dict[str, list[float]] = {}
        self.last = 0.0

    def begin(self) -> None:
        self.last = self._now()

    def lap(self, name: str) -> None:
        now = self._now()
        self.taken.setdefault(name, []).append(now - self.last)
        self.last = now

    def about(self) -> dict[str, Any]:
        return {"phases_s": {name: statistics.median(values) for name, values in self.taken.items()}}

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def build(shape: Shape, pack: Pack, device: str) -> Work:
    from r1fast.attention import ATTENTION_NAME, register_attention
    from r1fast.config import OptimizerConfig
    from r1fast.kernels.grpo_loss import PolicyLoss
    from r1fast.policy import Policy, load_tokenizer
    from r1fast.trainer import Trainer, score

    register_attention()
    with tempfile.TemporaryDirectory() as folder:
        write_model(shape, Path(folder), max_position_embeddings=max(pack.lengths))
        policy = Policy.wrap(random_module(folder, device, ATTENTION_NAME), load_tokenizer(folder), device=device)
    reference = policy.copy()
    trainer = Trainer(policy, OptimizerConfig(max_grad_norm=MAX_NORM))
    batches, phases = packed(shape, pack), Phases(device)
    ref_logp = score(reference, batches, temperature=1.0)
    loss = PolicyLoss(kl="k3", kl_coef=KL_COEF)

    def train(ref: list[torch.Tensor], check: Callable[[dict[str, float]], None] | None = None) -> Outputs:
        sums = trainer.step(batches, loss=loss, denominator=len(pack.lengths), lr=RATE, ref_logp=ref, check=check)
        return {"not_finite": torch.tensor([float(not torch.isfinite(torch.tensor(sums["loss_sum"])))])}

    def whole() -> Outputs:
        phases.begin()
        ref = score(reference, batches, temperature=1.0)
        phases.lap("score")
        found = train(ref, lambda _: phases.lap("loss and gradient"))
        phases.lap("update")
        return found

    variants = [
        Variant(WHOLE, "own", lambda: whole, about=phases.about),
        Variant(TRAINING, "own", lambda: partial(train, ref_logp)),
    ]
    return Work(variants, lambda: {"not_finite": torch.zeros(1)}, {"not_finite": 0.0})


def random_module(model: str, device: str, attention: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(SEED)
    with torch.device(device):
        config = AutoConfig.from_pretrained(model, local_files_only=True)
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)


def packed(shape: Shape, pack: Pack) -> list[Batch]:
    """One micro-batch of random tokens."""
    from r1fast.packing import pack as pack_sequences
    from r1fast.records import Sequence

    generator = torch.Generator().manual_seed(SEED)
    sequences = [
        Sequence(
            token_ids=torch.randint(shape.vocab_size, (length,), generator=generator),
            num_prompt_tokens=pack.prompt_tokens,
            advantage=1.0 if number % 2 else -1.0,
        )
        for number, length in enumerate(pack.lengths)
    ]
    return pack_sequences(sequences, micro_batch_tokens=sum(pack.lengths), num_vocab=shape.vocab_size)


def figures(measured: Measured, flops: float) -> list[Figure]:
    seconds = measured.value(TRAINING, "median_s")
    reached = None if seconds is None else flops / seconds / H100_PEAK
    return [Figure("MFU of training, of an H100's 989 TFLOP/s", reached, MFU, at_least=True)]


def gpu_cases(size: str = "full", device: str = "cuda") -> Iterator[Case]:
    """Of Qwen2.5's shapes; `tiny` shows that it runs, on any device."""
    shapes = {"1.5B": QWEN["1.5B"], f"7B, {LAYERS_7B} layers": replace(QWEN["7B"], num_hidden_layers=LAYERS_7B)}
    pack = Pack(PACK, PROMPT_TOKENS)
    if size == "tiny":
        shapes, pack = {"tiny": TINY}, Pack((24, 16, 8), 4)
    for name, shape in shapes.items():
        training = pack.training_flops(shape)
        yield Case(
            f"Qwen2.5-{name}, a pack of {sum(pack.lengths):,} tokens" if size != "tiny" else "tiny pack",
            {"T": sum(pack.lengths), "D": shape.hidden_size, "V": shape.vocab_size, "L": shape.num_hidden_layers},
            "bfloat16",
            training + pack.forward_flops(shape),
            pack.num_bytes(shape),
            partial(build, shape, pack, device),
            partial(figures, flops=training) if size != "tiny" else lambda measured: [],
            tokens=sum(pack.lengths),
        )
