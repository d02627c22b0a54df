"""A fixed prompt whose log-probs an engine with weights of its own must share with the trainer after every push."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.records import Batch, Sequence
from r1fast.trainer import score

NUM_TOKENS = 64
# Mean |difference| that rounding explains. vLLM 0.32 on a CPU, SmolLM2-135M: 8e-6 in fp32, 0.08 in bf16, to which it
# rounds the logits, too.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
SEEN = 0.01  # of the tolerance: a mean change of the trainer's that must change some bit of the engine's


class WeightsDiffer(RuntimeError):
    """The engine does not compute with the trainer's weights."""


@dataclass
class Canary:
    """`token_ids`: drawn once from the vocabulary by a fixed seed; `tolerance`: of mean |log-prob difference|.

    `gap`: the last comparison's mean |log-prob difference| in nats.
    """

    policy: Policy
    token_ids: list[int]
    tolerance: float
    gap: float = 0.0
    _own: Tensor | None = None
    _theirs: Tensor | None = None

    @staticmethod
    def of(policy: Policy) -> Canary:
        """For a policy, in its dtype."""
        window = getattr(policy.module.config.get_text_config(), "max_position_embeddings", None) or NUM_TOKENS
        generator = torch.Generator().manual_seed(0)
        count = min(NUM_TOKENS, window - 1)
        token_ids = torch.randint(policy.num_vocab, (count,), generator=generator).tolist()
        return Canary(policy, token_ids, TOLERANCE[policy.dtype])

    def own(self) -> Tensor:
        """The trainer's log-prob of each token but the first at temperature 1: fp32 [NUM_TOKENS - 1], on the CPU."""
        return score(self.policy, [self._batch()], temperature=1.0)[0].cpu()

    def compare(self, theirs: Tensor) -> None:
        """Raise WeightsDiffer unless `theirs`, the engine's log-probs after a push, are the trainer's.

        Raises FloatingPointError where the trainer's own are not finite.

        Rounding hides small changes in the difference itself. So where the trainer's log-probs have moved since the
        last push while every bit of the engine's stayed, the push did not arrive, however small the difference.
        """
        own = self.own()
        if not bool(own.isfinite().all()):
            raise FloatingPointError(
                f"the policy's log-probs of the canary prompt are not finite (policy version {self.policy.version}): "
                "the weights have diverged; lower the learning rate, or continue from an earlier checkpoint"
            )
        before, self._own = self._own, own
        theirs_before, self._theirs = self._theirs, theirs
        self.gap = float((own - theirs).abs().mean())
        version = self.policy.version
        if not self.gap <= self.tolerance:  # NaN, too
            raise WeightsDiffer(
                f"after the push of policy version {version} the engine's log-probs of the canary prompt are not the "
                f"trainer's: mean {float(theirs.mean()):.6f} against {float(own.mean()):.6f} nats, mean |difference| "
                f"{self.gap:.3g}, at most {self.tolerance:g} ({_dtype(self.policy)}): the weights did not arrive, or "
                'the engine computes this model differently; use rollout.backend = "paged", or another version of '
                "the engine"
            )
        if before is None or theirs_before is None:
            return
        moved = float((own - before).abs().mean())
        if moved > SEEN * self.tolerance and torch.equal(theirs, theirs_before):
            raise WeightsDiffer(
                f"the push of policy version {version} did not arrive: the trainer's log-probs of the canary prompt "
                f"moved by {moved:.3g} nats on average (mean now {float(own.mean()):.6f}), the engine's by exactly 0 "
                f'(mean {float(theirs.mean()):.6f}); use rollout.backend = "paged", or another version of the engine'
            )

    def forget(self) -> None:
        """The next push is the first one of an engine that has started anew."""
        self._own = self._theirs = None

    def _batch(self) -> Batch:
        sequence = Sequence(token_ids=torch.tensor(self.token_ids), num_prompt_tokens=1)
        return pack([sequence], micro_batch_tokens=NUM_TOKENS)[0]


def _dtype(policy: Policy) -> str:
    return str(policy.dtype).removeprefix("torch.")
