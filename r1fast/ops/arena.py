"""Addresses that stay while the memory behind them comes and goes: tensors and CUDA graphs survive a sleep."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from r1fast.ops.extension import extension

CHUNK_BYTES = 64 << 20  # on a GPU; 640 of them are 40 GiB: fewer calls of the driver when it wakes
DRIVER = "libcuda.so.1"


class Arena:
    """`num_bytes` of addresses on a device, rounded up to whole chunks, at first with no memory behind them.

    On a GPU by the driver's virtual memory management, on the CPU by mmap. Reading or writing where there is no memory
    kills the process, or the GPU's context: release only what nobody uses until it is committed again. The arena lives
    as long as a tensor in it.
    """

    def __init__(
        self,
        num_bytes: int,
        *,
        device: torch.device | str = "cpu",
        chunk_bytes: int = CHUNK_BYTES,
        driver: str = DRIVER,
    ) -> None:
        """`chunk_bytes` (GPU only) is rounded up to the driver's granularity, 2 MiB. RuntimeError without a driver."""
        self.device = torch.device(device)
        for name, value in (("num_bytes", num_bytes), ("chunk_bytes", chunk_bytes)):
            if not 0 < value < 2**47:
                raise ValueError(f"{name} = {value} must be positive and less than 2^47")
        if self.device.type == "cpu":
            self._arena: Any = extension().HostArena(num_bytes)
        elif self.device.type == "cuda":
            index = self.device.index
            index = torch.cuda.current_device() if index is None and torch.cuda.is_available() else index or 0
            self.device = torch.device("cuda", index)
            self._arena = extension().DeviceArena(num_bytes, chunk_bytes, index, driver)
        else:
            raise ValueError(f"device = {self.device} must be cpu or cuda")

    @property
    def address(self) -> int:
        """Where it begins; it never changes."""
        return int(self._arena.address)

    @property
    def num_bytes(self) -> int:
        """Of addresses."""
        return int(self._arena.num_bytes)

    @property
    def chunk_bytes(self) -> int:
        """Parts are multiples of it."""
        return int(self._arena.chunk_bytes)

    @property
    def committed_bytes(self) -> int:
        """Of memory."""
        return int(self._arena.committed_bytes)

    def commit(self, offset: int = 0, num_bytes: int | None = None) -> None:
        """Put memory, of any contents, behind a part that has none, by default all.

        All or nothing: RuntimeError when there is too little. ValueError for a part that is not whole chunks.
        """
        self._synchronize()
        self._arena.commit(offset, self.num_bytes - offset if num_bytes is None else num_bytes)

    def release(self, offset: int = 0, num_bytes: int | None = None) -> None:
        """Give the memory of a part back, by default of all; what was in it is lost. Waits for the GPU."""
        self._synchronize()
        self._arena.release(offset, self.num_bytes - offset if num_bytes is None else num_bytes)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> Tensor:
        """A tensor at `offset` bytes, which must be committed now. It outlives a release, its contents do not.

        Raises ValueError for what is not within the arena, has no memory, or does not begin on 16 bytes.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        if offset % 16:
            raise ValueError(f"offset = {offset} must be a multiple of 16 bytes")
        self._arena.require(offset, num_bytes)
        if self.device.type == "cpu":
            flat = torch.frombuffer(self._arena, dtype=torch.uint8, count=num_bytes, offset=offset)
        else:
            flat = torch.as_tensor(_DeviceBytes(self._arena, offset, num_bytes), device=self.device)
        return flat.view(dtype).view(shape)

    def _synchronize(self) -> None:
        if self.device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.synchronize(self.device)


class _DeviceBytes:
    """Bytes on a GPU as torch takes them without a copy; the tensor keeps this, and this the arena."""

    def __init__(self, arena: Any, offset: int, num_bytes: int) -> None:
        self._arena = arena
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (arena.address + offset, False),
            "version": 3,
        }
