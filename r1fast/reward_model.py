"""Reward models: a policy's backbone with a scalar head, as a Hugging Face sequence classifier.

Helpful: pairwise Bradley-Terry, -log sigmoid(score(chosen) - score(rejected)), on the final summary only.
Safe: pointwise, binary cross-entropy of safe against unsafe, on the whole response.
"""

# N sequences, T packed tokens, D model

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from r1fast.activations import enable_checkpointing, kept_activations
from r1fast.attention import ATTENTION_NAME, PackedContext, register_attention
from r1fast.idle import Idle
from r1fast.packing import position_ids
from r1fast.policy import Policy, without_load_report
from r1fast.records import Prompt
from r1fast.rewards.response import parse_response
from r1fast.templates import write_answered

BATCH_TOKENS = 32768  # of responses that are scored together


class RewardModel:
    """`module` maps packed responses to one number each, read at their last token."""

    def __init__(
        self, module: Any, tokenizer: PreTrainedTokenizerBase, eos_token_id: int, device: torch.device
    ) -> None:
        self.module, self.tokenizer, self.eos_token_id, self.device = module, tokenizer, eos_token_id, device
        self._idle: Idle | None = None
        self._recompute = self._offload = False
        self.beat: Callable[[str], object] = len
        """Is shown the progress of `score_responses`."""

    @classmethod
    def from_policy(cls, policy: Policy, directory: Path) -> RewardModel:
        """Start from a policy's checkpoint directory: its backbone, and a head of zeros."""
        model = cls._load(directory, policy, torch.float32, new={"score.weight"})
        with torch.no_grad():
            model.module.score.weight.zero_()
        return model

    @classmethod
    def load(cls, directory: Path, policy: Policy) -> RewardModel:
        """A trained reward model; it reads prompts in the template of `policy`, whose vocabulary it shares."""
        return cls._load(directory, policy, policy.dtype, new=set())

    @classmethod
    def _load(cls, directory: Path, policy: Policy, dtype: torch.dtype, *, new: set[str]) -> RewardModel:
        """`new`: the weights that may be missing from the files."""
        register_attention()
        auto_model: Any = AutoModelForSequenceClassification
        with without_load_report():
            module, found = auto_model.from_pretrained(
                directory,
                num_labels=1,
                attn_implementation=ATTENTION_NAME,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
            )
        missing = sorted(set(found["missing_keys"]) - new)
        if missing:
            raise ValueError(
                f"{directory} lacks {len(missing)} of the reward model's weights ({', '.join(missing[:3])}): it would "
                "score at random; train it again or copy it whole"
            )
        return cls(module.to(policy.device).eval(), policy.tokenizer, policy.eos_token_ids[0], policy.device)

    def keep_activations(self, *, recompute: bool, offload: bool) -> None:
        """What `score` keeps for backward, from now on: as a `Policy` with checkpointing, with offloading."""
        if recompute:
            enable_checkpointing(self.module)
        self._recompute, self._offload = recompute, offload

    def idle(self) -> None:
        """From now on the weights, which are frozen, are on the device only while `score_responses` runs."""
        self._idle = Idle(self.module.requires_grad_(False), self.device)

    def save(self, directory: Path) -> None:
        """Write safetensors and tokenizer; loads with AutoModelForSequenceClassification."""
        self.module.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def encode(self, prompts: Seq[Prompt], responses: Seq[str]) -> list[list[int]]:
        """Token ids of prompt, response and end token, one list a response, which is whole, or a summary alone.

        Where the template opens the chain, a summary stands behind an empty one (`r1fast.templates.continuation`).
        """
        answered = write_answered(prompts, responses, self.tokenizer)
        return [[*prompt_ids, *own, self.eos_token_id] for prompt_ids, own in answered]

    def score(self, token_ids: Seq[Seq[int]]) -> Tensor:
        """fp32 [N]: the head at each sequence's last token; differentiable."""
        lengths = torch.tensor([len(ids) for ids in token_ids], dtype=torch.int32)
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        packed = torch.tensor([token for ids in token_ids for token in ids], device=self.device)
        with kept_activations(self.module, self.device, recompute=self._recompute, offload=self._offload):
            hidden_TD = self.module.base_model(
                input_ids=packed[None],
                position_ids=position_ids(cu_seqlens).to(self.device)[None],
                attention_context=PackedContext(cu_seqlens, self.device),
                use_cache=False,
            ).last_hidden_state[0]
        last = (cu_seqlens[1:].long() - 1).to(self.device)
        scores_N: Tensor = self.module.score(hidden_TD[last])[:, 0].float()
        return scores_N

    @torch.no_grad()
    def score_responses(self, prompts: Seq[Prompt], responses: Seq[str], *, rows: int = 256) -> list[float]:
        """Scores of many responses, shortest first; `rows` at a time, or fewer that are `BATCH_TOKENS` together."""
        if not responses:
            return []
        ids = self.encode(prompts, responses)
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        scores = [0.0] * len(ids)
        with self._idle.awake() if self._idle else nullcontext():
            for chosen in _batches(order, list(map(len, ids)), rows):
                for number, value in zip(chosen, self.score([ids[n] for n in chosen]).tolist(), strict=True):
                    scores[number] = value
                self.beat("responses scored")
        return scores


def _batches(order: Seq[int], lengths: Seq[int], rows: int) -> Iterator[list[int]]:
    batch: list[int] = []
    tokens = 0
    for number in order:
        if batch and (len(batch) == rows or tokens + lengths[number] > BATCH_TOKENS):
            yield batch
            batch, tokens = [], 0
        batch.append(number)
        tokens += lengths[number]
    if batch:
        yield batch


def summary_of(text: str) -> str:
    """What a reader sees: the response without its chain of thought."""
    return parse_response(text).summary.strip()


def pairwise_loss(chosen_N: Tensor, rejected_N: Tensor) -> Tensor:
    """Bradley-Terry: sum of -log sigmoid(chosen - rejected)."""
    return F.softplus(rejected_N - chosen_N).sum()


def pointwise_loss(score_N: Tensor, safe_N: Tensor) -> Tensor:
    """Sum of the binary cross-entropies of sigmoid(score) against `safe` (1 or 0)."""
    return F.binary_cross_entropy_with_logits(score_N, safe_N, reduction="sum")
