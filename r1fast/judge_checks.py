"""What must hold where a language model grades or rewrites; nothing is asked yet."""

from __future__ import annotations

from r1fast.config import Config, ConfigError


def check_judge(config: Config) -> None:
    """ConfigError for a judge that cannot grade: votes, address, key, templates."""
    from r1fast.rewards.judge import Judge

    if config.judge.votes % 2:
        raise ConfigError(f"judge.votes = {config.judge.votes} must be even: half of them with swapped positions")
    Judge(config.judge)  # which checks address, key and templates, and asks nothing yet


def check_rewriting(config: Config) -> None:
    """ConfigError for a rewriting that cannot work: who is asked, and what."""
    from r1fast.rewards.endpoint import Endpoint
    from r1fast.rewrite_instruction import read_instruction

    options = config.cold_start
    if options.rewrite == "source" and options.rewrite_prompt:
        raise ConfigError(
            "cold_start.rewrite_prompt is set but cold_start.rewrite = 'source' asks no model: leave it out"
        )
    if options.rewrite == "model" and config.data.source == "tiny":
        raise ConfigError('cold_start.rewrite = "model" needs a model that follows instructions, tiny\'s do not')
    if options.rewrite == "model" and config.rollout.backend == "vllm":
        raise ConfigError(
            'cold_start.rewrite = "model" would need a second vLLM engine beside the first: set '
            'stages.cold_start.rollout.backend = "paged", or serve the model and set rewrite = "endpoint"'
        )
    if options.rewrite == "endpoint" and not (config.judge.endpoint and config.judge.model):
        raise ConfigError(
            f"cold_start.rewrite = 'endpoint' asks the server of [judge], and judge.endpoint = "
            f"{config.judge.endpoint!r} and judge.model = {config.judge.model!r}: give both"
        )
    if options.rewrite != "source":
        read_instruction(options.rewrite_prompt)
    if options.rewrite == "endpoint":
        Endpoint(config.judge)  # which checks address and key, and asks nothing yet
