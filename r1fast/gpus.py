"""Data sheets of GPUs that plans are made for."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """`memory`: bytes that PyTorch finds on one; dense bf16 FLOP/s; bytes/s of its memory and, each way, of its links.

    `link` joins the GPUs of a node, `network` is one GPU's share of what joins nodes.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    network: float
    per_node: int = 8


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="h100", memory=79.1 * GIB, flops=989e12, bandwidth=3.35e12, link=450e9, network=50e9),
        Gpu(name="h800", memory=79.1 * GIB, flops=989e12, bandwidth=3.35e12, link=200e9, network=50e9),
        Gpu(name="h200", memory=139.8 * GIB, flops=989e12, bandwidth=4.8e12, link=450e9, network=50e9),
        Gpu(name="b200", memory=178.3 * GIB, flops=2250e12, bandwidth=7.7e12, link=900e9, network=50e9),
        Gpu(name="a100", memory=79.1 * GIB, flops=312e12, bandwidth=2.04e12, link=300e9, network=25e9),
        Gpu(name="a100-40", memory=39.4 * GIB, flops=312e12, bandwidth=1.56e12, link=300e9, network=25e9),
        Gpu(name="l40s", memory=44.4 * GIB, flops=362e12, bandwidth=0.864e12, link=32e9, network=25e9),
        Gpu(name="rtx4090", memory=23.6 * GIB, flops=165e12, bandwidth=1.01e12, link=32e9, network=12.5e9),
    )
}
