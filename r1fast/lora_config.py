"""[lora]: low-rank adapters in place of all weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from r1fast.config_option import option

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """[lora]: RL and SFT stages train adapters, W + scale B A (Hu et al., LoRA), by peft; the weights W stay."""

    rank: int = option(0, "rank of B A; 0: all weights are trained", need=">= 0")
    alpha: float = option(32.0, "scale of B A: alpha / rank", need="> 0")
    rank_stabilised: bool = option(False, "alpha / sqrt(rank) instead (Kalajdzievski, rsLoRA)")
    dropout: float = option(
        0.0, "must be 0: completions would come from another policy than the trained", need=">= 0 < 1"
    )
    targets: tuple[str, ...] = option(
        (ALL_LINEAR,), "names of the layers that get adapters, such as q_proj, v_proj; all-linear: all but the head"
    )

    def adapts(self, name: str) -> bool:
        """Whether the linear layer of this dotted name, which is not the head, gets an adapter."""
        return any(target == ALL_LINEAR or f".{name}".endswith(f".{target}") for target in self.targets)

    def num_params(self, layers: Mapping[str, tuple[int, int]]) -> int:
        """Numbers of the adapters on a model whose linear layers have these features in and out."""
        return self.rank * sum(sum(features) for name, features in layers.items() if self.adapts(name))
