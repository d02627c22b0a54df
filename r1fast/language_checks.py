"""Whether rewards and filters that tell languages apart know those of the prompts."""

from __future__ import annotations

from collections.abc import Iterable

from r1fast.config import RL_STAGES, Config, ConfigError
from r1fast.records import Prompt
from r1fast.rewards.language import SUPPORTED

FILTERING = ("cold_start", "rejection")  # stages that drop chains by the share of the question's language
_REWARDS = ("language", "language_any")


def check_languages(config: Config, stage: str, prompts: Iterable[Prompt]) -> None:
    """Of what stage `stage` samples; `config` is its view.

    Raises:
        ConfigError: for a prompt in another language than `SUPPORTED`, with value, constraint and fix.
    """
    for prompt in prompts:
        if prompt.language in SUPPORTED:
            continue
        asked, known = f"prompt {prompt.id!r} is in language {prompt.language!r}, and ", ", ".join(SUPPORTED)
        if stage in RL_STAGES:
            for name in _REWARDS:
                if name in config.rewards.get(prompt.kind, {}):
                    raise ConfigError(
                        f"{asked}the reward rewards.{prompt.kind}.{name} knows only {known}; drop that reward (not "
                        "only its weight), or such prompts"
                    )
        if stage in FILTERING and (least := getattr(config, stage).min_language):
            raise ConfigError(
                f"{asked}{stage}.min_language = {least} counts words of {known} only; set it to 0, or drop such prompts"
            )
