"""Linear layers on a CPU with their weights in oneDNN's own order, for as long as the weights do not change.

A product with a plain weight reorders it every time, a third of the time at 32 rows. In bf16 the results are bitwise
the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TYPICAL_ROWS = 64  # what oneDNN chooses the order for


@contextmanager
def packed_linears(module: nn.Module, leave_out: nn.Module | None = None) -> Iterator[None]:
    """Within, the bf16 `nn.Linear`s of a module on a CPU run on packed copies: as much memory again.

    Weights must not change meanwhile, and nothing in it is differentiable. Where oneDNN is absent nothing is packed.
    """
    packed: list[nn.Linear] = []
    try:
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            for layer in module.modules():
                if type(layer) is nn.Linear and layer is not leave_out and _pays(layer.weight):
                    _pack(layer)
                    packed.append(layer)
        yield
    finally:
        for layer in packed:
            del vars(layer)["forward"]


def _pays(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def _pack(layer: nn.Linear) -> None:
    weight, bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), TYPICAL_ROWS), layer.bias

    def forward(hidden: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
        return product

    vars(layer)["forward"] = forward  # in front of the class's
