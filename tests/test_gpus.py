"""Data sheets: plausible, and what a plan divides by."""

from __future__ import annotations

import pytest

from r1fast.gpus import GIB, GPUS


@pytest.mark.parametrize("name", list(GPUS))
def test_figures_are_of_the_right_order(name: str) -> None:
    gpu = GPUS[name]
    assert gpu.name == name
    assert 20 * GIB < gpu.memory < 300 * GIB
    assert 1e14 < gpu.flops < 1e16 and 5e11 < gpu.bandwidth < 1e13
    assert gpu.link >= gpu.network > 1e9
    # an operation of a product needs far less memory traffic than one of a decode step: more than 100 FLOP a byte
    assert gpu.flops / gpu.bandwidth > 100


def test_an_h800_is_an_h100_with_a_slower_link() -> None:
    h100, h800 = GPUS["h100"], GPUS["h800"]
    assert h800.link < h100.link
    assert (h800.memory, h800.flops, h800.bandwidth) == (h100.memory, h100.flops, h100.bandwidth)
