"""What must hold between the options of [rollout] and a stage."""

from __future__ import annotations

from r1fast.config import RL_STAGES, Config, ConfigError


def check_rollout(config: Config, stage: str) -> None:
    """Refuse what an engine cannot do; ConfigError with value, constraint and fix."""
    rollout = config.rollout
    if rollout.tensor_parallel > 1 and rollout.backend != "vllm":
        raise ConfigError(
            f"stages.{stage}.rollout.tensor_parallel = {rollout.tensor_parallel} is vLLM's, and rollout.backend is "
            f"{rollout.backend!r}: use 'vllm', or set it to 1"
        )
    for key, rows in (("rows", rollout.rows), ("draft_rows", rollout.draft_rows)):
        if rows % 16:
            raise ConfigError(
                f"stages.{stage}.rollout.{key} = {rows} must be a multiple of 16 (samples depend on the batch "
                f"otherwise); give {rows // 16 * 16 + 16}"
            )
    if rollout.draft_tokens and rollout.backend != "paged":
        raise ConfigError(
            f"stages.{stage}.rollout.draft_tokens = {rollout.draft_tokens} is of the paged engine, and rollout.backend "
            f"is {rollout.backend!r}; use 'paged', or set draft_tokens to 0"
        )
    if stage in RL_STAGES and config.rl.strict and rollout.backend != "paged":
        raise ConfigError(
            f"stages.{stage}.strict = true makes the paged engine's log-probs the trainer's, and rollout.backend is "
            f"{rollout.backend!r}; use 'paged', or set strict to false"
        )


def check_teams(tensor_parallel: int, world_size: int) -> None:
    """ConfigError where the processes are no whole number of teams."""
    if world_size % tensor_parallel:
        raise ConfigError(
            f"rollout.tensor_parallel = {tensor_parallel} does not divide {world_size} processes; start a multiple of "
            f"{tensor_parallel}, or set it to 1"
        )
