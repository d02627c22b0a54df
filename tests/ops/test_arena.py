"""Arenas: addresses stay, memory goes; on the host for real, on a GPU by a driver that keeps the real one's rules."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulated import ROOT, compiler

from r1fast.ops.arena import Arena
from r1fast.ops.extension import extension

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or makes memory that Linux alone has")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@linux
def test_released_memory_is_given_back_and_the_addresses_stay() -> None:
    arena = Arena(256 * MIB)
    assert arena.committed_bytes == 0
    before = resident_bytes()
    for _ in range(3):
        arena.commit()
        tensor = arena.tensor((64, MIB), torch.float32)
        assert tensor.data_ptr() == arena.address
        tensor.fill_(1.5)
        assert resident_bytes() - before > 250 * MIB
        assert arena.committed_bytes == 256 * MIB
        arena.release()
        assert resident_bytes() - before < 8 * MIB
        assert arena.committed_bytes == 0
    arena.commit()
    assert not tensor.any()  # the same tensor, on new memory
    tensor[3, 5] = 2
    assert tensor.sum() == 2


def test_a_part_goes_and_the_others_keep_what_they_have() -> None:
    arena = Arena(16 * MIB)
    arena.commit()
    tensor = arena.tensor((4, 2 * MIB), torch.bfloat16)
    for row in range(4):
        tensor[row] = row + 1
    arena.release(4 * MIB, 8 * MIB)
    assert arena.committed_bytes == 8 * MIB
    assert (tensor[0] == 1).all()
    assert (tensor[3] == 4).all()
    arena.commit(8 * MIB, 4 * MIB)
    assert not tensor[2].any()
    with pytest.raises(ValueError, match=rf"there is no memory at {4 * MIB}; commit"):
        arena.tensor((16 * MIB,), torch.uint8)


@linux
def test_the_arena_lives_as_long_as_a_tensor_in_it() -> None:
    arena = Arena(64 * MIB)
    arena.commit()
    tensor, view = arena.tensor((64 * MIB,), torch.uint8), arena.tensor((100,), torch.float32, offset=64)[3:]
    tensor.fill_(1)
    full = resident_bytes()
    del arena, tensor
    gc.collect()
    view.fill_(7)
    assert full - resident_bytes() < 8 * MIB
    del view
    gc.collect()
    assert full - resident_bytes() > 56 * MIB


def advice(address: int) -> list[str]:
    """The kernel's flags of the mapping at this address."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif here and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no transparent huge pages"
)
def test_memory_is_asked_for_in_huge_pages_each_time() -> None:
    arena = Arena(16 * MIB)
    assert arena.address % (2 * MIB) == 0
    if not advice(arena.address):
        pytest.skip("this kernel tells no flags of mappings")
    for _ in range(2):
        assert "hg" not in advice(arena.address)
        arena.commit()
        assert "hg" in advice(arena.address)
        arena.release(4 * MIB, 8 * MIB)
        assert ["hg" in advice(arena.address + at * MIB) for at in (0, 4, 11, 12)] == [True, False, False, True]
        arena.release(0, 4 * MIB)
        arena.release(12 * MIB, 4 * MIB)


