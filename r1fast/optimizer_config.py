"""[optimizer]: whose AdamW, the micro-batch, and what leaves a GPU's memory when."""

# ruff: noqa: RUF009 -- `option` returns a dataclass field

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1fast.config_option import option
from r1fast.schedule import Schedule

OptimizerName = Literal["adamw", "deepspeed_fused", "deepspeed_cpu", "apex", "adamw_8bit"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """[optimizer]: AdamW with float32 masters, and the micro-batch."""

    name: OptimizerName = option(
        "adamw",
        "adamw: torch's, fused; deepspeed_fused: FusedAdam (GPU); deepspeed_cpu: CPUAdam, where masters are in the "
        "host's memory; apex: NVIDIA's FusedAdam (GPU); adamw_8bit: bitsandbytes', a quarter of the moments' memory",
    )
    beta1: float = option(0.9, "AdamW beta1", need=">= 0 < 1", source="not stated")
    beta2: float = option(0.95, "AdamW beta2", need=">= 0 < 1", source="not stated")
    eps: float = option(1e-8, "AdamW epsilon", need="> 0", source="not stated")
    weight_decay: Schedule = option(0.0, "decoupled weight decay", need=">= 0", source="not stated")
    max_grad_norm: Schedule = option(1.0, "gradient clipping by global norm; 0: off", need=">= 0", source="not stated")
    micro_batch_tokens: int = option(
        16_384, "token budget of a micro-batch; a longer sequence goes alone", unit="tokens", need=">= 1"
    )
    gradient_checkpointing: bool = option(False, "recompute activations in backward: less memory, a third more time")
    offload_activations: bool = option(
        False, "GPU: what backward needs of the layers waits in the host's memory; best with gradient_checkpointing"
    )
    offload_while_generating: bool = option(
        False, "GPU: masters and moments wait in the host's memory while completions are generated"
    )
    offload_idle_models: bool = option(
        False, "GPU: the reference and the reward models are in the host's memory but while they score"
    )
