"""[cold_start] and [rejection]: the stages that make supervised data of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1fast.config_option import PAPER, option


@dataclass(frozen=True, kw_only=True)
class ColdStartConfig:
    """[cold_start]: samples of R1-Zero, kept when correct and readable, rewritten into the readable pattern."""

    prompts: int = option(4096, "prompts sampled", unit="prompts", need=">= 1", source=f'{PAPER}: "thousands"')
    samples_per_prompt: int = option(4, "samples of a prompt", unit="samples/prompt", need=">= 1", source="not stated")
    temperature: float = option(1.0, "sampling temperature", need="> 0", source=PAPER)
    max_tokens: int = option(32_768, "completion limit", unit="tokens", need=">= 1", source=PAPER)
    max_per_prompt: int = option(1, "kept samples of a prompt, at most", unit="samples", need=">= 1")
    max_kept: int = option(8192, "kept samples, at most", unit="samples", need=">= 1")
    min_language: float = option(0.0, "least share of the question's language in a chain; 0: any", need=">= 0 <= 1")
    rewrite: Literal["source", "model", "endpoint"] = option(
        "source",
        "who rewrites: source (tiny's lexicon; other sources leave chains as they are and add a summary), model (the "
        "base model in its own template), endpoint (the server of [judge])",
    )
    rewrite_prompt: str = option("", "file with the instruction ($question, $response, $language); empty: built in")


@dataclass(frozen=True, kw_only=True)
class RejectionConfig:
    """[rejection]: samples of RL 1 behind R1's filters, plus non-reasoning data, for SFT 2 and distillation."""

    prompts: int = option(150_000, "prompts sampled", unit="prompts", need=">= 1", source="not stated")
    samples_per_prompt: int = option(
        8, "samples of a prompt", unit="samples/prompt", need=">= 1", source='R1: "multiple"'
    )
    temperature: float = option(1.0, "sampling temperature", need="> 0", source="not stated")
    max_tokens: int = option(32_768, "completion limit", unit="tokens", need=">= 1", source=PAPER)
    max_per_prompt: int = option(
        4, "kept samples of a prompt, at most", unit="samples", need=">= 1", source="not stated"
    )
    min_language: float = option(0.999, "least share of the question's language in a chain; 0: any", need=">= 0 <= 1")
    max_paragraph_tokens: int = option(
        2048,
        "longest paragraph of a chain; 0: any",
        unit="tokens",
        need=">= 0",
        source=f"{PAPER} drops long paragraphs",
    )
    max_chain_tokens: int = option(0, "longest chain; 0: any", unit="tokens", need=">= 0", source="not stated")
    drop_code_blocks: bool = option(True, "drop chains with code blocks", source=PAPER)
    min_grade: float = option(
        0.0, "least grade, in [0, 1], that the judge of [judge] gives the summary; 0: not asked", need=">= 0 <= 1"
    )
    general_share: float = option(
        0.25, "non-reasoning share of the set that it writes", need=">= 0 < 1", source=f"{PAPER}: 200k of 800k"
    )