@linux
def test_a_read_of_released_memory_is_a_crash_and_not_a_wrong_number() -> None:
    code = (
        "import torch; from r1fast.ops.arena import Arena; arena = Arena(1 << 20); arena.commit()\n"
        "tensor = arena.tensor((4,), torch.float32); print(tensor.sum().item(), flush=True)\n"
        "arena.release(); print(tensor.sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-11, "0.0\n")


def test_what_cannot_be_is_refused() -> None:
    arena = Arena(3 * MIB)
    page = arena.chunk_bytes
    for offset, size in ((0, page + 1), (1, page), (-page, page), (0, 4 * MIB), (2**62, page), (0, 0)):
        with pytest.raises(ValueError, match=rf"commit of {size} bytes at {offset}: both must be multiples of {page}"):
            arena.commit(offset, size)
    with pytest.raises(ValueError, match=r"release at 0, where there is no memory"):
        arena.release()
    arena.commit(0, page)
    with pytest.raises(ValueError, match=r"commit at 0, where there is memory already"):
        arena.commit()
    assert arena.committed_bytes == page
    with pytest.raises(ValueError, match=r"offset = 8 must be a multiple of 16"):
        arena.tensor((1,), torch.float32, offset=8)
    with pytest.raises(ValueError, match=rf"{4 * MIB} bytes from 0 on are not within its {3 * MIB}"):
        arena.tensor((MIB,), torch.float32)
    with pytest.raises(ValueError, match=r"0 bytes from 0 on"):
        arena.tensor((0, 5), torch.float32)
    for size in (0, -1, 2**47):
        with pytest.raises(ValueError, match=rf"num_bytes = {size} must be positive and less than 2\^47"):
            Arena(size)
    with pytest.raises(ValueError, match=r"device = meta must be cpu or cuda"):
        Arena(MIB, device="meta")


def test_without_a_driver_a_gpu_arena_says_so() -> None:
    with pytest.raises(RuntimeError, match=r'there is no NVIDIA driver here \(libnone\.so\.1.*use device="cpu"'):
        Arena(MIB, device="cuda:0", driver="libnone.so.1")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tools = compiler().find_toolchain("0")
    if tools is None or sys.platform != "linux":
        pytest.skip("needs a C++ compiler, on Linux")
    out = tmp_path_factory.mktemp("driver") / "libfake.so"
    source = Path(__file__).with_name("fake_driver.cpp")
    subprocess.run([tools.cxx, "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(out)], check=True)
    return out


def test_a_gpu_arena_maps_chunks_and_gives_them_back(driver: Path) -> None:
    fake = ctypes.CDLL(str(driver))
    fake.fake_left.restype = ctypes.c_longlong
    fake.fake_limit(ctypes.c_longlong(40 * MIB))
    arena = extension().DeviceArena(30 * MIB, 3 * MIB, 0, str(driver))
    address = arena.address
    assert (arena.chunk_bytes, arena.num_bytes) == (4 * MIB, 32 * MIB)
    assert fake.fake_left() == 40 * MIB
    for number in range(1, 4):
        arena.commit(0, 32 * MIB)
        assert (fake.fake_left(), fake.fake_num_allocations()) == (8 * MIB, 8)
        ctypes.memset(address, number, 32 * MIB)
        arena.release(4 * MIB, 8 * MIB)
        assert (fake.fake_left(), fake.fake_num_allocations()) == (16 * MIB, 6)
        assert ctypes.string_at(address + 12 * MIB, 2) == bytes([number] * 2)
        arena.commit(4 * MIB, 8 * MIB)
        assert ctypes.string_at(address + 4 * MIB, 2) == b"\0\0"
        arena.release(0, 32 * MIB)
        assert (arena.address, arena.committed_bytes, fake.fake_left()) == (address, 0, 40 * MIB)
    arena.commit(0, 4 * MIB)
    del arena
    gc.collect()
    assert (fake.fake_left(), fake.fake_num_allocations(), fake.fake_num_reserved()) == (40 * MIB, 0, 0)


def test_a_gpu_arena_that_finds_too_little_memory_takes_none(driver: Path) -> None:
    fake = ctypes.CDLL(str(driver))
    fake.fake_left.restype = ctypes.c_longlong
    fake.fake_limit(ctypes.c_longlong(20 * MIB))
    arena = extension().DeviceArena(32 * MIB, 4 * MIB, 0, str(driver))
    with pytest.raises(RuntimeError, match=r"arena: cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        arena.commit(0, 32 * MIB)
    assert (arena.committed_bytes, fake.fake_left(), fake.fake_num_allocations()) == (0, 20 * MIB, 0)
    fake.fake_fail_access(1)
    with pytest.raises(RuntimeError, match=r"arena: cuMemSetAccess failed: CUDA_ERROR_INVALID_VALUE \(1\)"):
        arena.commit(0, 16 * MIB)
    fake.fake_fail_access(0)
    assert (arena.committed_bytes, fake.fake_left(), fake.fake_num_allocations()) == (0, 20 * MIB, 0)
    arena.commit(0, 16 * MIB)
    assert arena.committed_bytes == 16 * MIB


@pytest.mark.gpu
def test_on_a_gpu_memory_is_given_back_and_the_addresses_stay() -> None:
    arena = Arena(1 << 30, device="cuda")
    free = torch.cuda.mem_get_info()[0]
    arena.commit()
    tensor = arena.tensor((256 * MIB,), torch.float32)
    tensor.fill_(3)
    assert tensor.data_ptr() == arena.address
    assert float(tensor.sum(dtype=torch.float64)) == 3 * 256 * MIB
    assert free - torch.cuda.mem_get_info()[0] >= 1 << 30
    arena.release()
    assert free - torch.cuda.mem_get_info()[0] < 64 * MIB
    arena.commit()
    tensor.fill_(4)
    assert float(tensor[:1000].sum()) == 4000


LAYOUT = """
#include <cstddef>
#include <cuda.h>
#include "arena/driver.h"
using namespace r1;
static_assert(sizeof(DriverLocation) == sizeof(CUmemLocation));
static_assert(sizeof(DriverAllocation) == sizeof(CUmemAllocationProp));
static_assert(offsetof(DriverAllocation, location) == offsetof(CUmemAllocationProp, location));
static_assert(offsetof(DriverAllocation, windows) == offsetof(CUmemAllocationProp, win32HandleMetaData));
static_assert(offsetof(DriverAllocation, flags) == offsetof(CUmemAllocationProp, allocFlags));
static_assert(sizeof(DriverAccess) == sizeof(CUmemAccessDesc));
static_assert(offsetof(DriverAccess, flags) == offsetof(CUmemAccessDesc, flags));
static_assert(CU_MEM_ALLOCATION_TYPE_PINNED == 1 && CU_MEM_LOCATION_TYPE_DEVICE == 1);
static_assert(CU_MEM_ACCESS_FLAGS_PROT_READWRITE == 3 && CU_MEM_ALLOC_GRANULARITY_RECOMMENDED == 1);
static_assert(sizeof(CUdeviceptr) == sizeof(Driver::Address));
static_assert(sizeof(CUmemGenericAllocationHandle) == sizeof(Driver::Allocation));
void same() {
    using Flags = unsigned long long;
    CUresult (*create)(CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*, Flags) = &cuMemCreate;
    CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, Flags) = &cuMemMap;
    CUresult (*reserve)(CUdeviceptr*, size_t, size_t, CUdeviceptr, Flags) = &cuMemAddressReserve;
    CUresult (*access)(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t) = &cuMemSetAccess;
    (void)create, (void)map, (void)reserve, (void)access;
}
"""


def test_the_driver_is_declared_as_cuda_h_declares_it(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="Triton is for Linux, and brings cuda.h")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    tools = compiler().find_toolchain("0")
    if tools is None or not (headers / "cuda.h").exists():
        pytest.skip("needs a C++ compiler, and the cuda.h that comes with Triton")
    source = tmp_path / "layout.cpp"
    source.write_text(LAYOUT)
    command = [tools.cxx, "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'csrc'}", f"-I{headers}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
