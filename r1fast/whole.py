"""What a parameter is as a whole, also where ZeRO 3 has left this process a part of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def whole_shape(parameter: Any) -> torch.Size:
    """The shape of all of it."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def num_parameters(module: nn.Module) -> int:
    """Numbers in all parameters; shared ones count once."""
    return sum(math.prod(whole_shape(parameter)) for parameter in module.parameters())
