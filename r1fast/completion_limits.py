"""How long the completions are that a stage draws, of which prompts and in which templates: all must fit the window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from r1fast.checks import STUDENT_STAGES, reads_dev
from r1fast.config import RL_STAGES, Config
from r1fast.context import ROWS
from r1fast.data.prompts import most_bytes
from r1fast.records import Prompt
from r1fast.schedule import values
from r1fast.source import Source, Split


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An option and its value, the most tokens of a completion; which prompts it is for: `split`, general or not."""

    key: str
    max_tokens: int
    split: Split
    general: bool = False

    def prompts(self, source: Source) -> Sequence[Prompt]:
        """All of them; of very many those of most bytes. A source may have none that are general."""
        return most_bytes((source.general_prompts if self.general else source.prompts)(self.split))


def completion_limits(config: Config, stage: str) -> Iterator[Limit]:
    """What a stage samples with; nothing of one that only trains."""
    view = config.for_stage(stage)
    if stage in RL_STAGES:
        key, most = f"stages.{stage}.max_tokens", int(max(values(view.rl.max_tokens)))
        yield Limit(key=key, max_tokens=most, split="train")
        if any(values(view.rl.general_prompts_per_step)):
            yield Limit(key=key, max_tokens=most, split="train", general=True)
    if stage in ("cold_start", "rejection"):
        yield Limit(key=f"{stage}.max_tokens", max_tokens=getattr(view, stage).max_tokens, split="train")
    key, most = "evaluation.max_tokens", view.evaluation.max_tokens
    if reads_dev(config, stage):
        yield Limit(key=key, max_tokens=most, split="dev")
    if stage == "evaluation":
        yield Limit(key=key, max_tokens=most, split="held_out")
        yield Limit(key=key, max_tokens=most, split="held_out", general=True)


def sampled_models(config: Config, stage: str, root: str) -> list[str]:
    """In whose templates a stage samples models that come from `root` (`base`, `student`): its own, or every row's."""
    if stage != "evaluation":
        return [stage]
    made = [origin for origin in ROWS.values() if origin in config.pipeline.stages and origin != "base"]
    return [root, *(origin for origin in made if (origin in STUDENT_STAGES) == (root == "student"))]
