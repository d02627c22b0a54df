"""The endless stream: a pure function of position, every epoch a permutation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.stream import Stream, permutation


@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 60), st.integers(0, 60))
def test_a_position_has_one_item_however_it_is_reached(num_items: int, start: int, first: int, second: int) -> None:
    items = list(range(num_items))
    whole = Stream(items, "key").take(start, first + second)
    stream = Stream(items, "key")
    backwards = stream.take(start + first, second)
    assert stream.take(start, first) + backwards == whole


@given(st.integers(1, 30), st.integers(0, 4))
def test_every_epoch_is_a_permutation(num_items: int, epoch: int) -> None:
    taken = Stream(list(range(num_items)), "key").take(epoch * num_items, num_items)
    assert sorted(taken) == list(range(num_items))


def test_epochs_and_keys_shuffle_differently() -> None:
    items = list(range(50))
    orders = {tuple(Stream(items, key).take(epoch * 50, 50)) for key in ("a", "b") for epoch in (0, 1)}
    assert len(orders) == 4


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permutation(8, "r1_zero 0 epoch 0") == [4, 1, 3, 0, 2, 7, 6, 5]


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'sft_1 0' has no items"):
        Stream([], "sft_1 0")
