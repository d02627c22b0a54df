"""What a recipe would need on so many GPUs of a kind: memory of each phase, time, network, what to change.

Everything is arithmetic on the recipe, the model's sizes, data sheets and the shares below; nothing is measured. Memory
is `phase_memory`'s.
"""

# P parameters, N GPUs, T tokens, B rows of a decode batch

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from r1fast.config import Config, ConfigError
from r1fast.gpus import Gpu
from r1fast.model_size import ModelSize
from r1fast.phase_memory import CACHES, FREE_SHARE, Items, PhaseMemory, Place, total
from r1fast.plan import LENGTH_SHARE, Work, stage_works

PROMPT_TOKENS = 256
CONTEXT_BYTES = 1 << 30  # CUDA context, libraries, NCCL's buffers of one process
FRAGMENTATION = 1.05  # PyTorch's allocator keeps some of what it cannot use
TRAIN_SHARE = 0.40  # of peak FLOP/s: forward, backward, recomputation
SCORE_SHARE = 0.50  # forward alone, and what a decode step computes
DECODE_SHARE = 0.60  # of peak memory bandwidth
NETWORK_SHARE = 0.70  # of a link's rate
STEP_TOKENS = 1024  # a micro-batch is found to this many


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a stage on one GPU: `memory` by item, `time_s` and `network` (bytes sent) of the whole stage.

    `rows`: samples at their limit that the cache holds at a time, of `wanted_rows`; both 0 where nothing is sampled.
    """

    name: str
    tokens: float
    flops: float
    time_s: float
    memory: Items
    network: float = 0.0
    steps: int = 1  # optimizer steps
    rows: int = 0
    wanted_rows: int = 0

    @property
    def peak(self) -> float:
        """Bytes, with the context and what the allocator cannot use."""
        return CONTEXT_BYTES + FRAGMENTATION * total(self.memory)

    def fits(self, gpu: Gpu) -> bool:
        """Whether it runs: within the memory, and with room for one sample at its limit."""
        return self.peak <= gpu.memory and not (self.wanted_rows and not self.rows)


@dataclass(frozen=True, kw_only=True)
class StagePhases:
    """A stage. `limit`: tokens of the longest completion; `most_tokens`: of the largest micro-batch that fits, 0 where
    there is none; None where nothing is trained.
    """

    config: Config  # as the stage sees it
    size: ModelSize
    phases: tuple[Phase, ...]
    limit: int
    most_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """`stages`: name -> what it needs. `advice` on what to change comes from `cluster_advice`."""

    gpu: Gpu
    num_gpus: int
    model: ModelSize
    stages: dict[str, StagePhases]

    @property
    def over(self) -> list[tuple[str, Phase]]:
        """Stage and phase of all that does not fit, the largest first."""
        found = [(name, phase) for name, stage in self.stages.items() for phase in stage.phases]
        return sorted((one for one in found if not one[1].fits(self.gpu)), key=lambda one: -one[1].peak)

    @property
    def time_s(self) -> float:
        """Of all stages."""
        return sum(phase.time_s for stage in self.stages.values() for phase in stage.phases)


def compute_bytes(config: Config) -> int:
    """Of a number in the compute dtype: [run] dtype, where auto is bfloat16 on a GPU."""
    return 4 if config.run.dtype == "float32" else 2


def plan_cluster(config: Config, model: ModelSize, student: ModelSize | None, gpu: Gpu, num_gpus: int) -> ClusterPlan:
    """The plan of a recipe; ConfigError for a number of GPUs that cannot be."""
    if num_gpus < 1 or (num_gpus > gpu.per_node and num_gpus % gpu.per_node):
        raise ConfigError(f"--gpus {num_gpus} must be at least 1, and of several nodes a multiple of {gpu.per_node}")
    group = config.distributed.sequence_parallel
    if num_gpus % group:
        raise ConfigError(f"--gpus {num_gpus} cannot be divided into groups of distributed.sequence_parallel = {group}")
    place = Place(on_gpu=True, compute_bytes=compute_bytes(config), num_processes=num_gpus)
    stages: dict[str, StagePhases] = {}
    for name, size, work in stage_works(config, model, student, place, PROMPT_TOKENS):
        planner = _Planner(config.for_stage(name), name, size, work, gpu, place)
        stages[name] = StagePhases(
            config=planner.config,
            size=size,
            phases=planner.phases(),
            limit=work.limit,
            most_tokens=planner.largest_micro_batch() if work.steps else None,
        )
    return ClusterPlan(gpu=gpu, num_gpus=num_gpus, model=model, stages=stages)


@dataclass(frozen=True)
class _Planner:
    config: Config
    name: str
    size: ModelSize
    work: Work
    gpu: Gpu
    place: Place

    def phases(self) -> tuple[Phase, ...]:
        made: dict[str, Callable[[Items], Phase]] = {
            "load": self._load,
            "rollout": self._rollout,
            "dev": self._dev,
            "score": self._score,
            "train": self._train,
        }
        return tuple(made[name](self._with_cache(items)) for name, items in self.work.phases)

    def largest_micro_batch(self) -> int:
        """Most tokens of a micro-batch with which training stays within the GPU's memory; 0 where one step does not."""
        items = self._with_cache(dict(self.work.phases)["train"])
        fixed = total(tuple(item for item in items if item[0] not in ("activations", "logits chunk")))
        room = (self.gpu.memory - CONTEXT_BYTES) / FRAGMENTATION - fixed
        memory, low, high = self._memory, 0, 1 << 20  # of STEP_TOKENS
        while low < high:
            tokens = (middle := (low + high + 1) // 2) * STEP_TOKENS
            if memory.activation_bytes(tokens) + memory.chunk_bytes(tokens) <= room:
                low = middle
            else:
                high = middle - 1
        return low * STEP_TOKENS

    def _load(self, items: Items) -> Phase:
        return Phase(name="load", tokens=0, flops=0.0, time_s=0.0, memory=items)

    def _rollout(self, items: Items) -> Phase:
        dev = self.work.dev
        return self._sampled(
            "rollout", self.work, self.work.generated_tokens - (dev.generated_tokens if dev else 0), items
        )

    def _dev(self, items: Items) -> Phase:
        assert self.work.dev is not None, "the phase is there"
        return self._sampled("dev", self.work.dev, self.work.dev.generated_tokens, items)

    def _sampled(self, name: str, work: Work, most_tokens: int, items: Items) -> Phase:
        """The cache takes what the batch can use, within a share of what is free; other samples wait."""
        tokens, memory, team = most_tokens * LENGTH_SHARE, self._memory_of(work), self.config.rollout.tensor_parallel
        cache = self._cache(items, memory)
        likely = memory.limit * LENGTH_SHARE
        rows = max(1, min(memory.rows, int(cache // ((PROMPT_TOKENS + likely) * memory.kv_token_bytes))))
        length = PROMPT_TOKENS + likely / 2
        read = self.size.touched_params(rows) * self.place.compute_bytes / team + rows * length * memory.kv_token_bytes
        computed = rows * self.size.forward_flops(length) / team
        step_s = max(read / (self.gpu.bandwidth * DECODE_SHARE), computed / (self.gpu.flops * SCORE_SHARE))
        return Phase(
            name=name,
            tokens=tokens,
            flops=tokens * self.size.forward_flops(length),
            time_s=tokens * team / self.place.num_processes / rows * step_s,
            memory=items,
            rows=int(cache // memory.row_bytes()),
            wanted_rows=memory.rows,
        )

    def _cache(self, items: Items, memory: PhaseMemory) -> float:
        """What sampling that holds `items` gives its cache."""
        held = total(tuple(item for item in items if item[0] not in CACHES))
        free = max(0.0, (self.gpu.memory - CONTEXT_BYTES) / FRAGMENTATION - held)
        return min(memory.cache_bytes(), FREE_SHARE * free)

    def _with_cache(self, items: Items) -> Items:
        """The items of a phase with the cache as large as sampling makes it: vLLM's stays in the other phases."""
        shown = 0
        for name, held in self.work.phases:
            work = {"rollout": self.work, "dev": self.work.dev}.get(name)
            if work is not None:
                memory = self._memory_of(work)
                shown = max(shown, int(self._cache(held, memory)), memory.row_bytes())
        return tuple((name, shown if name in CACHES else size) for name, size in items)

    def _score(self, items: Items) -> Phase:
        tokens = self._trained_tokens() * self._memory.num_scored
        flops = tokens * self.size.forward_flops(self._length())
        time_s = flops / (self.place.num_processes * self.gpu.flops * SCORE_SHARE)
        return Phase(name="score", tokens=tokens, flops=flops, time_s=time_s, memory=items)

    def _train(self, items: Items) -> Phase:
        tokens = self._trained_tokens()
        passes = 3.0 + self.config.optimizer.gradient_checkpointing
        flops = tokens * self.size.forward_flops(self._length()) * passes
        network = self.work.steps * self._step_network()
        rate = self.gpu.link if self.place.num_processes <= self.gpu.per_node else self.gpu.network
        compute_s = flops / (self.place.num_processes * self.gpu.flops * TRAIN_SHARE)
        return Phase(
            name="train",
            tokens=tokens,
            flops=flops,
            time_s=compute_s + network / (rate * NETWORK_SHARE),
            memory=items,
            network=network,
            steps=self.work.steps,
        )

    @property
    def _memory(self) -> PhaseMemory:
        return self._memory_of(self.work)

    def _memory_of(self, work: Work) -> PhaseMemory:
        return PhaseMemory(
            config=self.config,
            stage=self.name,
            size=self.size,
            place=self.place,
            prompt_tokens=PROMPT_TOKENS,
            limit=work.limit,
            rows=work.rows,
        )

    def _step_network(self) -> float:
        """Bytes that one GPU sends for one optimizer step, as rings do: (N - 1) / N of what is shared out, each way."""
        return self._gradient_network() + self._attention_network()

    def _attention_network(self) -> float:
        """Of queries, keys, values and results, which a sequence group exchanges around attention, and their gradients.

        Scored tokens are not counted.
        """
        group = self._memory.sequence_parallel
        passes = 2 + self.config.optimizer.gradient_checkpointing  # forward, backward, forward again
        a_gpu = self._trained_tokens() / max(1, self.work.steps) / self.place.num_processes
        a_token = self.size.num_layers * self.size.attention_width * self.place.compute_bytes
        return a_gpu * a_token * passes * (group - 1) / group

    def _gradient_network(self) -> float:
        params, zero, num_gpus = self.size.num_params, self.config.distributed, self.place.num_processes
        part = (num_gpus - 1) / num_gpus
        if self._memory.trains_reward_model:  # float32 gradients, and weights from who updates them
            return 4 * (2 + zero.shares_moments(num_gpus)) * self._memory.trained_params * part
        if zero.engine == "torch" or zero.zero_stage == 0:
            return 2 * 4 * params * part  # an all-reduce of float32 gradients
        a_gpu = self._trained_tokens() / max(1, self.work.steps) / num_gpus
        micro_batches = math.ceil(a_gpu * zero.sequence_parallel / self._memory.micro_batch_tokens)
        reductions = micro_batches if zero.zero_stage >= 2 else 1  # in float32, to the share of each
        gathers = 2 * micro_batches + 1 if zero.zero_stage == 3 else 1  # forward, backward, and into the rollout copy
        if self._memory.shares_weights:  # each score gathers, too, and the push takes the copy's place
            gathers += micro_batches * self._memory.num_scored
        return (4 * reductions + self.place.compute_bytes * gathers) * params * part

    def _trained_tokens(self) -> float:
        prompts = self.work.samples * PROMPT_TOKENS
        return prompts + max(0, self.work.trained_tokens - prompts) * LENGTH_SHARE

    def _length(self) -> float:
        return self._trained_tokens() / max(1, self.work.samples)
