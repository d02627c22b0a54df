"""Where the general data are: what only models can judge, and what teaches them to."""

from __future__ import annotations

from dataclasses import dataclass

from r1fast.config_option import option


@dataclass(frozen=True, kw_only=True)
class GeneralConfig:
    """[general]: data of files and reasoning-gym beside verifiable prompts; named as data.file. tiny has its own."""

    prompts: str = option("", 'RL 2: rows of "prompt", and "kind": general, or harmful where the answer is to refuse')
    examples: str = option("", "SFT 2: rows of messages, the non-reasoning share of rejection.general_share")
    preferences: str = option(
        "", 'helpful reward model: rows of "prompt", "chosen" and "rejected"; or ultrafeedback, of the hub'
    )
    safety: str = option(
        "", 'safe reward model: rows of "prompt", "response" and "safe" (or "is_safe"); or beavertails, of the hub'
    )
