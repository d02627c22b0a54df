"""What sharing a long sequence out saves: `python -m bench.sequence_parallel [--tokens 16384] [--json FILE]`.

One training step (forward, backward, update; gloo, CPU, fp32) of a random model (4 layers, width 256, 8 heads, 4 of
them key/value heads, 512 words) on one sequence, by 1, 2 and 4 processes that share it
(`distributed.sequence_parallel`), with and without gradient checkpointing. For every number of processes: the peak of
the process that needs most, above what it held before (the kernel's high-water mark of resident memory, put back after
a short step), of which `fixed_mb` is the gradient that every process has whole; and the loss, which must be the same.
Linux only. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

PROCESSES = (1, 2, 4)
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TIMEOUT_S = 1800


def measure(size: int, tokens: int, checkpointing: bool) -> dict[str, float | int | bool]:
    """One line of the table: `size` workers, each a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment = os.environ | shared | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-m", "bench.sequence_parallel", "--worker", "--tokens", str(tokens)]
    command += ["--checkpointing"] * checkpointing
    workers = [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    found = []
    for worker in workers:
        out, _ = worker.communicate(timeout=TIMEOUT_S)
        if worker.returncode:
            raise RuntimeError(f"a worker of {size} ended with exit code {worker.returncode}")
        found.append(json.loads(out.splitlines()[-1]))
    return {
        "processes": size,
        "checkpointing": checkpointing,
        "peak_mb": round(max(one["peak_mb"] for one in found), 1),
        "fixed_mb": round(found[0]["fixed_mb"], 1),
        "loss": round(found[0]["loss"], 5),
    }


def work(tokens: int, checkpointing: bool) -> None:
    """One worker: a short step, after which everything that stays is there, and the one that counts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from r1fast.attention import ATTENTION_NAME, register_attention
    from r1fast.config import OptimizerConfig
    from r1fast.distributed import start
    from r1fast.packing import pack
    from r1fast.policy import Policy
    from r1fast.records import Sequence
    from r1fast.sequence_parallel import SequenceLogprobs
    from r1fast.stages.sft import NLL
    from r1fast.tiny.tokenizer import build_tokenizer
    from r1fast.trainer import Trainer

    torch.set_num_threads(1)
    ranks = start("cpu")
    ranks = ranks.in_sequence_groups(ranks.world_size)
    register_attention()
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=max(512, len(tokenizer)),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=65_536,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = ATTENTION_NAME
    torch.manual_seed(0)
    policy = Policy.wrap(LlamaForCausalLM(config), tokenizer, gradient_checkpointing=checkpointing)
    logprobs = SequenceLogprobs(ranks) if ranks.world_size > 1 else None
    trainer = Trainer(policy, OptimizerConfig(), ranks=ranks, logprobs=logprobs)

    def step(length: int) -> float:
        ids = torch.randint(512, (length,), generator=torch.Generator().manual_seed(length))
        batches = pack([Sequence(token_ids=ids, num_prompt_tokens=1)], micro_batch_tokens=length)
        return trainer.step(batches, loss=NLL, denominator=float(length - 1), lr=1e-4)["loss_sum"]

    step(256)
    gc.collect()
    CLEAR.write_text("5", encoding="ascii")
    before = _resident_mb("VmRSS")
    loss = step(tokens)
    fixed = sum(parameter.numel() for parameter in policy.module.parameters()) * 4 / 2**20
    print(json.dumps({"peak_mb": _resident_mb("VmHWM") - before, "fixed_mb": fixed, "loss": loss}))
    ranks.barrier()
    ranks.shutdown()


def _resident_mb(key: str) -> float:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--json", type=Path, help="also write the JSON line here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.tokens, options.checkpointing)
        return
    rows = []
    for checkpointing in (False, True):
        for size in PROCESSES:
            rows.append(measure(size, options.tokens, checkpointing))
            print(rows[-1], flush=True)
    losses = [float(row["loss"]) for row in rows]
    if max(losses) - min(losses) > 1e-4 * max(losses):
        raise SystemExit(f"the loss depends on the number of processes: {losses}")
    line = json.dumps({"bench": "sequence_parallel", "tokens": options.tokens, "rows": rows})
    print(line)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
