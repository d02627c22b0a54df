"""The memory of the rollout cache: K and V pages of all layers in an arena, and the host pages they swap with."""

# L layers, P pages, K KV heads, D head_dim

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r1fast.ops.arena import Arena
from r1fast.ops.checks import CUDA_HEAD_DIMS, MAX_GQA, MAX_HEAD_DIM, PAGE_TOKENS
from r1fast.ops.kv_copy import kv_copy, kv_swap
from r1fast.ops.page_pool import PageMoves
from r1fast.policy import Policy

OTHERWISE = (
    'rollout.backend = "vllm" samples it with vLLM, where the trainer takes it; or use a model with plain attention '
    "(Llama, Qwen2/3, Mistral ...)"
)


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What a model's cache is made of; `dtype` is the model's own."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, policy: Policy) -> CacheShape:
        """From the config. Raises ValueError, by name, for models that the paged cache cannot hold."""
        name, device_type = type(policy.module).__name__, policy.device.type
        return cls.of_config(policy.module.config, name=name, dtype=policy.dtype, device_type=device_type)

    @classmethod
    def of_config(cls, described: Any, *, name: str, dtype: torch.dtype, device_type: str) -> CacheShape:
        """`of` for a model that is not loaded: its Hugging Face config, what to call it, where it will run."""
        config = described.get_text_config()
        num_heads = config.num_attention_heads
        num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        latent = getattr(config, "kv_lora_rank", None)
        if latent:
            raise ValueError(
                f"{name} keeps one latent vector a token (kv_lora_rank = {latent}, MLA), not keys and values for each "
                f"head: the paged cache cannot hold it; {OTHERWISE}"
            )
        window, layer_types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
        other = sorted({kind for kind in layer_types if kind != "full_attention"})
        if other or (window and getattr(config, "use_sliding_window", True) and not layer_types):
            raise ValueError(
                f"{name} has attention that does not see everything ({', '.join(other) or 'sliding_window'}, window "
                f"{window}): the paged cache is for full attention; set sliding_window to null in config.json where "
                f"the model allows it; {OTHERWISE}"
            )
        gqa, rest = divmod(num_heads, num_kv_heads)
        on_gpu = device_type == "cuda"
        fits = head_dim in CUDA_HEAD_DIMS if on_gpu else head_dim % 16 == 0 and head_dim <= MAX_HEAD_DIM
        if rest or gqa > MAX_GQA or not fits:
            allowed = CUDA_HEAD_DIMS if on_gpu else f"a multiple of 16 up to {MAX_HEAD_DIM}"
            raise ValueError(
                f"{name} has {num_heads} query heads for {num_kv_heads} KV heads of {head_dim}: the paged cache takes "
                f"1 to {MAX_GQA} query heads for each KV head, and a head_dim of {allowed} on {device_type}; "
                f"{OTHERWISE}"
            )
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
        )

    @property
    def page_bytes(self) -> int:
        """Of a page's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * PAGE_TOKENS * self.head_dim * self.dtype.itemsize


class PageStore:
    """`key` and `value` [L, P, K, 64, D] on the device, and as many host pages as `num_host_pages`.

    On a CPU a page costs memory once it has been written to. `sleep` gives all of the device's memory back and `wake`
    takes it again, at the same addresses; contents are lost.
    """

    def __init__(self, shape: CacheShape, *, num_pages: int, num_host_pages: int, device: torch.device) -> None:
        self.shape, self.num_pages, self.num_host_pages = shape, num_pages, num_host_pages
        bytes_of_half = num_pages * shape.page_bytes // 2
        self._arena = Arena(2 * bytes_of_half, device=device)
        self._arena.commit()
        self.key, self.value = (
            self._arena.tensor(self._shape(num_pages), shape.dtype, offset) for offset in (0, bytes_of_half)
        )
        self._host: tuple[Tensor, Tensor] | None = None
        self._device = device
        self.awake = True

    def _shape(self, num_pages: int) -> tuple[int, ...]:
        shape = self.shape
        return (shape.num_layers, num_pages, shape.num_kv_heads, PAGE_TOKENS, shape.head_dim)

    @property
    def host(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the host's pages, made when the first page is swapped out."""
        if self._host is None:
            pinned = self._device.type == "cuda"
            key, value = (
                torch.empty(self._shape(self.num_host_pages), dtype=self.shape.dtype, pin_memory=pinned)
                for _ in range(2)
            )
            self._host = key, value
        return self._host

    def copy(self, moves: PageMoves) -> None:
        """Forked pages that are about to be written."""
        if len(moves):
            kv_copy(self.key, self.value, moves.source, moves.destination)

    def swap_out(self, moves: PageMoves) -> None:
        """Device pages to host pages; waits for them, for the pages are given away next."""
        if len(moves):
            kv_swap(self.key, self.value, *self.host, moves.source, moves.destination)

    def swap_in(self, moves: PageMoves) -> None:
        """Host pages to device pages."""
        if len(moves):
            kv_swap(*self.host, self.key, self.value, moves.source, moves.destination)
            if self._device.type == "cuda":  # the host's pages may be written again at once
                torch.cuda.current_stream(self._device).synchronize()

    def sleep(self) -> None:
        """Give the memory back. What was cached is lost."""
        if self.awake:
            self._arena.release()
            self._host = None
            self.awake = False

    def wake(self) -> None:
        """Memory again, of any contents."""
        if not self.awake:
            self._arena.commit()
            self.awake = True
