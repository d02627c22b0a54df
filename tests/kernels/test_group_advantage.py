"""Advantages against the definition, and the algebra that must hold for every group layout."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import INTERPRETED

from r1fast.kernels.group_advantage import BASELINES, SCALES, group_advantage, group_advantage_reference

SETTINGS = list(product(BASELINES, SCALES))
# steps of 1/8 over a few values, so that ties and constant groups are drawn often
layouts = st.lists(st.tuples(st.integers(-8, 24).map(lambda n: n / 8), st.integers(0, 4)), min_size=1, max_size=24)


def tensors(layout: list[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rewards, groups = zip(*layout, strict=True)
    return torch.tensor(rewards), torch.tensor(groups) * 7 - 3


@pytest.mark.parametrize(("baseline", "scale"), SETTINGS)
@given(layout=layouts, unbiased=st.booleans(), eps=st.sampled_from([0.0, 1e-4]))
def test_any_layout_equals_the_definition(
    baseline: str, scale: str, layout: list[tuple[float, int]], unbiased: bool, eps: float
) -> None:
    rewards, group = tensors(layout)
    options = {"baseline": baseline, "scale": scale, "unbiased": unbiased, "eps": eps}
    advantage = group_advantage(rewards, group, **options)
    assert advantage.dtype == torch.float32
    torch.testing.assert_close(advantage.double(), group_advantage_reference(rewards, group, **options))


@pytest.mark.parametrize(("baseline", "scale"), SETTINGS)
@given(layout=layouts, seed=st.integers(0, 9))
def test_algebra(baseline: str, scale: str, layout: list[tuple[float, int]], seed: int) -> None:
    rewards, group = tensors(layout)
    advantage = group_advantage(rewards, group, baseline=baseline, scale=scale)
    for one in group.unique():
        own = advantage[group == one]
        if rewards[group == one].unique().numel() == 1:
            assert torch.equal(own, torch.zeros_like(own))
        elif baseline != "none":
            assert abs(float(own.sum())) < 1e-5 * len(own)
        if scale == "group_std" and baseline == "mean" and own.any():
            assert float(own.std()) == pytest.approx(1, rel=1e-5)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    shuffled = group_advantage(rewards[order], group[order], baseline=baseline, scale=scale)
    torch.testing.assert_close(shuffled, advantage[order], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("baseline", "scale"), SETTINGS)
@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1e8 + 0.3, -7e-9])
def test_a_constant_group_is_exactly_zero(baseline: str, scale: str, constant: float) -> None:
    """With fp32 means and eps 1e-9 as others compute it, rounding leaves up to 0.9 here."""
    rewards = torch.tensor([constant] * 7 + [1.0, 0.0] + [0.3])
    group = torch.tensor([5] * 7 + [1, 1] + [2])
    advantage = group_advantage(rewards, group, baseline=baseline, scale=scale, eps=1e-9)
    assert torch.equal(advantage[[*range(7), 9]], torch.zeros(8))
    assert (advantage[7] != 0).item()


def test_rewards_that_are_large_and_close_keep_their_digits() -> None:
    advantage = group_advantage(torch.tensor([10000.0, 10000.001953125]), torch.tensor([0, 0]))
    torch.testing.assert_close(advantage, torch.tensor([-(0.5**0.5), 0.5**0.5]))


def test_figures_by_hand() -> None:
    rewards, group = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int32)
    options = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(group_advantage(rewards, group), torch.tensor([1.5, -0.5, -0.5, -0.5]), **options)
    biased = group_advantage(rewards, group, unbiased=False)
    torch.testing.assert_close(biased, torch.tensor([3.0, -1, -1, -1]) / 3**0.5, **options)
    left_out = group_advantage(rewards, group, baseline="leave_one_out", scale="none")
    torch.testing.assert_close(left_out, torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3]), **options)
    assert group_advantage(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert group_advantage(rewards.double(), group).dtype == torch.float64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_raises(bad: float) -> None:
    with pytest.raises(ValueError, match=r"1 of 3 rewards are not finite, first (nan|inf) at 1"):
        group_advantage(torch.tensor([1.0, bad, 0.0]), torch.tensor([0, 0, 0]))


@pytest.mark.skipif(not INTERPRETED, reason="without Triton values are always read")
@pytest.mark.parametrize(("baseline", "scale"), SETTINGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_where_values_are_not_read_such_a_reward_makes_its_group_nan(baseline: str, scale: str, bad: float) -> None:
    from r1fast.kernels.group_advantage_kernels import launch

    # beside the bad one: equal rewards, unequal ones, none
    rewards = torch.tensor([bad, 1.0, 1.0, 0.0, 2.0, bad, bad, 3.0, 3.0, 0.0, 1.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3, 3, 4, 4])
    advantage = launch(rewards, group, baseline, scale, True, 0.0)
    assert advantage[:7].isnan().all()
    assert torch.equal(advantage[7:9], torch.zeros(2))
    assert advantage[9:].isfinite().all() or scale == "batch_std"  # where every group waits for all rewards
