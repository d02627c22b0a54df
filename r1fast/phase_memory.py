"""Bytes that the phases of a stage hold on one process, by item: what every plan is made of.

Counted is what r1fast allocates: policy, reference and reward models are whole in every process that samples on its
own; ZeRO shares out what it shares out, vLLM over a team its weights and cache; adapters train few parameters; what
waits on the host is not on the GPU;
reward models are trained in float32, and of theirs ZeRO shares out the moments alone. On a GPU the sum is that of live
tensors, the most at one time. On a CPU it is resident memory: what the C library keeps of freed blocks, weights packed
for the rollout and the cache, which stays, count too. `python -m bench.plan_memory` compares both with measurements.
"""

# P parameters, T tokens of a micro-batch, L layers, D model, V vocabulary

from __future__ import annotations

import math
from dataclasses import dataclass

from r1fast.checks import TRAINED_REWARDS
from r1fast.config import RL_STAGES, STAGES, Config
from r1fast.model_size import ModelSize
from r1fast.schedule import values
from r1fast.weight_sharing import shares_weights

Items = tuple[tuple[str, int], ...]
"""Name -> bytes."""

PAGE_TOKENS = 64  # r1fast.ops.checks has it, too, and imports torch
FREE_SHARE = 0.5  # of free memory, most of a cache; r1fast.rollout.engine has it, too, and imports torch
LOSS_BYTES = {True: 600 << 20, False: 48 << 20}  # on a GPU, on a CPU: budget of linear_grpo_loss
SCORE_BYTES = {True: 256 << 20, False: 48 << 20}  # of linear_logprob
KEPT = 1.25  # on a CPU: blocks below 32 MiB that are freed stay with the process, in pieces
REMADE = 3  # on a CPU: layers' worth of a layer that is made again: what is kept lies between its freed blocks
RUNTIME_BYTES = 80 << 20  # on a CPU: tokenizer, and pages of libraries that are read when they are first used
BUCKET_NUMBERS = 5e8  # DeepSpeed's reduce_bucket_size
LIVE_NUMBERS = 1e9  # DeepSpeed's stage3_max_live_parameters
SUMMED_NUMBERS = 1 << 26  # of gradients in one call; r1fast.replicas has it, too, and imports torch
CACHES = ("KV cache", "vLLM's cache")  # as large as what is free lets them be
MOMENTARY = ("activations", "logits chunk", "packed weights", *CACHES)  # bounds; the other items are certain


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process runs. `compute_bytes`: of a number in the compute dtype; `packed_bytes`: of one of the weights
    that a CPU packs for the rollout, 0: the same.
    """

    on_gpu: bool
    compute_bytes: int
    num_processes: int = 1
    packed_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class PhaseMemory:
    """A stage's phases. `limit`: the longest completion; `rows`: most sequences of a decode batch."""

    config: Config  # as the stage sees it
    stage: str
    size: ModelSize
    place: Place
    prompt_tokens: int
    limit: int
    rows: int = 0

    def rollout(self) -> Items:
        """Of sampling, in a stage that trains or in one that does not."""
        trains = STAGES[self.stage] in ("rl", "sft")
        held = dict(self.held()) if trains else {"parameters": self._policy_bytes}
        if self.config.optimizer.offload_while_generating and self.place.on_gpu:
            held.pop("moments", None)
            held.pop("masters", None)
        items = [*held.items()]
        if self._models_idle and self.num_reward_models:  # they score one after the other, while others are drawn
            items.append(("reward models", self.copy_bytes))
        if self.config.rollout.backend == "vllm":
            items += self._vllm()
        else:
            if not self.place.on_gpu:  # products in the rollout read weights in another order
                packed = self.place.packed_bytes or self.place.compute_bytes
                items.append(("packed weights", self.size.num_params * packed))
            items.append(("KV cache", self.cache_bytes()))
        return (*items, ("logits chunk", self._kept(self.rows * self.size.vocab_size * 4)))

    def loaded(self) -> Items:
        """Of a model that a stage reads and samples a little from."""
        sampling = self._vllm()[:1] if self.config.rollout.backend == "vllm" else ()
        return (("parameters", self._policy_bytes), *sampling)

    def score(self) -> Items:
        """Of log-probs under the policy and the reference: a forward pass without gradients."""
        tokens = self.slice_tokens(self.micro_batch_tokens)
        chunk = min(SCORE_BYTES[self.place.on_gpu], tokens * self.size.vocab_size * 4)
        activations = tokens * self._layer_token_bytes() + 2 * self._hidden_bytes(tokens)
        work = (("activations", self._kept(activations)), ("logits chunk", self._kept(chunk)))
        awake = (("reference", self.copy_bytes),) if self._models_idle and self._copies_reference else ()
        if self.shares_weights:
            awake = (("gathered layers", self._gathered_bytes),)
        return (*self.held(), *awake, *work, *self._beside())

    def train(self) -> Items:
        """Of the optimizer step's micro-batches of `micro_batch_tokens` tokens."""
        if self.trains_reward_model:
            return self._train_reward_model()
        activations, chunk = self.activation_bytes(self.micro_batch_tokens), self.chunk_bytes(self.micro_batch_tokens)
        work = (("activations", activations), ("logits chunk", chunk))
        return (*self.held(), *self._gradients(), *work, *self._beside())

    def held(self) -> Items:
        """What a stage that trains holds in every phase."""
        params, zero, compute = self.size.num_params, self.config.distributed, self.place.compute_bytes
        trained = self.trained_params
        is_zero = zero.engine == "deepspeed" and zero.zero_stage > 0
        share = self.place.num_processes if is_zero else 1
        own = compute * (trained if self.has_adapters else 0)
        items = [("parameters", self.copy_bytes + own)]
        if self.shares_weights:
            items = [("parameters", self._policy_bytes)]
        elif is_zero and zero.zero_stage == 3:  # the policy that samples and scores is a copy of what is trained
            own = compute * params // share if zero.offload_parameters == "none" else 0
            items = [("parameters", own), ("rollout copy", self.copy_bytes)]
        if zero.offload_optimizer == "none":
            if is_zero or compute != 4:  # fp32 parameters are their own masters
                items.append(("masters", 4 * trained // share))
            items.append(("moments", self._moment_bytes * trained // share))
        if self.has_reference and not (self._models_idle and self._copies_reference):
            whole = self._policy_bytes  # where the policy's are
            items.append(("reference", whole if self._copies_reference else own))
        if self.num_reward_models and not self._models_idle:
            items.append(("reward models", self.num_reward_models * self.copy_bytes))
        return (*items, *self._on_host())

    def slice_tokens(self, tokens: int) -> int:
        """Of a micro-batch's tokens those of one process."""
        return math.ceil(tokens / self.sequence_parallel)

    def activation_bytes(self, tokens: int) -> int:
        """That forward keeps for backward, and the layer that backward is in where that is more than the loss's.

        `tokens`: of the micro-batch, as in `chunk_bytes`.
        """
        return self._activation_bytes(self.slice_tokens(tokens))

    def _activation_bytes(self, tokens: int) -> int:
        layers, work = self.size.num_layers, self._layer_token_bytes()
        if self.config.optimizer.gradient_checkpointing:
            saved = tokens * layers * self.size.hidden_size * self.compute_bytes
            work = tokens * (work + self._backward_token_bytes())  # made again, then differentiated
        else:
            saved = tokens * layers * work
            work = tokens * self._backward_token_bytes()
        if self.config.optimizer.offload_activations and self.place.on_gpu:  # one layer's are on the GPU at a time
            saved //= layers
        saved += 4 * self._hidden_bytes(tokens)  # the last norm's, and the completions' hidden states with gradient
        if not self.place.on_gpu:  # what the loss gives back is not used for it
            return self._kept(saved + work * (REMADE if self.config.optimizer.gradient_checkpointing else 1))
        waiting = self._head_params * self.place.compute_bytes  # the head's gradient
        if self.has_adapters or self.trains_reward_model:
            waiting = 0
        return int(saved + max(0, work + waiting - self._chunk_bytes(tokens)))

    def chunk_bytes(self, tokens: int) -> int:
        """What the fused head and loss hold at most: logits of a chunk of tokens, and the head's own gradient."""
        return self._chunk_bytes(self.slice_tokens(tokens))

    def _chunk_bytes(self, tokens: int) -> int:
        head, vocabulary, compute = self._head_params, self.size.vocab_size, self.place.compute_bytes
        if self.trains_reward_model:  # one score a sequence
            return 0
        if self.has_adapters:  # the head has no gradient
            return self._kept(min(LOSS_BYTES[self.place.on_gpu], tokens * vocabulary * (4 + compute)))
        if not self.place.on_gpu:
            # the weight's gradient in fp32 and for autograd; then, tied, with the embedding's, in the sum and for it
            chunk = min(LOSS_BYTES[False], tokens * vocabulary * 2 * compute)
            return self._kept(chunk) + 8 * head
        # fp32 logits of at most 2048 tokens and their 16-bit gradients: in the budget and the fp32 sum's place, or less
        most = min(LOSS_BYTES[True] + 4 * head, tokens * vocabulary * compute + min(tokens, 2048) * vocabulary * 4)
        return most + head * compute

    def cache_bytes(self) -> int:
        """Pages of `rows` samples that are all as long as they may be, and of a prompt for each."""
        return self.rows * self.row_bytes()

    def row_bytes(self) -> int:
        """Pages of one sample at its limit and of its prompt."""
        pages = math.ceil(self.prompt_tokens / PAGE_TOKENS) + math.ceil(self.limit / PAGE_TOKENS)
        return pages * PAGE_TOKENS * self.kv_token_bytes

    @property
    def kv_token_bytes(self) -> int:
        """That a token leaves in this process's cache; a team shares heads out, not what is one vector for all."""
        heads = 1 if self.size.latent else max(1, self.size.num_kv_heads)
        return self.size.kv_token_bytes(self.place.compute_bytes) // min(self.config.rollout.tensor_parallel, heads)

    @property
    def copy_bytes(self) -> int:
        """Of the weights in the compute dtype."""
        return self.size.num_params * self.place.compute_bytes

    @property
    def shares_weights(self) -> bool:
        """Whether no process holds the weights whole."""
        return shares_weights(self.config, self.stage)

    @property
    def compute_bytes(self) -> int:
        """Of a number in forward and backward."""
        return 4 if self.trains_reward_model else self.place.compute_bytes

    @property
    def trains_reward_model(self) -> bool:
        """Whether the stage trains a scalar head in the place of the vocabulary's."""
        return STAGES[self.stage] == "reward_model"

    @property
    def sequence_parallel(self) -> int:
        """Processes that share a micro-batch."""
        return 1 if self.trains_reward_model else self.config.distributed.sequence_parallel

    @property
    def micro_batch_tokens(self) -> int:
        """The budget, or one sequence of the limit, which is never split; a pair of summaries is no longer."""
        return max(self.config.optimizer.micro_batch_tokens, self.prompt_tokens + self.limit)

    @property
    def has_reference(self) -> bool:
        """Whether the stage keeps a reference: the loss's KL, whatever its coefficient."""
        return self.stage in RL_STAGES and self.config.loss.kl != "none"

    @property
    def has_adapters(self) -> bool:
        """Whether the stage trains adapters in the place of the weights."""
        return bool(self.config.lora.rank) and STAGES[self.stage] in ("rl", "sft")

    @property
    def trained_params(self) -> int:
        """Parameters that the optimizer updates."""
        if self.trains_reward_model:  # a head that is no embedding, too, is not loaded
            return self.size.num_params - self.size.looked_up_params + self.size.hidden_size
        lora = self.config.lora
        return self.size.adapter_params(lora.rank, lora.targets) if self.has_adapters else self.size.num_params

    @property
    def num_scored(self) -> int:
        """Forward passes without gradients of a trained token: reference, and the policy before several updates."""
        if self.stage not in RL_STAGES:
            return 0
        reference = self.has_reference and any(values(self.config.loss.kl_coef))
        return int(reference) + (self.config.rl.updates_per_rollout > 1)

    @property
    def num_reward_models(self) -> int:
        """That an RL stage loads."""
        if self.stage not in RL_STAGES:
            return 0
        return len(self.config.active_rewards().intersection(TRAINED_REWARDS))

    @property
    def _copies_reference(self) -> bool:
        return self.has_reference and not self.has_adapters

    @property
    def _models_idle(self) -> bool:
        return self.config.optimizer.offload_idle_models and self.place.on_gpu

    @property
    def _moment_bytes(self) -> int:
        """Of AdamW's moments, for each parameter."""
        return 2 if self.config.optimizer.name == "adamw_8bit" else 8

    def _train_reward_model(self) -> Items:
        """Weights that are their own masters and gradients are whole; of shared moments whole tensors are dealt out."""
        trained, num_processes = self.trained_params, self.place.num_processes
        updated = trained
        if self.config.distributed.shares_moments(num_processes):
            updated = max(math.ceil(trained / num_processes), self._head_params)  # the embedding is the largest
        items = [("parameters", 4 * trained), ("moments", self._moment_bytes * updated), ("gradients", 4 * trained)]
        if num_processes > 1:
            items.append(("buckets", 4 * min(SUMMED_NUMBERS, trained)))
        return (*items, *self._on_host(), ("activations", self.activation_bytes(self.micro_batch_tokens)))

    def _on_host(self) -> Items:
        """What a process on a CPU holds beside what every device does."""
        if self.place.on_gpu:
            return ()
        # auto copies only what there is room for
        copied = (("saved copy", 12 * self.trained_params),) if self.config.run.async_save == "on" else ()
        return (("runtime", RUNTIME_BYTES), *copied)

    def _gradients(self) -> Items:
        params, zero = self.trained_params, self.config.distributed
        if zero.engine == "torch" or zero.zero_stage <= 1:
            items = [("gradients", 4 * params)]
        else:
            items = [("gradients", 4 * params // self.place.num_processes)]
        if zero.engine == "deepspeed":
            wide = 4 if zero.zero_stage <= 1 else self.place.compute_bytes
            items.append(("buckets", int(min(BUCKET_NUMBERS, 2 * params) * wide)))
            if zero.zero_stage == 3:
                items.append(("gathered layers", self._gathered_bytes))
        return tuple(items)

    @property
    def _gathered_bytes(self) -> int:
        """Of ZeRO 3: layers that are gathered ahead, or the embedding, a layer and the head, which stays, if more."""
        size = self.size
        ends = self._head_params + size.looked_up_params
        largest = ends + (size.num_params - ends) // size.num_layers
        return int(min(max(LIVE_NUMBERS, largest), size.num_params) * self.place.compute_bytes)

    @property
    def _shared_bytes(self) -> int:
        """One process's share of the weights."""
        return self.copy_bytes // self.place.num_processes

    @property
    def _policy_bytes(self) -> int:
        """Of the policy that a stage samples from or trains, where it is on the device."""
        if not self.shares_weights:
            return self.copy_bytes
        return self._shared_bytes if self.config.distributed.offload_parameters == "none" else 0

    def _vllm(self) -> Items:
        """vLLM's own copy and cache, shared by a team."""
        team = self.config.rollout.tensor_parallel
        return (("vLLM's weights", self.copy_bytes // team), ("vLLM's cache", self.cache_bytes()))

    def _beside(self) -> Items:
        """What the rollout leaves while the trainer works."""
        if self.stage not in RL_STAGES:
            return ()
        if self.config.rollout.backend == "vllm":
            return self._vllm()
        return () if self.place.on_gpu else (("KV cache", self.cache_bytes()),)

    @property
    def _head_params(self) -> int:
        return self.size.vocab_size * self.size.hidden_size

    def _hidden_bytes(self, tokens: int) -> int:
        return tokens * self.size.hidden_size * self.compute_bytes

    def _layer_token_bytes(self) -> int:
        """That one layer keeps of a token for backward."""
        size, compute = self.size, self.compute_bytes
        norms = size.normed_width * (4 + 2 * compute)  # in fp32; before and after the weight
        # a CPU's attention is in fp32, and its result has another order than the next product wants
        attention = size.attention_width * (compute if self.place.on_gpu else 4)
        attention += size.score_width // 2 * compute if compute == 4 or not self.place.on_gpu else 0
        if compute == 4 and self.place.on_gpu and not size.latent:  # keys and values for every head
            attention += (size.score_width - 2 * size.kv_width) * compute
        experts = 2 * size.experts_per_token * size.hidden_size * compute  # inputs and outputs, gathered
        return norms + attention + experts + 4 * size.intermediate_size * compute  # gate, its SiLU, up, their product

    def _backward_token_bytes(self) -> int:
        """Gradients that exist while a layer's backward is in its MLP."""
        return (4 * self.size.intermediate_size + 2 * self.size.hidden_size) * self.compute_bytes

    def _kept(self, num_bytes: float) -> int:
        return int(num_bytes if self.place.on_gpu else KEPT * num_bytes)


def total(items: Items) -> int:
    """Bytes of all items."""
    return sum(num_bytes for _, num_bytes in items)
