"""The sampler that the op is compared with: published vectors of its random numbers, and what it draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.torch_sampler import Draw, draw, philox4x32, uniforms
from r1fast.sampling import Sampling, philox_key


def _sampling(temperature: float = 1.0, top_p: float = 1.0) -> Sampling:
    return Sampling(temperature=temperature, top_p=top_p, max_tokens=4, stage="rl_1", visit=0)


def _uniform(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_matches_published_vectors(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: str
) -> None:
    assert " ".join(f"{int(word):08x}" for word in philox4x32(counter, key)) == expected


def test_uniforms_are_addressed_by_position() -> None:
    key = np.array([philox_key(0, "s", 0, "a"), philox_key(0, "s", 0, "b")], dtype=np.uint64)
    index = np.array([0, 5], dtype=np.uint64)
    whole = uniforms(key, index, np.zeros(2, dtype=np.uint64), 64)
    parts = uniforms(key[1:], index[1:], np.array([32], dtype=np.uint64), 8)
    assert (parts[0] == whole[1, 32:40]).all()
    many = uniforms(key[:1], np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.uint64), 100_000)
    assert many.min() >= 0 and many.max() < 1
    assert abs(many.mean() - 0.5) < 0.005 and abs(many.var() - 1 / 12) < 0.002


def _reference(logits: Tensor, token: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(logits.double() / temperature, dim=-1)
    return logp.gather(1, token[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("vocab", [7, 250, 256, 1000, 5000])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 0.0])
def test_logp_and_entropy_are_those_of_the_whole_vocabulary(vocab: int, temperature: float) -> None:
    logits = torch.randn(64, vocab, generator=torch.Generator().manual_seed(1)) * 4
    out = draw(logits.clone(), _uniform(64), _sampling(temperature, 1.0 if temperature == 0 else 0.9))
    logp, entropy = _reference(logits, out.token, temperature or 1.0)
    torch.testing.assert_close(out.logp.double(), logp, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(out.entropy.double(), entropy, atol=3e-5, rtol=1e-5)
    if temperature == 0:
        assert torch.equal(out.token, logits.argmax(-1)) and not out.log_kept_mass.any()


@pytest.mark.parametrize(("vocab", "top_p"), [(6, 1.0), (6, 0.7), (700, 1.0)])
def test_draws_follow_the_distribution(vocab: int, top_p: float) -> None:
    num = 40_000
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(2)) * 1.5
    out = draw(logits.expand(num, vocab).contiguous(), _uniform(num), _sampling(1.0, top_p))
    p = logits[0].double().softmax(-1)
    ordered, order = p.sort(descending=True)
    kept = order[: int((ordered.cumsum(0) < top_p).sum()) + 1]
    expected = torch.zeros_like(p)
    expected[kept] = p[kept] / p[kept].sum()
    seen = torch.bincount(out.token, minlength=vocab).double()
    assert not seen[expected == 0].any()
    chi = ((seen - num * expected)[kept] ** 2 / (num * expected[kept])).sum()
    freedom = len(kept) - 1
    assert abs(chi - freedom) < 5 * (2 * freedom) ** 0.5, f"chi-square {chi} at {freedom} degrees of freedom"


def test_kept_mass() -> None:
    p = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]])
    out = draw(p.log(), _uniform(3), _sampling(top_p=0.7))
    torch.testing.assert_close(out.log_kept_mass.exp(), torch.tensor([0.75, 0.97, 1.0]))
    assert not draw(p.log(), _uniform(3), _sampling(top_p=1.0)).log_kept_mass.any()
    wide = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)) * 0.1  # the nucleus exceeds the candidates
    kept = draw(wide.clone(), _uniform(4), _sampling(top_p=0.9)).log_kept_mass.exp()
    assert (kept >= 0.9).all() and (kept < 0.9003).all()


@pytest.mark.parametrize("vocab", [5, 600])
def test_zero_probability_is_never_drawn(vocab: int) -> None:
    logits = torch.full((5, vocab), -float("inf"))
    allowed = [0, vocab // 2, vocab - 1]
    logits[:, allowed] = 0.0
    edges = torch.tensor([0.0, 1 / 3, 2 / 3, 1 - 2.0**-53, 0.5], dtype=torch.float64)
    for top_p in (1.0, 0.5):
        out = draw(logits.clone(), edges, _sampling(top_p=top_p))
        assert set(out.token.tolist()) <= set(allowed)
        torch.testing.assert_close(out.entropy, torch.full((5,), float(np.log(3))))


def test_a_row_does_not_depend_on_the_others() -> None:
    logits, uniform = torch.randn(48, 3000) * 3, _uniform(48)
    for top_p in (1.0, 0.9):
        whole: Draw = draw(logits.clone(), uniform, _sampling(0.8, top_p))
        half = draw(logits[16:32].clone(), uniform[16:32], _sampling(0.8, top_p))
        for one, other in zip(whole, half, strict=True):
            assert torch.equal(one[16:32], other)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="fp32"):
        draw(torch.zeros(2, 3, dtype=torch.bfloat16), _uniform(2), _sampling())
    assert torch.isnan(draw(torch.full((1, 300), float("nan")), _uniform(1), _sampling()).logp).all()
