"""Calls of sample, and a row's distribution in float64 to hold them to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from backends import using
from torch import Tensor

from bench.torch_sampler import uniforms
from r1fast.ops.sample import Drawn, sample

KEY = (0x89ABCDEF, 0xFEDCBA98)  # above 2^31: int32 holds their bits
Array = npt.NDArray[np.float64]


def run(logits: Tensor, *, backend: str = "", seed: int = 0, banned: Any = None, **settings: Any) -> Drawn:
    """One draw a row; settings are numbers or one for each row, the rows' positions count up from `seed`."""
    rows = len(logits)
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "sample_index": 3}
    defaults |= {"position": torch.arange(seed, seed + rows)} | settings
    columns = {}
    for name, value in defaults.items():
        dtype = torch.float32 if name in ("temperature", "top_p", "min_p") else torch.int32
        columns[f"{name}_R"] = torch.as_tensor(value).to(dtype).expand(rows).contiguous()
    key = torch.tensor(KEY, dtype=torch.int64).to(torch.int32).expand(rows, 2).contiguous()
    drawn = Drawn.allocate(rows, logits.device)
    arguments = columns | {"key_R2": key}
    if banned is not None:
        arguments["banned_RB"] = torch.tensor(banned).int()
    arguments = {name: tensor.to(logits.device) for name, tensor in arguments.items()}
    if backend:
        with using(backend):
            sample(logits, drawn, **arguments)
    else:
        sample(logits, drawn, **arguments)
    return drawn


def bits(drawn: Drawn) -> Tensor:
    """int32 [5, R]: NaN equals itself."""
    return torch.stack([column.view(torch.int32) for column in vars(drawn).values()]).cpu()


def uniform_numbers(positions: range, sample_index: int = 3) -> Array:
    ones = np.ones(1, dtype=np.uint64)
    key = np.array([KEY], dtype=np.uint64)
    return uniforms(key, ones * np.uint64(sample_index), ones * np.uint64(positions.start), len(positions))[0]


class Expected:
    """One row's distribution in float64."""

    def __init__(self, logits: Tensor, banned: Any = (), **settings: float) -> None:
        temperature = settings.get("temperature", 1.0)
        x = logits.double().numpy()
        with np.errstate(invalid="ignore"):
            below = (x - x.max()) / (temperature or 1.0)
        weight = np.exp(below)
        self.logp = below - math.log(weight.sum())
        probability = weight / weight.sum()
        self.entropy = -(probability[probability > 0] * self.logp[probability > 0]).sum()
        self.kept = np.ones(len(x), dtype=bool)
        self.kept[[token for token in banned if token >= 0]] = False
        self.kept &= x > -np.inf
        if top_k := int(settings.get("top_k", 0)):
            self.kept &= x >= np.sort(x[self.kept])[::-1][:top_k][-1]
        if (top_p := settings.get("top_p", 1.0)) < 1:
            values = np.unique(x[self.kept])[::-1]
            masses = np.array([probability[self.kept & (x >= value)].sum() for value in values])
            self.kept &= x >= values[np.searchsorted(masses, top_p * masses[-1])]
        if min_p := settings.get("min_p", 0.0):
            self.kept &= below >= below[self.kept].max() + math.log(min_p)
        # relative to its own largest: what is kept may be next to nothing of the whole
        largest = self.logp[self.kept].max()
        self.log_kept_mass = largest + math.log(np.exp(self.logp[self.kept] - largest).sum())
        self.probability = np.where(self.kept, np.exp(self.logp - self.log_kept_mass), 0.0)

    def assert_drawn(self, drawn: Drawn, row: int, uniform: float) -> None:
        """The numbers are right, and the random number is in the token's part of [0, 1)."""
        token = int(drawn.token_R[row])
        assert drawn.status_R[row] == 0
        assert self.kept[token]
        assert drawn.logp_R[row].item() == pytest.approx(self.logp[token], rel=2e-6, abs=2e-6)
        assert drawn.entropy_R[row].item() == pytest.approx(self.entropy, rel=2e-6, abs=3e-6)
        assert drawn.log_kept_mass_R[row].item() == pytest.approx(self.log_kept_mass, rel=2e-6, abs=2e-6)
        end = self.probability[: token + 1].sum()
        assert end - self.probability[token] - 1e-6 <= uniform <= end + 1e-6
