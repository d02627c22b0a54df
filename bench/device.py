"""What a figure was measured on, and the ceilings of an H100 for predictions where there is none."""

from __future__ import annotations

import os
import platform
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

H100_BYTES_PER_S = 3.0e12  # a copy, read and write together; published peak 3.35e12
H100_FLOPS = 765e12  # a large bf16 product, the middle of 730 to 800e12
PEERS = {
    # name on the package index: module
    "trl": "trl",
    "liger-kernel": "liger_kernel",
    "verl": "verl",
    "cut-cross-entropy": "cut_cross_entropy",
    "quack-kernels": "quack",
    "flashinfer-python": "flashinfer",
}


def missing(package: str) -> str:
    """Empty where a peer is installed, else how to get it."""
    return "" if util.find_spec(PEERS[package]) is not None else f"not installed: pip install {package}"


def describe(device: str) -> dict[str, Any]:
    """The device, the versions and the commit."""
    from r1fast.pipeline import versions  # brings transformers with it: seconds that a process for one variant saves

    found = dict(versions())
    found |= {name: metadata.version(name) for name in PEERS if not missing(name)}
    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        about: dict[str, Any] = {"name": facts.name, "memory_bytes": facts.total_memory, "cuda": torch.version.cuda}
    else:
        about = {"name": _processor(), "cores": os.cpu_count(), "isa": torch.backends.cpu.get_cpu_capability()}
        about["bf16"] = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in _flags()]
    return {"device": {"type": device, **about}, "versions": found}


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _flags() -> list[str]:
    return _cpuinfo("flags").split()


def predicted_s(flops: float, num_bytes: float) -> float:
    """Seconds on an H100 where products and memory traffic reach their ceilings and do not overlap with each other."""
    return flops / H100_FLOPS + num_bytes / H100_BYTES_PER_S
