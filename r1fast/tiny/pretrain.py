"""Train the embedded base models from nothing: `python -m r1fast.tiny.pretrain --model teacher --seed 0 --out DIR`.

A plain language-model run over `corpus.documents` (training split only), deterministic for a seed and thread count.
The teacher took 27 minutes and the student 13, each on one core of a busy machine.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from r1fast.tiny.corpus import CorpusMix, documents
from r1fast.tiny.tokenizer import MAX_TOKENS, build_tokenizer

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape and schedule of one base model; `lr` is AdamW's peak, reached after 100 steps, then cosine to 5%."""

    layers: int
    hidden: int
    steps: int
    lr: float


SIZES = {
    "teacher": Size(layers=4, hidden=128, steps=4000, lr=3e-3),
    "student": Size(layers=2, hidden=64, steps=3000, lr=4e-3),
}


def build_model(size: Size, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised Llama: tied embeddings, 4 heads, 2 key-value heads, feed-forward of 4 x hidden."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[Tensor]:
    """Endless int64 [BATCH, L] of documents of like length, `<bos> ... <eos>`, right-padded with `<pad>`."""
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    while True:
        encoded = sorted(tokenizer(documents(CorpusMix(), rng), add_special_tokens=False)["input_ids"], key=len)
        chunks = [encoded[place : place + BATCH] for place in range(0, len(encoded) - BATCH + 1, BATCH)]
        rng.shuffle(chunks)
        for chunk in chunks:
            width = max(map(len, chunk)) + 2
            yield torch.tensor([[bos, *ids, eos] + [pad] * (width - len(ids) - 2) for ids in chunk])


def learning_rate(step: int, size: Size) -> float:
    """Linear warm-up over 100 steps, then cosine to a twentieth of the peak."""
    progress = max(0.0, (step - 100) / max(1, size.steps - 100))
    return size.lr * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def pretrain(model_name: str, seed: int, out: Path) -> None:
    """Train one base model and write it as a Hugging Face directory."""
    size = SIZES[model_name]
    torch.manual_seed(seed)
    rng = random.Random(f"pretrain {model_name} {seed}")
    tokenizer = build_tokenizer()
    model = build_model(size, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    stream, start = batches(tokenizer, rng), time.perf_counter()
    for step in range(size.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, size)
        ids = next(stream)
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        with torch.autocast("cpu", torch.bfloat16):  # 2.5x the float32 GEMM rate here; masters stay float32
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == size.steps - 1:
            print(
                f"step {step} of {size.steps}, loss {loss.item():.4f}, {time.perf_counter() - start:.0f} s", flush=True
            )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(SIZES), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args()
    pretrain(arguments.model, arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
