"""The key that a sample depends on; what a sampler's settings may be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from r1fast.sampling import Sampling, philox_key


def test_key_depends_on_every_part_and_on_no_process() -> None:
    keys = {philox_key(*parts) for parts in [(0, "a", 0, "p"), (1, "a", 0, "p"), (0, "b", 0, "p"), (0, "a", 1, "p")]}
    assert len(keys | {philox_key(0, "a", 0, "q")}) == 5
    code = "from r1fast.sampling import philox_key; print(philox_key(3, 'rl_1', 7, 'tiny/12'))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "99"}
    )
    assert out.stdout.strip() == str(philox_key(3, "rl_1", 7, "tiny/12"))


def test_refusals() -> None:
    for options, message in (
        ({"temperature": -1.0}, "temperature must be finite and >= 0, got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"top_k": -1}, "top_k must not be negative, got -1"),
        ({"min_p": 1.0}, r"min_p must be in \[0, 1\), got 1.0"),
        ({"min_tokens": 50}, "min_tokens must be 0 to max_tokens = 40, got 50"),
        ({"stop": ("",)}, "strings that are not empty"),
        ({"stop": "text"}, "tuple of strings"),
        ({"bad_token_ids": (-1,)}, "must be token ids"),
    ):
        with pytest.raises(ValueError, match=message):
            Sampling(**({"temperature": 1.0, "max_tokens": 40, "stage": "rl_1", "visit": 0} | options))
