"""[distributed]: who holds what when there are several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1fast.config_option import option


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """[distributed]: the engine of the optimizer step, and what its processes share out."""

    engine: Literal["torch", "deepspeed"] = option(
        "torch", "torch: every process holds masters and moments whole; deepspeed: ZeRO shares them out"
    )
    zero_stage: int = option(
        2,
        "deepspeed: shared out are 0: nothing (fp32 alone), 1: masters and moments, 2: gradients too, 3: trained "
        "parameters too, and where nothing but vLLM samples no process holds weights whole",
        need=">= 0 <= 3",
    )
    offload_optimizer: Literal["none", "cpu", "nvme"] = option("none", "deepspeed: where masters and moments live")
    offload_parameters: Literal["none", "cpu", "nvme"] = option("none", "ZeRO 3: where trained parameters live")
    sequence_parallel: int = option(
        1,
        "neighbouring processes that share every micro-batch's tokens, for 32k tokens and more (Ulysses); with any "
        "engine; the micro-batch's budget is of all of them together",
        need=">= 1",
    )
    nvme_path: str = option("", "directory on a local disk, for nvme")
    deepspeed_config: str = option("", "FILE.json of further DeepSpeed options; one that the recipe sets is an error")

    def shares_moments(self, num_processes: int) -> bool:
        """Whether each of so many processes holds only its share of AdamW's moments."""
        return self.engine == "deepspeed" and self.zero_stage > 0 and num_processes > 1
