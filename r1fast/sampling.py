"""How tokens are drawn: the settings of a sampler, and the key that a sample depends on alone.

The generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A sample's
key is (run seed, stage, visit, prompt id); its counter is (position, sample index, 0, 0). `r1fast.ops.sample` draws.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn, and the part of the random key that the caller chooses.

    `temperature` 0 is greedy (log-probs are then those at temperature 1). Then, in this order: `bad_token_ids` are
    never drawn; `top_k` largest logits are kept (0: all); of these, the largest that have `top_p` in (0, 1] of the
    mass; of these, the ones with at least `min_p` in [0, 1) of the largest one's probability. `max_tokens` per
    completion, the terminal token included; with fewer than `min_tokens` nothing ends it. Text with one of the strings
    of `stop` ends a completion, whose tokens are those up to it and whose text is what comes before it. `stage` and
    `visit`: a prompt that is visited again in a stage draws anew when `visit` differs.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int
    min_tokens: int = 0
    bad_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    stage: str
    visit: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be finite and >= 0, got {self.temperature}; 0 is greedy")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}; 1 cuts nothing")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}; 0 cuts nothing")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must be in [0, 1), got {self.min_p}; 0 cuts nothing")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"min_tokens must be 0 to max_tokens = {self.max_tokens}, got {self.min_tokens}")
        if any(not text for text in self.stop) or isinstance(self.stop, str):
            raise ValueError(f"stop must be a tuple of strings that are not empty, got {self.stop!r}")
        if any(token < 0 for token in self.bad_token_ids):
            raise ValueError(f"bad_token_ids must be token ids, got {self.bad_token_ids}")


def philox_key(seed: int, stage: str, visit: int, prompt_id: str) -> tuple[int, int]:
    """The 64-bit Philox key of a prompt's visit, as two 32-bit words; the same in every process and version."""
    text = f"{seed}\0{stage}\0{visit}\0{prompt_id}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
