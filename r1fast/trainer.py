"""One optimizer step on packed micro-batches: fp32 masters, gradients in fp32, one global denominator."""

# N sequences, C packed completion tokens, D model, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from r1fast.bad_step import require_good
from r1fast.config import OptimizerConfig
from r1fast.distributed import Ranks, merge
from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss
from r1fast.kernels.linear_grpo import linear_grpo_loss
from r1fast.kernels.linear_logprob import linear_logprob
from r1fast.offload import Offload
from r1fast.optimizers import adamw_groups, check_form, load_saved_form, make_optimizer, saved_form, state_tensors
from r1fast.policy import Policy
from r1fast.records import Batch, Sequence
from r1fast.schedule import at

Logprobs = Callable[[Policy, Batch, float], tuple[Tensor, Tensor]]
"""Policy, batch, temperature -> log-probs and entropies of the completion tokens, fp32 [C], differentiable."""


class Trainer:
    """AdamW on fp32 masters of a policy's trainable parameters.

    An fp32 parameter is its own master; any other has a master copy, which AdamW updates and which is rounded into the
    parameter after each step (bf16 alone does not learn at R1's rates: most updates are below half a unit in the last
    place). `weight_decay` acts on matrices, not on norms and biases. Ranks start from rank 0's weights. `logprobs`: in
    place of `linear_grpo_loss`, which forms log-probs, loss and their gradients at once.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerConfig,
        *,
        ranks: Ranks | None = None,
        logprobs: Logprobs | None = None,
    ) -> None:
        self.policy, self.logprobs = policy, logprobs
        self.config = optimizer
        self.ranks = ranks or Ranks()
        self.num_steps = 0
        named = [(name, p) for name, p in policy.module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the policy has no trainable parameter; a copy() is frozen, train the original")
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        for parameter in self.parameters:
            self.ranks.broadcast_(parameter.data)
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.parameters]
        self.optimizer = make_optimizer(adamw_groups(self.masters), optimizer)
        self._offload = Offload(policy.device)

    def step(
        self,
        batches: list[Batch],
        *,
        loss: PolicyLoss,
        denominator: float,
        lr: float,
        temperature: float = 1.0,
        old_logp: list[Tensor] | None = None,
        ref_logp: list[Tensor] | None = None,
        check: Callable[[dict[str, float]], None] | None = None,
        most_norm: float = math.inf,
    ) -> dict[str, float]:
        """Accumulate the gradient of all ranks' micro-batches, clip it, update; `policy.version` grows by one.

        `denominator`: global, from `global_denominator`; so the gradient depends neither on micro-batches nor on
        ranks. `old_logp`, `ref_logp`: per batch fp32 [C], from `score`; None as in `linear_grpo_loss`. A rank without
        batches calls it too. `check` sees the sums before anything is updated, and may raise. Returns sums reduced over
        ranks, named by suffix: those of the loss function, `loss_sum` and `grad_norm_sum` (before clipping), each with
        a `_count` of 1, and `packed_tokens_count` (prompts included). Raises ValueError for bad arguments and
        BadStep, before anything is updated, for a loss or a gradient that is not finite or a norm above `most_norm`.
        """
        olds, refs = check_step(batches, denominator, lr, old_logp, ref_logp)
        self._offload.bring_back()
        parts: list[dict[str, Any]] = [{"loss_sum": 0.0, "packed_tokens_count": 0.0}]
        with self._gradients() as gradient:
            for batch, old, ref in zip(batches, olds, refs, strict=True):
                value, metrics = micro_batch_loss(
                    self.policy,
                    batch,
                    old,
                    ref,
                    options=loss,
                    denominator=denominator,
                    temperature=temperature,
                    logprobs=self.logprobs,
                )
                if value.requires_grad:
                    value.backward()  # type: ignore[no-untyped-call]
                # the value is over the global denominator already: its sum is the step's loss, its count 1
                tokens = len(batch.token_ids) if len(batch.targets) else 0  # else it was not run
                parts.append({**metrics, "loss_sum": value.detach(), "packed_tokens_count": tokens})
                parts[-1].pop("loss_count", None)
                self.ranks.pulse.beat("micro-batch")
            self.ranks.all_reduce_(gradient)
            if self.ranks.sequence_place:
                del parts[1:]  # the figures of a share count once
            sums = {**self.ranks.reduce(merge(to_floats(parts))), "loss_count": 1.0}
            if check is not None:
                check(sums)
            grad_norm = float(torch.linalg.vector_norm(gradient))
            counters = {"num_steps": self.num_steps, "version": self.policy.version}
            require_good(sums, grad_norm, **counters, most_norm=most_norm)
            self._update(gradient, grad_norm, lr)
        return {**sums, "grad_norm_sum": grad_norm, "grad_norm_count": 1.0}

    def release(self) -> int:
        """Move masters and moments from the GPU to the host until the next step; bytes. What PyTorch cached is free."""
        self._offload.bring_back()
        masters = [master for p, master in zip(self.parameters, self.masters, strict=True) if master is not p]
        self._offload.send([*masters, *state_tensors(self.optimizer)])
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._offload.num_bytes

    def state_dict(self) -> dict[str, Any]:
        """Masters, moments and counters; the tensors are the live ones. Loads with `weights_only`."""
        return {
            "names": list(self.names),
            "masters": [master.detach() for master in self.masters],
            "optimizer": saved_form(self.optimizer, self.config, self.num_steps),
            "num_steps": self.num_steps,
            "version": self.policy.version,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue bitwise from `state_dict()` of the same model, on any number of ranks; updates the policy too."""
        if state["names"] != self.names:
            different = sorted(set(state["names"]) ^ set(self.names))[:4]
            raise ValueError(f"the saved state is of another model, parameters differ: {different}...")
        check_form(self.config.name, state["optimizer"])
        self._offload.bring_back()
        for master, saved in zip(self.masters, state["masters"], strict=True):
            if master.shape != saved.shape:
                raise ValueError(f"the saved state has {list(saved.shape)} where the model has {list(master.shape)}")
            master.copy_(saved)
        load_saved_form(self.optimizer, self.config, state["optimizer"], state["num_steps"])
        self.num_steps, self.policy.version = state["num_steps"], state["version"]
        self._round_masters()

    @contextmanager
    def _gradients(self) -> Iterator[Tensor]:
        """One flat fp32 gradient (so that ranks exchange it in one call), into which every backward accumulates.

        The masters' `.grad` are views of it. It exists during the step only: the rollout needs the memory.
        """
        sizes = [master.numel() for master in self.masters]
        flat = torch.zeros(sum(sizes), dtype=torch.float32, device=self.policy.device)
        hooks = []
        for parameter, master, part in zip(self.parameters, self.masters, torch.split(flat, sizes), strict=True):
            parameter.grad = None
            master.grad = part.view_as(master)
            if master is not parameter:
                register: Any = parameter.register_post_accumulate_grad_hook
                hooks.append(register(_Accumulate(master.grad)))
        try:
            yield flat
        finally:
            for hook in hooks:
                hook.remove()
            for tensor in (*self.parameters, *self.masters):
                tensor.grad = None

    def _update(self, gradient: Tensor, grad_norm: float, lr: float) -> None:
        self.ranks.pulse.safe.withdraw()
        max_grad_norm = at(self.config.max_grad_norm, self.num_steps)
        if 0 < max_grad_norm < grad_norm:
            gradient.mul_(max_grad_norm / grad_norm)
        weight_decay = at(self.config.weight_decay, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["params"][0].dim() >= 2 else 0.0
        self.optimizer.step()
        self._round_masters()
        self.num_steps += 1
        self.policy.version += 1

    @torch.no_grad()
    def _round_masters(self) -> None:
        pairs = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        if pairs:
            torch._foreach_copy_([p for p, _ in pairs], [m for _, m in pairs])


class _Accumulate:
    """Hook: add a micro-batch's gradient to the fp32 sum as soon as it is there, and drop it."""

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.total.add_(parameter.grad)
            parameter.grad = None


def micro_batch_loss(
    policy: Policy,
    batch: Batch,
    old: Tensor | None,
    ref: Tensor | None,
    *,
    options: PolicyLoss,
    denominator: float,
    temperature: float,
    logprobs: Logprobs | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """The loss of a micro-batch over the global denominator and its metrics; 0, without a gradient, if it is empty."""
    device = policy.device
    if not len(batch.targets):
        return torch.zeros((), device=device), {}
    tokens: dict[str, Any] = {
        "old_logp_T": _to(old, device),
        "ref_logp_T": _to(ref, device),
        "rollout_logp_T": _to(batch.rollout_logp, device),
        "log_kept_mass_T": _to(batch.log_kept_mass, device),
    }
    advantage_N = batch.advantage.to(device, non_blocking=True)
    cu_seqlens = batch.completion_cu_seqlens.to(device, non_blocking=True)
    if logprobs is not None:
        logp_C, entropy_C = logprobs(policy, batch, temperature)
        return grpo_loss(
            logp_C,
            advantage_N,
            cu_seqlens,
            **tokens,
            entropy_T=entropy_C,
            denominator=denominator,
            options=options,
        )
    hidden_CD = policy.hidden(batch).index_select(0, batch.predictor_index.to(device, non_blocking=True))
    result: tuple[Tensor, dict[str, Any]] = linear_grpo_loss(
        hidden_CD,
        policy.head_weight,
        batch.targets.to(device, non_blocking=True),
        advantage_N,
        cu_seqlens,
        **tokens,
        denominator=denominator,
        options=options,
        temperature=temperature,
    )
    return result


@torch.no_grad()
def score(
    policy: Policy,
    batches: list[Batch],
    *,
    temperature: float,
    logprobs: Logprobs | None = None,
    beat: Callable[[str], object] = len,
) -> list[Tensor]:
    """Log-probs of the completion tokens of each batch at `temperature`: fp32 [C] per batch, on the policy's device.

    `beat` is called before each. Collective where ZeRO 3 has shared the policy's weights out.
    """
    if policy.shards is not None:
        return policy.shards.score(batches, temperature=temperature, logprobs=logprobs, beat=beat)
    scores = []
    for batch in batches:
        beat("micro-batch to score")
        scores.append(score_batch(policy, batch, temperature=temperature, logprobs=logprobs))
    return scores


def score_batch(policy: Policy, batch: Batch, *, temperature: float, logprobs: Logprobs | None = None) -> Tensor:
    """Of one batch; gradients are recorded unless the caller turns them off."""
    if not len(batch.targets):
        return torch.zeros(0, device=policy.device)
    if logprobs is not None:
        return logprobs(policy, batch, temperature)[0]
    index, targets = (x.to(policy.device, non_blocking=True) for x in (batch.predictor_index, batch.targets))
    hidden_CD = policy.hidden(batch).index_select(0, index)
    return linear_logprob(hidden_CD, policy.head_weight, targets, temperature=temperature).logp


def global_denominator(
    aggregate: str,
    batches: list[Batch],
    ranks: Ranks,
    *,
    tokens_per_sequence: float | None = None,
    left_out: Seq[Sequence] = (),
) -> float:
    """The loss's denominator over all ranks (collective): sequences for `sequence_mean`, tokens for `token_mean`.

    For `constant` it is sequences x `tokens_per_sequence` (Dr. GRPO: the length limit), which must then be given.
    `left_out`: sequences of the mini-batch that are in no batch, because their gradient is zero, but count.
    """
    num_sequences = len(left_out)
    num_tokens = sum(len(sequence.token_ids) - sequence.num_prompt_tokens for sequence in left_out)
    if not ranks.sequence_place:  # others have the same batches
        num_sequences += sum(len(batch.advantage) for batch in batches)
        num_tokens += sum(len(batch.targets) for batch in batches)
    total = ranks.reduce({"sequences_count": num_sequences, "tokens_count": num_tokens})
    if aggregate == "sequence_mean":
        return total["sequences_count"]
    if aggregate == "token_mean":
        return total["tokens_count"]
    if aggregate == "constant" and tokens_per_sequence is not None:
        return total["sequences_count"] * tokens_per_sequence
    raise ValueError(
        f"loss.aggregate = {aggregate!r} must be sequence_mean, token_mean, or constant with tokens_per_sequence "
        f"(it is {tokens_per_sequence})"
    )


def check_step(
    batches: list[Batch],
    denominator: float,
    lr: float,
    old_logp: list[Tensor] | None,
    ref_logp: list[Tensor] | None,
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The old and reference log-probs of each batch; ValueError for arguments of a step that cannot be."""
    if not (denominator > 0 and math.isfinite(denominator) and lr >= 0 and math.isfinite(lr)):
        raise ValueError(f"denominator = {denominator} must be positive and lr = {lr} not negative, both finite")
    return _per_batch(old_logp, batches, "old_logp"), _per_batch(ref_logp, batches, "ref_logp")


def _per_batch(values: list[Tensor] | None, batches: list[Batch], name: str) -> list[Tensor | None]:
    if values is None:
        return [None] * len(batches)
    if len(values) != len(batches):
        raise ValueError(f"{name} has {len(values)} tensors for {len(batches)} batches; score the same batches")
    return list(values)


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)


def to_floats(parts: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Metrics as numbers, with one device-to-host copy for all micro-batches."""
    tensors = [value for part in parts for value in part.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack([t.detach().double() for t in tensors]).tolist() if tensors else [])
    return [{k: next(numbers) if isinstance(v, Tensor) else float(v) for k, v in part.items()} for part in parts]
