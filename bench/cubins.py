"""What csrc's CUDA kernels take, with no GPU: `python -m bench.cubins [--json FILE]` (needs nvcc).

Compiles every kernel for sm_80 and sm_90, prints registers, stack and shared memory, and exits 1 where one spills,
passes its budget, or lacks the instructions that it was written for.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import triton

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"  # cuobjdump and nvdisasm come with Triton
ARCHITECTURES = (80, 90)
# Bytes of shared memory that a block can have, and that a multiprocessor has (less 1 KiB a block).
BLOCK_BYTES = {80: 163 << 10, 90: 227 << 10}
REGISTERS = 64 << 10
COPY, MMA, LOAD, STORE = r"LDGSTS\.\S*\.128\b", r"HMMA\.16816\.F32", r"LDG\.E\.(\S*\.)?128\b", r"STG\.E\.128"


@dataclass(frozen=True)
class Budget:
    """What a kernel may take: threads and blocks that are to be resident together, and instructions it must have."""

    threads: int
    blocks_per_sm: int
    instructions: tuple[str, ...] = ()

    @property
    def registers(self) -> int:
        """A thread's share; they are given out by 8."""
        return min(255, REGISTERS // (self.threads * self.blocks_per_sm) // 8 * 8)


def decode_shared_bytes(head_dim: int) -> int:
    """Dynamic shared memory of paged_decode: pages of K and V in flight (csrc/cuda/paged_decode.cuh)."""
    return 2 * 2 * 64 * head_dim * {64: 4, 256: 2}.get(head_dim, 3)


SAMPLE_SHARED_BYTES = 60 << 10  # the most that csrc/cuda/sample_tiles.cuh lets a row have


def budget_of(kernel: str, head_dim: int) -> Budget:
    """By the kernel's name."""
    if kernel == "paged_decode_kernel":
        return Budget(128, 1 if head_dim == 256 else 2, (COPY, MMA + r"(\.BF16)?", r"LDSM\.16\.\S*M88\.4", "MOVM"))
    if kernel == "sample_kernel":
        return Budget(512, 2, (LOAD,))
    if kernel in ("kv_append_kernel", "kv_copy_kernel"):
        return Budget(256, 4, (LOAD, STORE))
    return {
        "attention_merge_kernel": Budget(256, 4),
        "decode_plan_kernel": Budget(512, 1),
        "sequence_step_kernel": Budget(512, 1),
    }[kernel]


@dataclass
class Cubin:
    """One kernel's machine code for one architecture."""

    kernel: str
    dtype: str
    head_dim: int
    architecture: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    sass: str = field(repr=False)

    @property
    def name(self) -> str:
        arguments = [self.dtype, *([str(self.head_dim)] if self.head_dim else [])]
        return f"{self.kernel}<{', '.join(arguments)}>" if self.dtype else self.kernel

    def faults(self) -> list[str]:
        """What is wrong with it."""
        budget, found = budget_of(self.kernel, self.head_dim), []
        if self.stack_bytes:
            found.append(f"{self.stack_bytes} bytes of stack: registers spill")
        if self.registers > budget.registers:
            found.append(f"{self.registers} registers, the budget is {budget.registers}")
        if self.shared_bytes > BLOCK_BYTES[self.architecture]:
            found.append(f"{self.shared_bytes} bytes of shared memory, a block has {BLOCK_BYTES[self.architecture]}")
        if self.architecture == 90 and budget.blocks_per_sm * (self.shared_bytes + 1024) > 228 << 10:
            found.append(f"{budget.blocks_per_sm} blocks of {self.shared_bytes} bytes do not fit together")
        if re.search(r"\b(LDL|STL)\b", self.sass):
            found.append("loads or stores of local memory")
        found += [f"no {text}" for text in budget.instructions if not re.search(text, self.sass)]
        return found

    def row(self) -> str:
        faults = "; ".join(self.faults())
        return (
            f"{self.name:36} sm_{self.architecture} {self.registers:4} registers {self.stack_bytes:4} stack "
            f"{self.shared_bytes:7} shared  {faults or 'ok'}"
        )


def compile_file(nvcc: str, path: Path, architecture: int) -> list[Cubin]:
    """The kernels of one .cu file, with the flags of csrc/compile.py."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        flags = ["-std=c++17", "-O3", f"-I{CUDA.parent}", f"-arch=sm_{architecture}"]
        _output(nvcc, "-cubin", *flags, str(path), "-o", str(cubin))
        if not cubin.exists():  # a file without kernels
            return []
        usage = _output(str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(cubin))
        sass = _output(str(TOOLS / "nvdisasm"), "--print-code", str(cubin))
    return list(read(usage, sass, architecture))


def read(usage: str, sass: str, architecture: int) -> list[Cubin]:
    """The kernels in what cuobjdump and nvdisasm print."""
    found = []
    codes = dict(re.findall(r"^\.text\.(\w+):\n(.*?)(?=^\.text\.|\Z)", sass, re.M | re.S))
    for symbol, facts in re.findall(r"Function (\w+):\s*\n\s*(REG:.*)", usage):
        name = re.search(r"\d+([a-z_]+_kernel)(?:I(?:NS_\d)?(BF16|FP16|f)E?(?:Li(\d+)E)?)?", symbol)
        assert name is not None, symbol
        numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", facts)}
        kernel, dtype, head_dim = name[1], {"f": "FP32"}.get(name[2], name[2] or ""), int(name[3] or 0)
        dynamic = decode_shared_bytes(head_dim) if kernel == "paged_decode_kernel" else 0
        dynamic += SAMPLE_SHARED_BYTES if kernel == "sample_kernel" else 0
        stack, shared = numbers["STACK"] + numbers["LOCAL"], numbers["SHARED"] + dynamic
        found.append(Cubin(kernel, dtype, head_dim, architecture, numbers["REG"], stack, shared, codes[symbol]))
    return found


def compile_all(nvcc: str) -> list[Cubin]:
    """Every kernel for every architecture."""
    files = [(path, architecture) for path in sorted(CUDA.glob("*.cu")) for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        return [cubin for found in pool.map(lambda job: compile_file(nvcc, *job), files) for cubin in found]


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the table there")
    args = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("skipped: there is no nvcc on PATH")
        return 0
    cubins = compile_all(nvcc)
    print("\n".join(cubin.row() for cubin in cubins))
    if args.json:
        rows = [{key: value for key, value in asdict(cubin).items() if key != "sass"} for cubin in cubins]
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(cubin.faults() for cubin in cubins))


if __name__ == "__main__":
    sys.exit(main())
