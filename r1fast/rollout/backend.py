"""The engines that a recipe can choose between: `rollout.backend`."""

from __future__ import annotations

from r1fast.config import Config
from r1fast.distributed import Ranks
from r1fast.policy import Policy
from r1fast.rollout.engine import RolloutEngine
from r1fast.rollout.guesses import Tally
from r1fast.rollout.vllm_engine import VllmEngine

Engine = RolloutEngine | VllmEngine


def make_engine(policy: Policy, config: Config, ranks: Ranks | None = None) -> Engine:
    """The engine that a stage's configuration asks for; it shows its progress to the ranks' pulse.

    `ranks`: None for a process by itself, whatever the configuration says of teams.
    Raises ValueError where it is not installed.
    """
    engine = _make_engine(policy, config, ranks)
    engine.beat = (ranks or Ranks()).pulse.beat
    return engine


def _make_engine(policy: Policy, config: Config, ranks: Ranks | None) -> Engine:
    rollout, seed = config.rollout, config.run.seed
    if rollout.backend == "vllm":
        return VllmEngine(
            policy,
            rows=rollout.rows,
            seed=seed,
            threads=rollout.threads,
            ranks=ranks,
            tensor_parallel=rollout.tensor_parallel if ranks else 1,
        )
    return RolloutEngine(
        policy,
        rows=rollout.rows,
        seed=seed,
        threads=rollout.threads,
        cuda_graphs=rollout.cuda_graphs,
        draft_tokens=rollout.draft_tokens,
        draft_rows=rollout.draft_rows,
    )


def release(engine: Engine) -> None:
    """End what an engine runs beside the trainer, also in the middle of a call; ours has nothing of the kind."""
    if isinstance(engine, VllmEngine):
        engine.close()


def take_sums(engine: Engine) -> dict[str, float]:
    """What there is to log of an engine since the last time, by suffix.

    The canary's gap after the last push, of one with weights of its own; the share of guesses that came true, of one
    that guesses.
    """
    if isinstance(engine, VllmEngine):
        return {"canary_gap_max": engine.canary.gap}
    if not engine.draft_tokens:
        return {}
    tally, engine.tally = engine.tally, Tally()
    return {"draft_accepted_sum": tally.num_drawn, "draft_accepted_count": tally.num_guessed}
