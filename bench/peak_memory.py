"""Peak memory of one variant on the CPU, in a process of its own.

    python -m bench.peak_memory MODULE SIZE LABEL VARIANT

The kernel's high-water mark of resident memory (VmHWM) is exact and sees every library's buffers, which a hook in one
allocator would not. The variant runs once, so that whatever is made only once is there; the mark is put back
(/proc/self/clear_refs), and the second run's peak above what was resident before it counts. glibc is told to give back
every block above 128 KiB that is freed (MALLOC_MMAP_THRESHOLD_): memory kept for later would hide what a run takes.
Linux only: elsewhere there is no figure.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 600


def peak_bytes(module: str, size: str, label: str, variant: str, threads: int) -> tuple[int, int] | None:
    """Bytes above what there was before the call, and of the results among them; None where it cannot be measured."""
    if not CLEAR.exists():
        return None
    command = [sys.executable, "-m", "bench.peak_memory", module, size, label, variant]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": str(threads)}
    found = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if found.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {found.returncode}:\n{found.stderr[-2000:]}")
    extra, results = json.loads(found.stdout.splitlines()[-1])
    return extra, results


def _resident(key: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def main() -> None:
    """Print [extra bytes, bytes of the results]."""
    module, size, label, name = sys.argv[1:]
    cases = importlib.import_module(module).cases("cpu", size)
    case = next(case for case in cases if case.label == label)
    variant = next(variant for variant in case.build().variants if variant.name == name)
    assert variant.arm is not None
    outputs = variant.arm()()
    del outputs
    thunk = variant.arm()
    gc.collect()
    CLEAR.write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    outputs = thunk()
    extra = _resident("VmHWM") - before
    print(json.dumps([extra, sum(x.numel() * x.element_size() for x in outputs.values())]))


if __name__ == "__main__":
    main()
