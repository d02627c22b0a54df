"""The threads of the CPU ops: PyTorch's team where it is loaded, and the extension's own where nothing is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from batches import Batch, Shape

ROOT = Path(__file__).parents[2]

# Without torch there is no OpenMP in the process. Rows of one partial result: the merge is a copy.
ALONE = """
import os, sys
import numpy as np
import r1fast._C as C

assert "torch" not in sys.modules
rows, heads, dim = 3000, 4, 64
partial = np.random.default_rng(0).standard_normal((rows, heads, dim), dtype=np.float32)
lse = np.zeros((rows, heads), np.float32)
begin = np.arange(rows + 1, dtype=np.int32)

def merged(threads):
    out = np.full_like(partial, np.nan)
    params = C.AttentionMergeParams(
        partial_output=partial.ctypes.data, partial_lse=lse.ctypes.data, partial_begin=begin.ctypes.data,
        output=out.ctypes.data, output_row_stride=heads * dim, output_head_stride=dim,
        num_rows=rows, num_heads=heads, head_dim=dim, dtype=2)
    C.attention_merge_cpu(params, threads)
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0, np.array_equal(out, partial)

first = [merged(threads) for threads in (1, 4, 2, 4)]
child = os.fork()  # has none of the parent's threads
if child == 0:
    os._exit(0 if merged(4)[1] else 1)
print([equal for _, equal in first], first[1][0] - first[0][0], os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_its_own_threads_start_once_and_survive_a_fork() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[True, True, True, True] 3 0\n"


def test_the_number_of_threads_changes_no_bit() -> None:
    batch = Batch(Shape(num_heads=6, num_kv_heads=2, head_dim=64), [(0, n) for n in range(1, 900, 60)], [700])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(batch.attend())
    finally:
        torch.set_num_threads(before)
    for output, lse in found[1:]:
        assert torch.equal(output, found[0][0])
        assert torch.equal(lse, found[0][1])
