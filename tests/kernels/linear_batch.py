"""A batch for the tests of `linear_grpo_loss`, and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.kernels.linear_logprob import linear_logprob_reference

LENGTHS = (4, 0, 6, 3)


def batch(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden, weight, bias = (x.to(dtype) for x in (normal(total, 6), normal(19, 6), normal(19)))
    targets = torch.randint(19, (total,), generator=generator)
    logp = linear_logprob_reference(hidden.double(), weight.double(), targets, bias_V=bias.double(), softcap=6.0).logp
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = {name: (logp + 0.3 * normal(total)).to(wide) for name in ("old_logp_T", "ref_logp_T", "rollout_logp_T")}
    return tokens | {
        "hidden_TD": hidden,
        "weight_VD": weight,
        "bias_V": bias,
        "targets_T": targets,
        "advantage_N": normal(len(LENGTHS)).to(wide),
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0),
        "mask_T": torch.rand(total, generator=generator) > 0.3,
        "temperature": 0.5 + torch.rand(total, generator=generator),
        "softcap": 6.0,
        "denominator": 3.0,
    }


def gradients(function: Any, arguments: dict[str, Any], options: PolicyLoss) -> tuple[Tensor, ...]:
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in ("hidden_TD", "weight_VD", "bias_V")}
    result = function(**{**arguments, **leaves}, options=options)
    loss = result[0] if isinstance(result, tuple) else result
    return loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))


class Watch(TorchDispatchMode):
    """Bytes of the largest tensor that any op returned, and the number of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        if isinstance(result, Tensor):
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result
