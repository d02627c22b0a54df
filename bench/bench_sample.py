"""`sample`: one token for each row of logits, against a sampler that does the same in torch and NumPy.

Bytes, the least: the logits once; the ceiling is a copy that moves as many. `nucleus` is temperature 0.6 with top-p
0.95, `plain` cuts nothing. `python -m bench.bench_sample [--quick] [--threads 1 2] [--json FILE]`.
"""

# R rows, V vocab

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.command import main
from bench.harness import Case, Figure, Measured, Outputs, Variant, Work, plain
from bench.heads import LOGIT_STD
from bench.torch_sampler import Draw, draw, uniforms
from r1fast.ops.sample import Drawn, sample
from r1fast.sampling import Sampling, philox_key

OWN, TORCH, COPY = "sample", "torch and NumPy", "copy of as many bytes"
CHUNK_ROWS = 16  # in float64 at once
SPEEDUP = {"plain": 2.5, "nucleus": 5.0}  # over the torch sampler
MOST_MS = {"cpu": 2.0, "cuda": 0.2}  # at 32 x 49152 and at 512 x 151936


@dataclass(frozen=True)
class Shape:
    rows: int
    vocab: int
    dtype: str
    temperature: float
    top_p: float

    @property
    def kind(self) -> str:
        return "nucleus" if self.top_p < 1 else "plain"

    @property
    def num_bytes(self) -> float:
        return float(self.rows * self.vocab * getattr(torch, self.dtype).itemsize)


def outputs(found: Drawn | Draw) -> Outputs:
    if isinstance(found, Drawn):
        return {"logp": found.logp_R, "log_kept_mass": found.log_kept_mass_R, "entropy": found.entropy_R}
    return {"logp": found.logp, "log_kept_mass": found.log_kept_mass, "entropy": found.entropy}


def build(shape: Shape, device: str) -> Work:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape.rows, shape.vocab, generator=generator).mul_(LOGIT_STD)
    logits = logits.to(device, getattr(torch, shape.dtype))
    key = np.tile(np.array(philox_key(0, "bench", 0, "prompt"), dtype=np.uint64), (shape.rows, 1))
    index = np.arange(shape.rows, dtype=np.uint64)
    uniform = torch.from_numpy(uniforms(key, index, np.zeros_like(index), 1)[:, 0].copy()).to(device)
    sampling = Sampling(temperature=shape.temperature, top_p=shape.top_p, max_tokens=1, stage="bench", visit=0)
    drawn = Drawn.allocate(shape.rows, device)
    call = partial(
        sample,
        logits,
        drawn,
        temperature_R=torch.full((shape.rows,), shape.temperature, device=device),
        top_k_R=torch.zeros(shape.rows, dtype=torch.int32, device=device),
        top_p_R=torch.full((shape.rows,), shape.top_p, device=device),
        min_p_R=torch.zeros(shape.rows, device=device),
        key_R2=torch.from_numpy(key.astype(np.uint32).view(np.int32)).to(device),
        sample_index_R=torch.from_numpy(index.astype(np.int32)).to(device),
        position_R=torch.zeros(shape.rows, dtype=torch.int32, device=device),
    )

    def own() -> Outputs:
        call()
        return outputs(drawn)

    def in_torch() -> Callable[[], Outputs]:
        fresh = logits.float() if logits.dtype != torch.float32 else logits.clone()  # it overwrites them
        return lambda: outputs(draw(fresh, uniform, sampling))

    source, target = (torch.zeros(int(shape.num_bytes) // 2, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> Outputs:
        target.copy_(source)
        return {}

    variants = [
        Variant(OWN, "own", plain(own)),
        Variant(TORCH, "eager", in_torch, "fp32 logits that it may overwrite, made before"),
        Variant(COPY, "ceiling", plain(copy)),
    ]
    tolerance = dict.fromkeys(("logp", "log_kept_mass", "entropy"), 1e-5)
    return Work(variants, partial(reference, logits, uniform, shape), tolerance)


def reference(logits: Tensor, uniform: Tensor, shape: Shape) -> Outputs:
    """In float64, by sorting."""
    parts = []
    for row in range(0, shape.rows, CHUNK_ROWS):
        logp = (logits[row : row + CHUNK_ROWS].double() / shape.temperature).log_softmax(-1)
        probability = logp.exp()
        ordered = logp.sort(descending=True).values
        before = ordered.exp().cumsum(-1) - ordered.exp()
        needed = shape.top_p if shape.top_p < 1 else torch.inf  # `before` may pass 1 by rounding
        least = ordered.masked_fill(before >= needed, torch.inf).amin(-1, keepdim=True)
        kept = torch.where(logp >= least, probability, 0.0)
        cumulative = kept.cumsum(-1)
        mass = torch.where((kept > 0).all(-1), 1.0, cumulative[:, -1])
        target = uniform[row : row + CHUNK_ROWS, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, target, right=True)
        found = {"logp": logp.gather(1, token)[:, 0], "log_kept_mass": mass.log()}
        parts.append(found | {"entropy": -(probability * logp).sum(-1)})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def figures(measured: Measured, shape: Shape, device: str) -> list[Figure]:
    ratio = measured.ratio(TORCH, OWN)
    found = [Figure("times faster than torch and NumPy", ratio, SPEEDUP[shape.kind], at_least=True)]
    if shape.rows == (32 if device == "cpu" else 512):
        seconds = measured.value(OWN, "median_s")
        found.append(Figure("milliseconds", None if seconds is None else 1e3 * seconds, MOST_MS[device]))
    return found


def case(shape: Shape, device: str, *, judged: bool) -> Case:
    return Case(
        f"{shape.kind}, {shape.rows} x {shape.vocab}",
        {"R": shape.rows, "V": shape.vocab},
        shape.dtype,
        0.0,
        shape.num_bytes,
        partial(build, shape, device),
        partial(figures, shape=shape, device=device) if judged else (lambda measured: []),
        count_launches=True,
    )


def cases(device: str, size: str = "full") -> Iterator[Case]:
    shapes = [(32, 49152), (512, 151936)] if size == "full" or device == "cuda" else [(32, 49152)]
    for rows, vocab in [(4, 3000)] if size == "tiny" else shapes:
        for temperature, top_p in ((1.0, 1.0), (0.6, 0.95)):
            for dtype in ("bfloat16", "float32") if device == "cuda" else ("float32",):
                yield case(Shape(rows, vocab, dtype, temperature, top_p), device, judged=size != "tiny")


if __name__ == "__main__":
    main("bench.bench_sample", cases)
