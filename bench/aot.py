"""Triton kernels compiled ahead of time from real launches, with no GPU; `python -m bench.launches` does it for all.

A launcher is called with CPU tensors while a recorder stands where its kernel stood, so that what is compiled has the
argument types, the divisibility attributes and the compile-time arguments that a launch has. `cuobjdump` then says how
many registers and bytes of stack and shared memory the machine code takes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

ARCHITECTURES = (80, 90)
TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


@dataclass
class Launch:
    """One launch, as the compiler sees it."""

    kernel: JITFunction
    grid: tuple[int, ...]
    signature: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    attributes: dict[tuple[int, ...], list[list[Any]]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kernel: JITFunction, grid: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
        """Specialised as Triton's JIT specialises: pointers and integers that 16 divides, integers that are 1."""
        names = [param.name for param in kernel.params]
        launch = cls(kernel, grid, options={key: value for key, value in kwargs.items() if key not in names})
        values = dict(zip(names, args, strict=False)) | {key: value for key, value in kwargs.items() if key in names}
        for index, param in enumerate(kernel.params):
            launch._add(index, param, values[param.name])
        return launch

    def _add(self, index: int, param: Any, value: Any) -> None:
        name, divisible = param.name, False
        if param.is_constexpr or value is None or (type(value) is int and value == 1 and not param.do_not_specialize):
            self.signature[name], self.constants[name] = "constexpr", value
            return
        if isinstance(value, torch.Tensor):
            self.signature[name] = "*" + TYPES[value.dtype]
            divisible = value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            self.signature[name] = "fp32"
        else:
            self.signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = value % 16 == 0
        if divisible and not param.do_not_specialize:
            self.attributes[(index,)] = [["tt.divisibility", 16]]

    def compile(self, architecture: int) -> Binary:
        """Machine code for sm_80 or sm_90."""
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        options = {"num_warps": 4} | self.options
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
            command = [str(tool), "--dump-resource-usage", file.name]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
        return Binary(
            architecture,
            options["num_warps"],
            usage["REG"],
            usage["STACK"] + usage["LOCAL"],
            int(compiled.metadata.shared),
            compiled.asm["ptx"],
        )


@dataclass
class Binary:
    """What the machine code takes: registers a thread, bytes of stack a thread (spills), of shared memory a block."""

    architecture: int
    num_warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    ptx: str = field(repr=False)

    @property
    def threads_per_sm(self) -> int:
        """Resident threads that the registers allow, of 2,048 (64 Ki registers an SM, given out by 8)."""
        threads = 32 * self.num_warps
        rounded = -(-self.registers // 8) * 8
        return min(2048 // threads, 65536 // (rounded * threads)) * threads

    def loads(self) -> dict[str, int]:
        """Instructions that read global memory, by their width in bytes."""
        widths: dict[str, int] = {}
        for vector, bits in re.findall(r"ld\.global(?:\.[a-z0-9_:]+)*?(?:\.v(\d))?\.[bufs](\d+)\b", self.ptx):
            width = str(int(vector or 1) * int(bits) // 8)
            widths[width] = widths.get(width, 0) + 1
        return widths


@contextmanager
def recorder(module: ModuleType) -> Iterator[list[Launch]]:
    """Launches of the module's kernels go into the list instead of to a GPU."""
    launches: list[Launch] = []
    kernels = {name: value for name, value in vars(module).items() if isinstance(value, JITFunction)}

    class Recording:
        def __init__(self, kernel: JITFunction) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **kwargs: launches.append(Launch.of(self.kernel, grid, args, kwargs))

    try:
        for name, kernel in kernels.items():
            setattr(module, name, Recording(kernel))
        yield launches
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)
