"""The engines of the optimizer step that a recipe can choose between: `distributed.engine`."""

from __future__ import annotations

from r1fast.config import Config
from r1fast.distributed import Ranks
from r1fast.policy import Policy
from r1fast.trainer import Logprobs, Trainer
from r1fast.zero_trainer import ZeroTrainer

AnyTrainer = Trainer | ZeroTrainer


def make_trainer(policy: Policy, config: Config, ranks: Ranks, logprobs: Logprobs | None = None) -> AnyTrainer:
    """The one that a stage's configuration asks for; as `Trainer` (collective).

    With processes in sequence groups `logprobs` is to be `SequenceLogprobs`. With DeepSpeed the policy's parameters
    become its own: copy the policy before.
    """
    if config.distributed.engine == "torch":
        return Trainer(policy, config.optimizer, ranks=ranks, logprobs=logprobs)
    return ZeroTrainer(policy, config.optimizer, config.distributed, ranks=ranks, logprobs=logprobs)
