"""Every configuration in which a Triton kernel can be launched, and what its machine code may take.

`python -m bench.launches [--common] [--json FILE]` compiles all of them for sm_80 and sm_90 with no GPU, prints the
table and exits 1 where one spills, passes its budget of registers or loads its rows in narrow pieces.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton

from bench.aot import ARCHITECTURES, Binary, Launch, recorder
from r1fast.kernels import group_advantage_kernels, grpo_loss_kernels, token_logprob_kernels
from r1fast.kernels.policy_loss import PolicyLoss
from r1fast.kernels.rows import RowGrads, Rows, Scaling

ROWS = 4
MAX_SHARED_BYTES = 4096  # a block; a sum over warps takes 128, and an SM has room for eight blocks of 28 KiB
TOKENS = ("old_logp", "ref_logp", "rollout_logp", "log_kept_mass", "entropy")


@dataclass(frozen=True)
class Case:
    """A launch under a name. `common`: what training and scoring launch; the rest can be launched, too."""

    name: str
    module: ModuleType
    call: Callable[[], Any]
    max_registers: int
    """A thread; what leaves the threads on an SM that the kernel needs to keep memory busy."""
    row_bytes: int = 0
    """Bytes of logits that one program reads at a time, in loads of 16 bytes; 0 where rows are not aligned."""
    passes: int = 1
    """Places in the code that read them: the forward kernel has a loop and a tail."""
    common: bool = True

    def launch(self) -> Launch:
        with recorder(self.module) as launches:
            self.call()
        (launch,) = launches
        return launch

    def faults(self, binary: Binary) -> list[str]:
        """What is wrong with the machine code."""
        found = []
        if binary.stack_bytes:
            found.append(f"{binary.stack_bytes} bytes of stack: registers spill")
        if binary.registers > self.max_registers:
            found.append(f"{binary.registers} registers, the budget is {self.max_registers}")
        if binary.shared_bytes > MAX_SHARED_BYTES:
            found.append(f"{binary.shared_bytes} bytes of shared memory, the budget is {MAX_SHARED_BYTES}")
        if self.row_bytes:
            wide = 16 * 32 * binary.num_warps * binary.loads().get("16", 0)
            if wide != self.passes * self.row_bytes:
                found.append(f"{wide} bytes in loads of 16, {self.passes * self.row_bytes} expected")
        if "%ctaid.y" in binary.ptx or "%ctaid.z" in binary.ptx:
            found.append("grid axis 1 or 2, which end at 65,535")
        return found


VOCABULARIES = {"aligned": 151936, "odd": 50257, "short": 97, "single": 1}  # Triton makes a constant of a 1


def _logits(dtype: torch.dtype, layout: str) -> torch.Tensor:
    if layout == "transposed":
        return torch.empty(151936, ROWS, dtype=dtype).T
    return torch.empty(ROWS, VOCABULARIES[layout], dtype=dtype)


def _rows_cases() -> Iterator[Case]:
    dtypes, layouts = (torch.bfloat16, torch.float16, torch.float32), (*VOCABULARIES, "transposed")
    block = token_logprob_kernels.BLOCK_V
    for dtype, layout, cap, entropy, narrow in product(dtypes, layouts, (None, 30.0), (True, False), (False, True)):
        aside = (layout != "aligned") + narrow
        if aside and (aside == 2 or dtype == torch.float16 or not entropy):
            continue  # all that is left of the difference is in another row
        aligned = layout == "aligned"
        scaling = Scaling(1.0, cap)
        name = f"{str(dtype)[6:]} {layout}{' softcap' if cap else ''}{' entropy' if entropy else ''}"
        name += " int32 targets" if narrow else ""
        targets = torch.zeros(ROWS, dtype=torch.int32 if narrow else torch.int64)
        row_bytes = block * dtype.itemsize if aligned else 0
        common = aligned and dtype != torch.float16 and entropy and not narrow

        def forward(dtype=dtype, layout=layout, entropy=entropy, scaling=scaling, targets=targets) -> None:
            logits = _logits(dtype, layout)
            rows = Rows.empty(ROWS, logits, entropy=entropy)
            token_logprob_kernels.put_rows(rows, logits, targets, scaling)

        # 2,048 threads of 32 registers fill an SM; tanh needs twice as many, narrow loads more
        most = 40 if aligned and cap is None else 64 if aligned else 176
        yield Case("rows " + name, token_logprob_kernels, forward, most, row_bytes, 2, common)

        for out_dtype in (dtype, torch.bfloat16) if dtype == torch.float32 and aligned else (dtype,):

            def backward(
                dtype=dtype, layout=layout, entropy=entropy, scaling=scaling, targets=targets, out_dtype=out_dtype
            ) -> None:
                logits = _logits(dtype, layout)
                rows = Rows.empty(ROWS, logits, entropy=True)
                grad = torch.zeros(ROWS)
                out = torch.empty(logits.shape, dtype=out_dtype)
                grads = RowGrads(grad, None, grad if entropy else None)
                token_logprob_kernels.put_gradients(out, logits, targets, rows, grads, scaling)

            most = 48 if aligned and cap is None else 96 if aligned else 128
            to = f" to {str(out_dtype)[6:]}" if out_dtype != dtype else ""
            yield Case(f"gradients {name}{to}", token_logprob_kernels, backward, most, row_bytes, 1, common)


def _loss_cases() -> Iterator[Case]:
    def loss(
        offsets: torch.dtype, given: bool, mask: bool, length: bool, dtype: torch.dtype = torch.float32, skip: int = 0
    ) -> Callable[[], Any]:
        def call() -> None:
            tokens = dict.fromkeys(TOKENS, torch.empty(4096 + skip, dtype=dtype)[skip:] if given else None)
            grpo_loss_kernels.launch(
                torch.empty(4096 + skip)[skip:],
                torch.empty(64),
                torch.zeros(65, dtype=offsets),
                tokens,
                torch.empty(4096, dtype=torch.bool) if mask else None,
                torch.zeros(64, dtype=torch.int64) if length else None,
                torch.ones(()) if length else 1.0,
                PolicyLoss(entropy_coef=0.1 if given else 0.0, kl="k3" if given else "none"),
            )

        return call

    cases = {
        "int64 offsets, all inputs": (loss(torch.int64, True, True, False), True),
        "int64 offsets, a chunk's": (loss(torch.int64, True, False, True), True),
        "int32 offsets, logp alone": (loss(torch.int32, False, False, False), True),
        "int64 offsets, a chunk's at odd addresses": (loss(torch.int64, True, False, True, skip=1), False),
        "int32 offsets, bf16 inputs": (loss(torch.int32, True, True, False, torch.bfloat16), False),
    }
    for name, (call, common) in cases.items():
        yield Case("loss " + name, grpo_loss_kernels, call, 248, common=common)  # one program an SM is enough


def _advantage_cases() -> Iterator[Case]:
    for rewards, groups in ((torch.float32, torch.int64), (torch.float32, torch.int32), (torch.bfloat16, torch.int64)):

        def call(rewards=rewards, groups=groups) -> None:
            group_advantage_kernels.launch(
                torch.empty(1024, dtype=rewards), torch.zeros(1024, dtype=groups), "mean", "group_std", True, 0.0
            )

        name = f"advantage {str(rewards)[6:]} rewards, {str(groups)[6:]} groups"
        yield Case(name, group_advantage_kernels, call, 248, common=groups == torch.int64)


CASES = (*_rows_cases(), *_loss_cases(), *_advantage_cases())


def row(case: Case, binary: Binary) -> dict[str, Any]:
    """One row of the table."""
    return {
        "kernel": case.name,
        "sm": binary.architecture,
        "warps": binary.num_warps,
        "registers": binary.registers,
        "stack_bytes": binary.stack_bytes,
        "shared_bytes": binary.shared_bytes,
        "threads_per_sm": binary.threads_per_sm,
        "loads_by_bytes": binary.loads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--common", action="store_true", help="only what training and scoring launch")
    parser.add_argument("--json", type=Path, help="write the table there")
    table, faulty = [], 0
    arguments = parser.parse_args()
    print(f"{'kernel':58} sm  regs stack shared threads/SM  loads by bytes")
    for case in CASES:
        if arguments.common and not case.common:
            continue
        launch = case.launch()
        for architecture in ARCHITECTURES:
            binary = launch.compile(architecture)
            table.append(row(case, binary))
            faults = case.faults(binary)
            faulty += bool(faults)
            print(
                f"{case.name:58} {architecture} {binary.registers:5} {binary.stack_bytes:5} {binary.shared_bytes:6} "
                f"{binary.threads_per_sm:10}  {binary.loads()} {'; '.join(faults)}"
            )
    print(f"Triton {triton.__version__}: {len(table)} binaries, {faulty} with faults")
    if arguments.json:
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "kernels": table}, indent=1) + "\n")
    return int(faulty > 0)


if __name__ == "__main__":
    sys.exit(main())
