"""`group_advantage`: rewards to advantages, groups of 16 in order and interleaved.

Bytes, the least: a reward and a group id read, an advantage written, 16 a sample: what counts is the number of
launches. `python -m bench.bench_group_advantage [--quick] [--json FILE]`.
"""

# N samples

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.command import main
from bench.harness import Case, Figure, Measured, Outputs, Variant, Work, compiled, plain
from r1fast.kernels.group_advantage import group_advantage

OWN, COPY = "group_advantage", "copy of as many bytes"
GROUP = 16
JUDGED = 1024  # the samples of 64k tokens, or of many more
SAMPLES = {"cuda": (JUDGED, 16384), "cpu": (JUDGED, 16384)}


def by_shape(rewards: Tensor, dtype: torch.dtype) -> Tensor:
    """What trainers do where groups lie in order and have one size."""
    grouped = rewards.to(dtype).view(-1, GROUP)
    centred = grouped - grouped.mean(1, keepdim=True)
    return (centred / (grouped.std(1, keepdim=True) + 1e-6)).view(-1)


def build(num_samples: int, device: str, *, interleaved: bool) -> Work:
    generator = torch.Generator(device).manual_seed(0)
    rewards = torch.rand(num_samples, generator=generator, device=device)
    group = torch.arange(num_samples, device=device) // GROUP
    if interleaved:
        order = torch.randperm(num_samples, generator=generator, device=device)
        rewards, group = rewards[order], group[order]

    def own() -> Outputs:
        return {"advantage": group_advantage(rewards, group, eps=1e-6)}

    def ordered(call: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Callable[[], Outputs]:
        def run() -> Outputs:
            if not interleaved:
                return {"advantage": call(rewards, dtype)}
            order = torch.argsort(group, stable=True)
            advantage = torch.empty_like(rewards, dtype=dtype)
            advantage[order] = call(rewards[order], dtype)
            return {"advantage": advantage}

        return run

    source, target = (torch.zeros(2 * num_samples, device=device) for _ in range(2))

    def copy() -> Outputs:
        target.copy_(source)
        return {}

    note = "groups of one size" if interleaved else "groups of one size, in order"
    variants = [
        Variant(OWN, "own", plain(own), "any layout"),
        Variant("eager", "eager", plain(ordered(by_shape)), note),
        Variant("torch.compile", "compile", compiled(ordered, by_shape), note),
        Variant(COPY, "ceiling", plain(copy)),
    ]
    return Work(variants, ordered(by_shape, torch.float64), {"advantage": 1e-5})


def figures(measured: Measured) -> list[Figure]:
    return [Figure("launches", measured.value(OWN, "launches"), 1.0)]


def case(num_samples: int, device: str, *, interleaved: bool) -> Case:
    return Case(
        f"{'interleaved' if interleaved else 'in order'}, N={num_samples}",
        {"N": num_samples},
        "float32",
        0.0,
        16.0 * num_samples,
        partial(build, num_samples, device, interleaved=interleaved),
        figures if device == "cuda" and num_samples == JUDGED else (lambda measured: []),
        count_launches=True,
    )


def cases(device: str, size: str = "full") -> Iterator[Case]:
    for num_samples in (64,) if size == "tiny" else SAMPLES[device] if size == "full" else SAMPLES[device][:1]:
        for interleaved in (False, True):
            yield case(num_samples, device, interleaved=interleaved)


if __name__ == "__main__":
    main("bench.bench_group_advantage", cases)
