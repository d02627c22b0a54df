"""sample: against float64 distributions written here, by every instruction set and the emulated kernel, bit by bit."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from backends import BACKENDS, EMULATED
from drawn_rows import Expected, bits, run, uniform_numbers
from emulated import emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.torch_sampler import draw
from r1fast.ops.sample import MAX_VOCAB, Drawn, sample
from r1fast.sampling import Sampling

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def rows_and_settings(draw_from: st.DrawFn) -> tuple[Tensor, dict[str, list[float]], list[list[int]]]:
    """Logits on a grid, so that many tie, and settings of each row."""
    rows, vocab = draw_from(st.integers(1, 4)), draw_from(st.sampled_from([1, 2, 15, 64, 1000, 1024, 1025, 3000]))
    dtype = draw_from(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw_from(st.integers(0, 1000)))
    spread = draw_from(st.sampled_from([0.0, 0.3, 4.0, 40.0]))
    logits = (torch.randn(rows, vocab, generator=generator) * spread).mul(4).round().div(4)
    logits[torch.rand(rows, vocab, generator=generator) < draw_from(st.sampled_from([0.0, 0.3]))] = -math.inf
    logits[:, 0] = logits[:, 0].clamp(min=-50)
    chosen = {
        "temperature": st.sampled_from([0.3, 0.6, 1.0, 2.5]),
        "top_k": st.sampled_from([0, 0, 1, 3, 50, 700, 5000]),
        "top_p": st.sampled_from([1.0, 1.0, 0.9513, 0.5171, 0.0137]),
        "min_p": st.sampled_from([0.0, 0.0, 0.05317, 0.71]),
    }
    tokens_of_row = st.lists(st.integers(-1, vocab - 1), min_size=3, max_size=3)
    banned = draw_from(st.lists(tokens_of_row, min_size=rows, max_size=rows))
    if vocab < 4:
        banned = [[-1] * 3] * rows
    for row, tokens in enumerate(banned):
        logits[row, min({0, 1, 2, 3} - set(tokens)) if vocab > 3 else 0] = 0.25  # one can be drawn
    return (
        logits.to(dtype),
        {name: draw_from(st.lists(kind, min_size=rows, max_size=rows)) for name, kind in chosen.items()},
        banned,
    )


@settings(max_examples=60)
@given(rows_and_settings(), st.sampled_from(BACKENDS[:-1]))
def test_numbers_and_tokens_are_those_of_the_distribution(
    batch: tuple[Tensor, dict[str, list[float]], list[list[int]]], backend: str
) -> None:
    logits, columns, banned = batch
    before = logits.clone()
    drawn = run(logits, banned=banned, seed=5, **columns)
    with_isa = run(logits, banned=banned, seed=5, backend=backend, **columns)
    assert torch.equal(bits(drawn), bits(with_isa))
    assert torch.equal(logits, before)
    for row, uniform in enumerate(uniform_numbers(range(5, 5 + len(logits)))):
        options = {name: values[row] for name, values in columns.items()}
        Expected(logits[row], banned[row], **options).assert_drawn(drawn, row, float(uniform))


@settings(max_examples=25)
@given(rows_and_settings())
def test_the_emulated_kernel_is_the_cpu_twin_bit_by_bit(
    batch: tuple[Tensor, dict[str, list[float]], list[list[int]]],
) -> None:
    logits, columns, banned = batch
    columns = columns | {"temperature": [0.0, *columns["temperature"][1:]]}
    assert torch.equal(
        bits(run(logits, banned=banned, **columns)), bits(run(logits, banned=banned, backend=EMULATED, **columns))
    )


@pytest.mark.parametrize("backend", ["plain", EMULATED])
def test_every_combination_of_cuts(backend: str) -> None:
    cuts = list(itertools.product([0.6, 1.7], [0, 3, 60], [1.0, 0.9513, 0.5171], [0.0, 0.0073, 0.21]))
    logits = torch.randn(len(cuts), 700, generator=torch.Generator().manual_seed(11)) * 1.5
    columns = {
        name: [cut[number] for cut in cuts] for number, name in enumerate(("temperature", "top_k", "top_p", "min_p"))
    }
    largest = logits.argmax(-1).tolist()
    banned = [[token, token + 1 if token < 699 else -1] for token in largest]
    for excluded in (None, banned):
        drawn = run(logits, backend=backend, banned=excluded, **columns)
        for row, uniform in enumerate(uniform_numbers(range(len(cuts)))):
            options = {name: values[row] for name, values in columns.items()}
            Expected(logits[row], excluded[row] if excluded else (), **options).assert_drawn(drawn, row, float(uniform))


CUTS: list[dict[str, float]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_frequencies(cut: dict[str, float]) -> None:
    """Chi-square: 40,000 draws of one row, which is read again and again (its stride is 0)."""
    count = 40_000
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 1.5
    banned = [[3, 11]] * count
    drawn = run(logits.expand(count, -1), banned=banned, **cut)
    expected = Expected(logits, banned[0], **cut).probability * count
    observed = np.bincount(drawn.token_R.numpy(), minlength=40)
    assert not observed[expected == 0].any()
    likely = expected >= 5
    degrees = likely.sum() - 1
    assert degrees >= 2
    chi_square = ((observed - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)
    assert observed[likely].sum() >= count * 0.99


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_real_vocabulary(backend: str, dtype: torch.dtype) -> None:
    """More candidates than the kernel lists, top-k beyond its threads, rows that do not begin on 16 bytes."""
    logits = (torch.randn(8, 5003, generator=torch.Generator().manual_seed(2)) * 2).to(dtype)[:, 1:]
    columns = {
        "temperature": [1.0, 0.0, 0.6, 1.0, 1.0, 0.6, 5.0, 1.0],
        "top_p": [1.0, 1.0, 0.95, 1.0, 1.0, 0.9, 0.99, 0.999],
        "top_k": [0, 0, 0, 50, 600, 40, 0, 4000],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.0, 0.001],
    }
    drawn = run(logits, backend=backend, **columns)
    if backend != "plain":
        assert torch.equal(bits(drawn), bits(run(logits, backend="plain", **columns)))
    for row, uniform in enumerate(uniform_numbers(range(8))):
        if columns["temperature"][row] > 0:
            Expected(logits[row], **{name: values[row] for name, values in columns.items()}).assert_drawn(
                drawn, row, float(uniform)
            )


@pytest.mark.parametrize("backend", ["plain", EMULATED])
def test_ties_with_the_last_one_kept_are_kept(backend: str) -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0, 1.0, 0.0, -0.0]).expand(64, -1)
    tokens = run(logits, backend=backend, top_k=2, temperature=5.0).token_R
    assert set(tokens.tolist()) == {0, 1, 2, 4}
    drawn = run(logits, backend=backend, top_k=5, temperature=50.0)  # 0 and -0 tie
    assert set(drawn.token_R.tolist()) == set(range(7))
    assert not drawn.log_kept_mass_R.any()
    assert set(run(logits, backend=backend, top_p=0.4, temperature=5.0).token_R.tolist()) == {0, 1, 2, 4}


@pytest.mark.parametrize("backend", ["plain", EMULATED])
def test_one_token_alone(backend: str) -> None:
    single = run(torch.tensor([[-3.5]]), backend=backend, temperature=0.7, top_p=0.3, top_k=4, min_p=1.0)
    logits = torch.full((3, 1500), -math.inf)
    logits[:, 1207] = -7.0
    alone = run(logits, backend=backend, temperature=[1.0, 0.0, 0.5], top_p=[1.0, 1.0, 0.9], top_k=[0, 0, 30])
    assert single.token_R.tolist() == [0]
    assert alone.token_R.tolist() == [1207] * 3
    for drawn in (single, alone):
        for column in (drawn.logp_R, drawn.entropy_R, drawn.log_kept_mass_R, drawn.status_R):
            assert not column.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_temperature_0_takes_the_first_largest(backend: str) -> None:
    logits = torch.randn(3, 2100, generator=torch.Generator().manual_seed(3))
    logits[0, [2000, 1030, 1031]] = 9.0
    logits[1, [5, 9]] = 9.0
    banned = [[-1, -1], [5, -1], [-1, 2099]]
    drawn = run(logits, backend=backend, temperature=0.0, top_k=2, top_p=0.5, min_p=0.5, banned=banned)
    assert drawn.token_R.tolist() == [1030, 9, int(logits[2].argmax())]
    assert not drawn.log_kept_mass_R.any()
    logp = logits.double().log_softmax(-1)
    assert torch.allclose(drawn.logp_R.double(), logp.gather(1, drawn.token_R.long()[:, None])[:, 0], atol=2e-6)
    assert torch.allclose(drawn.entropy_R.double(), -(logp.exp() * logp).sum(-1), atol=3e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1e-38, 1e-45, 1e-3, 3e38])
def test_extreme_temperatures(backend: str, temperature: float) -> None:
    """A temperature near 0 takes the largest, one near infinity anything; nothing overflows to NaN."""
    logits = torch.tensor([[-1e38, 0.5, 1e38, 1.0, -math.inf]] * 40)
    drawn = run(logits, backend=backend, temperature=temperature)
    if temperature < 1:
        assert set(drawn.token_R.tolist()) == {2}
        assert not torch.stack([drawn.logp_R, drawn.entropy_R, drawn.log_kept_mass_R]).any()
    else:
        assert set(drawn.token_R.tolist()) == {0, 1, 2, 3}
        expected = Expected(logits[0], temperature=3e38)
        assert drawn.entropy_R[0].item() == pytest.approx(expected.entropy, abs=3e-6)


@pytest.mark.parametrize("backend", ["plain", EMULATED])
def test_faulty_rows_say_so_and_disturb_no_other(backend: str) -> None:
    logits = torch.randn(7, 1100, generator=torch.Generator().manual_seed(4))
    clean = run(logits, backend=backend, banned=[[-1, -1]] * 7)
    logits[1, 1050] = math.nan
    logits[2, 3] = math.inf
    logits[3] = -math.inf
    logits[4] = -math.inf
    logits[4, [6, 700]] = 1.0
    logits[5, 9] = -math.nan
    drawn = run(logits, backend=backend, banned=[[-1, -1]] * 4 + [[700, 6]] + [[-1, -1]] * 2, top_p=0.9999999)
    assert drawn.status_R.tolist() == [0, 1, 1, 2, 2, 1, 0]
    assert drawn.token_R[1:6].tolist() == [-1] * 5
    for column in (drawn.logp_R, drawn.entropy_R, drawn.log_kept_mass_R):
        assert column[1:6].isnan().all()
    for row in (0, 6):
        assert drawn.token_R[row] == clean.token_R[row]
        assert drawn.entropy_R[row] == clean.entropy_R[row]
    with pytest.raises(ValueError, match=r"rows 1, 2, 5: a logit is NaN or \+inf; rows 3, 4: no token can be drawn"):
        drawn.check()
    clean.check()


@pytest.mark.parametrize("backend", ["plain", EMULATED])
def test_banned_tokens_are_not_drawn_and_keep_their_probability(backend: str) -> None:
    logits = torch.zeros(1, 1200)
    logits[0, :4] = torch.tensor([80.0, 4.0, 3.5, 60.0])  # without 0 and 3, what is left is e^-76 of the whole
    banned = [[0, 3, -1, 0]] * 50
    drawn = run(logits.expand(50, -1), backend=backend, banned=banned, top_k=2)
    assert set(drawn.token_R.tolist()) == {1, 2}
    expected = Expected(logits[0], banned[0], top_k=2)
    for row, uniform in enumerate(uniform_numbers(range(50))):
        expected.assert_drawn(drawn, row, float(uniform))
    assert not set(run(logits.expand(50, -1), backend=backend, banned=banned).token_R.tolist()) & {0, 3}


@pytest.mark.parametrize("backend", ["plain", "avx2", EMULATED])
def test_a_row_depends_on_nothing_but_itself(backend: str) -> None:
    """Its place in the batch, the stride of rows and the number of threads do not show."""
    logits = (torch.randn(6, 1300, generator=torch.Generator().manual_seed(5)) * 3).bfloat16()
    columns: dict[str, Any] = {"temperature": 0.8, "top_p": 0.93, "min_p": 0.001}
    position = torch.arange(6)
    whole = bits(run(logits, backend=backend, position=position, **columns))
    wide = torch.full((6, 4001), math.nan, dtype=torch.bfloat16)
    wide[:, 5:1305] = logits
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(bits(run(wide[:, 5:1305], backend=backend, position=position, **columns)), whole)
    finally:
        torch.set_num_threads(before)
    for row in (0, 5):
        alone = run(logits[row : row + 1], backend=backend, position=position[row : row + 1], **columns)
        assert torch.equal(bits(alone)[:, 0], whole[:, row])
    turned = run(logits.flip(0), backend=backend, position=position.flip(0), **columns)
    assert torch.equal(bits(turned).flip(1), whole)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_order_of_warps_matters(seed: int) -> None:
    logits = torch.randn(4, 2600, generator=torch.Generator().manual_seed(8)) * 3
    columns: dict[str, Any] = {
        "temperature": [0.0, 1.0, 0.7, 2.0],
        "top_p": [1.0, 1.0, 0.9, 1.0],
        "top_k": [0, 0, 0, 9],
    }
    expected = bits(run(logits, backend=EMULATED, banned=[[7]] * 4, **columns))
    try:
        emulated().set_schedule(seed)
        assert torch.equal(bits(run(logits, backend=EMULATED, banned=[[7]] * 4, **columns)), expected)
    finally:
        emulated().set_schedule(0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_draws_what_the_cpu_draws(dtype: torch.dtype) -> None:
    logits = (torch.randn(64, 151936, generator=torch.Generator().manual_seed(9)) * 3).to(dtype)
    generator = torch.Generator().manual_seed(10)

    def chosen(values: list[float]) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (64,), generator=generator)]

    columns = {"temperature": chosen([0.0, 0.6, 1.0, 2.0]), "top_p": chosen([1.0, 0.95, 0.5])}
    columns |= {"top_k": chosen([0, 0, 50, 2000]), "min_p": chosen([0.0, 0.0, 0.02])}
    banned = torch.randint(-1, 151936, (64, 5), generator=generator).tolist()
    on_gpu = run(logits.cuda(), banned=banned, **columns)
    assert torch.equal(bits(on_gpu), bits(run(logits, banned=banned, **columns)))


@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_it_draws_what_the_torch_sampler_draws(top_p: float) -> None:
    logits = torch.randn(200, 3000, generator=torch.Generator().manual_seed(6)) * 2
    drawn = run(logits, temperature=0.7, top_p=top_p)
    sampling = Sampling(temperature=0.7, top_p=top_p, max_tokens=1, stage="test", visit=0)
    other = draw(logits.clone(), torch.from_numpy(uniform_numbers(range(200)).copy()), sampling)
    assert (drawn.token_R == other.token).sum() >= 199  # a random number may lie within rounding of a boundary
    same = drawn.token_R == other.token
    assert torch.allclose(drawn.logp_R[same], other.logp[same], atol=4e-6)
    assert torch.allclose(drawn.log_kept_mass_R, other.log_kept_mass, atol=4e-6)


@pytest.mark.parametrize("backend", ["plain", EMULATED])
def test_the_largest_vocabulary(backend: str) -> None:
    """Of equal tokens: the mass fills its 63 bits."""
    logits = torch.zeros(1, MAX_VOCAB, dtype=torch.bfloat16)
    for cut in ({}, {"top_p": 0.5}):
        drawn = run(logits, backend=backend, seed=77, **cut)
        (uniform,) = uniform_numbers(range(77, 78))
        assert drawn.token_R.item() == int(uniform * MAX_VOCAB)
        assert drawn.entropy_R.item() == pytest.approx(math.log(MAX_VOCAB), rel=1e-6)
        assert not drawn.log_kept_mass_R.any()


def test_no_rows() -> None:
    for backend in ("plain", EMULATED):
        run(torch.zeros(0, 10), backend=backend).check()


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1.0}, r"row 0 has temperature = -1"),
    ({"temperature": math.nan}, r"row 0 has temperature = -?nan"),
    ({"temperature": math.inf}, r"temperature = inf"),
    ({"top_k": -1}, r"top_k = -1"),
    ({"top_p": 0.0}, r"top_p = 0"),
    ({"top_p": 1.5}, r"top_p = 1.5"),
    ({"top_p": math.nan}, r"top_p = -?nan"),
    ({"min_p": -0.1}, r"min_p = -0.1"),
    ({"min_p": 1.1}, r"min_p = 1.1"),
    ({"banned": [[10], [1]]}, r"row 0 bans token 10, the vocabulary has 0 to 9"),
    ({"banned": [[-2], [1]]}, r"row 0 bans token -2"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_SETTINGS, ids=str)
def test_settings_out_of_range(wrong: dict[str, Any], message: str) -> None:
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(7))
    with pytest.raises(ValueError, match=message):
        run(logits, **wrong)
    per_row = {name: value if name == "banned" else [value, 1] for name, value in wrong.items()}
    drawn = run(logits, backend=EMULATED, **per_row)
    assert drawn.status_R.tolist() == [4, 0]
    assert drawn.token_R[0] == -1
    assert drawn.logp_R.isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match=r"row 0: temperature, top_k, top_p, min_p or a banned token is out of range"):
        drawn.check()


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), r"logits_RV must be \[rows, 1 to 1048576\] of bfloat16, float16 or"),
        (torch.zeros(3), r"it is float32 \[3\] on cpu"),
        (torch.zeros(2, 0), r"it is float32 \[2, 0\]"),
        (torch.zeros(1, 1).expand(2, MAX_VOCAB + 1), r"it is float32 \[2, 1048577\]"),
        (torch.zeros(3, 2).T, r"rows of logits_RV must be contiguous, the strides are \(1, 2\)"),
    ],
)
def test_logits_are_checked(logits: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(logits)


def test_columns_are_checked() -> None:
    logits, rows = torch.zeros(2, 5), torch.zeros(2)
    good = {"temperature_R": rows, "top_p_R": rows + 1, "min_p_R": rows, "top_k_R": rows.int()}
    good |= {"key_R2": torch.zeros(2, 2).int(), "sample_index_R": rows.int(), "position_R": rows.int()}
    sample(logits, Drawn.allocate(2), **good)
    for name, value in good.items():
        with pytest.raises(ValueError, match=rf"{name} must be \w+ \[2.*\] on cpu, it is \w+ \[3"):
            sample(logits, Drawn.allocate(2), **good | {name: torch.cat([value, value])[:3]})
        with pytest.raises(ValueError, match=rf"{name} must be"):
            sample(logits, Drawn.allocate(2), **good | {name: value.long()})
    for name in vars(Drawn.allocate(2)):
        with pytest.raises(ValueError, match=rf"drawn.{name} must be"):
            sample(logits, replace(Drawn.allocate(2), **{name: torch.zeros(2).double()}), **good)
    with pytest.raises(ValueError, match=r"banned_RB must be int32 \[2, 1\]"):
        sample(logits, Drawn.allocate(2), **good, banned_RB=torch.zeros(3, 1).int())
    with pytest.raises(ValueError, match=r"logits_RV is float32 \[2, 5\] on cpu, drawn has 3 rows"):
        sample(logits, Drawn.allocate(3), **good)
    with pytest.raises(ValueError, match=r"rows = -1 must not be negative"):
        Drawn.allocate(-1)
