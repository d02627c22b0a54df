"""Which steps are refused before anything is updated."""

from __future__ import annotations

import math

import pytest

from r1fast.bad_step import BadStep, require_good


@pytest.mark.parametrize(
    ("loss", "norm", "most", "message"),
    [
        (math.nan, 1.0, math.inf, r"the loss is nan at step 4 \(policy version 2\); nothing was updated"),
        (-math.inf, math.nan, math.inf, "the loss is -inf"),
        (0.5, math.inf, math.inf, "the gradient's norm is inf at step 4"),
        (0.5, 7.5, 7.0, "the gradient's norm is 7.5, a spike above 7, at step 4"),
    ],
)
def test_a_bad_step_says_why_and_keeps_its_sums(loss: float, norm: float, most: float, message: str) -> None:
    with pytest.raises(BadStep, match=message) as caught:
        require_good({"loss_sum": loss, "tokens_count": 3.0}, norm, num_steps=4, version=2, most_norm=most)
    sums = caught.value.sums
    assert sums == pytest.approx(
        {"loss_sum": loss, "tokens_count": 3.0, "loss_count": 1.0, "grad_norm_sum": norm, "grad_norm_count": 1.0},
        nan_ok=True,
    )


def test_a_good_step_passes() -> None:
    require_good({"loss_sum": -3.0}, 7.0, num_steps=0, version=0, most_norm=7.0)
    require_good({"loss_sum": 0.0}, 1e30, num_steps=0, version=0)
