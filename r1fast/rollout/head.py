"""Logits of a decode step, in fp32 whatever the model's dtype."""

# R rows, D model, V vocab

from __future__ import annotations

import torch
from torch import Tensor

from r1fast.ops.split_product import pays, split_product
from r1fast.policy import Policy


class Head:
    """The output head's weight as a CPU or a GPU computes fp32 logits from it; made anew when weights have changed."""

    def __init__(self, policy: Policy) -> None:
        self._weight_VD = policy.head_weight.detach()
        self.num_vocab = self._weight_VD.shape[0]
        self._splits = self._weight_VD.dtype == torch.bfloat16 and self._weight_VD.device.type == "cpu" and pays()
        if self._weight_VD.device.type == "cpu" and not self._splits:
            self._weight_VD = self._weight_VD.float()  # a CPU has no other product with fp32 results

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """fp32 [R, V], never rounded to a shorter dtype on the way."""
        if self._splits:
            shape = (hidden_RD.shape[0], self.num_vocab)
            high_RV, low_RV = (torch.empty(shape, dtype=torch.bfloat16) for _ in range(2))
            split_product(hidden_RD.contiguous(), self._weight_VD, high_RV, low_RV)
            return high_RV.float().add_(low_RV)
        if self._weight_VD.dtype == torch.float32:
            return hidden_RD.float() @ self._weight_VD.T
        return torch.mm(hidden_RD, self._weight_VD.T, out_dtype=torch.float32)
