"""The options of the rollout engine, whatever asks it for completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1fast.config_option import option


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """[rollout]: the engine of all completions, in training and in evaluation."""

    backend: Literal["paged", "vllm"] = option("paged", "ours, or vLLM (installed apart, a second copy of the weights)")
    tensor_parallel: int = option(
        1,
        "vllm: neighbouring processes that share its weights and cache, for models beyond one device; their number "
        "must be a multiple",
        need=">= 1",
    )
    rows: int = option(256, "most rows of one decode batch; a multiple of 16", unit="rows", need=">= 16")
    threads: int = option(
        0,
        "CPU threads while completions are generated, at most a process's share of the cores; 0: run.threads",
        unit="threads",
        need=">= 0",
    )
    cuda_graphs: bool = option(True, "on a GPU: decode steps as CUDA graphs; false: launch by launch")
    draft_tokens: int = option(
        0,
        "most tokens that a step guesses ahead for a sample, from what its group wrote so far; samples stay the same",
        unit="tokens",
        need=">= 0",
    )
    draft_rows: int = option(
        16,
        "rows of a step with guesses, the samples' own with them; a step pays for 16 in any case; a multiple of 16",
        unit="rows",
        need=">= 16",
    )
