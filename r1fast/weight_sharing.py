"""Which stages share the weights of their model out, so that no process holds them whole."""

from __future__ import annotations

from r1fast.config import STAGES, Config


def shares_weights(config: Config, stage: str) -> bool:
    """Whether no process holds a stage's weights whole: ZeRO 3, and nothing but vLLM samples, if at all."""
    view, kind = config.for_stage(stage), STAGES[stage]
    if view.distributed.engine != "deepspeed" or view.distributed.zero_stage != 3 or kind == "reward_model":
        return False
    return view.rollout.backend == "vllm" or (kind == "sft" and not view.sft.dev_every_steps)
