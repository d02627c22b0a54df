"""Compiles the C++ and CUDA sources beside it with ninja: `r1fast._C` for setup.py, its emulated twin for the tests.

Needs no torch: the modules take raw pointers, sizes and streams as integers. setup.py and the tests load this file by
its path, so it imports only the standard library and pybind11 (for its headers).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

CSRC = Path(__file__).resolve().parent
COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", "-Werror=return-type")
HOST_SOURCES = ("arena/*.cpp", "bindings/*.cpp", "cpu/*.cpp", "pool/*.cpp")  # what every module has
# What csrc/cpu/per_isa is compiled for on x86, one object each; the CPU chooses among them at run time (cpu/isa.cpp).
# -mprefer-vector-width: without it GCC keeps to 256 bits.
X86_ISAS = {
    "plain": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-march=skylake-avx512", "-mprefer-vector-width=512"),
    "avx512_bf16": ("-march=cooperlake", "-mprefer-vector-width=512"),
}
# sm_80 and sm_90 machine code, and PTX that later GPUs compile when they load it.
GENCODE = (
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
)
CUDA_TARGETS = "sm_80,sm_90,compute_90"  # one word: it goes through a shell


class BuildError(Exception):
    """What is missing, or what the compiler said; one message for the user."""


@dataclass(frozen=True)
class Toolchain:
    """The compilers that were found; `nvcc` is None where CUDA objects are not built."""

    cxx: str
    nvcc: str | None = None
    isas: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"plain": ()})


def find_toolchain(cuda: str | None) -> Toolchain | None:
    """What builds here. `cuda` is R1FAST_CUDA: "0" never, "1" always, None or "" where nvcc is found.

    None where there is no C++ compiler. Raises BuildError for "1" without nvcc, and for any other value.
    """
    if cuda not in (None, "", "0", "1"):
        raise BuildError(f"R1FAST_CUDA={cuda!r} must be 0 (no CUDA), 1 (always) or unset (where nvcc is found)")
    nvcc = None if cuda == "0" else find_nvcc()
    if cuda == "1" and nvcc is None:
        raise BuildError(
            "R1FAST_CUDA=1, but nvcc is neither on PATH nor in $CUDA_HOME/bin nor in /usr/local/cuda/bin; "
            "install NVIDIA's CUDA toolkit, or unset R1FAST_CUDA to build for the CPU alone"
        )
    cxx = next((path for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if (path := _which(name))), None)
    return None if cxx is None else Toolchain(cxx, nvcc, find_isas(cxx))


def find_nvcc() -> str | None:
    """nvcc on PATH, in CUDA_HOME or in its usual place."""
    places = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    candidates = [_which("nvcc"), *(_which(f"{place}/bin/nvcc") for place in places if place)]
    return next((path for path in candidates if path), None)


def find_isas(cxx: str) -> dict[str, tuple[str, ...]]:
    """Instruction sets that this compiler can write code for, with its flags; `plain` alone where it is not for x86."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {"plain": ()}
    command = [cxx, "-x", "c++", "-E", "-o", os.devnull, os.devnull]
    return {
        isa: flags
        for isa, flags in X86_ISAS.items()
        if subprocess.run([*command, *flags], capture_output=True).returncode == 0
    }


def compile_extension(tools: Toolchain, out: Path, work: Path) -> None:
    """Build r1fast._C to the file `out`; objects go to `work` and are used again. Raises BuildError."""
    flags = [*COMMON, *_includes()]
    flags += [f'-DR1_CUDA_TARGETS=\\"{CUDA_TARGETS if tools.nvcc else ""}\\"', "-DR1_MODULE=_C"]
    flags += [f"-DR1_WITH_{isa}" for isa in tools.isas] + (["-DR1_WITH_CUDA"] if tools.nvcc else [])
    lines = [f"flags = {' '.join(flags)}"]
    lines += [*_rule("cxx", f"{tools.cxx} $flags $isa -MMD -MF $out.d -c $in -o $out", depfile="$out.d")]
    link = f"{tools.cxx} $in -o $out {_link_flags()}"
    objects = [_compile(lines, "cxx", path) for pattern in HOST_SOURCES for path in sorted(CSRC.glob(pattern))]
    objects += _compile_per_isa(lines, tools)
    if tools.nvcc:
        gencode = " ".join(GENCODE)
        command = f"{tools.nvcc} -std=c++17 -O3 -ccbin {tools.cxx} -Xcompiler -fPIC,-fvisibility=hidden {gencode}"
        lines += _rule("nvcc", f"{command} -I{CSRC} -MD -MF $out.d -c $in -o $out", depfile="$out.d")
        objects += [_compile(lines, "nvcc", path) for path in sorted(CSRC.glob("cuda/*.cu"))]
        # The CUDA runtime is linked statically, so that the module imports where there is neither GPU nor driver.
        link = f"{tools.nvcc} -ccbin {tools.cxx} -shared -cudart static $in -o $out"
    lines += [*_rule("link", link), f"build {_escape(out)}: link {' '.join(objects)}"]
    _ninja(lines, work)


def compile_emulated(cxx: str, out: Path, work: Path) -> None:
    """Build the module `r1fast_emulated` to the file `out`: the CUDA sources as C++, a fiber for each thread."""
    flags = [*COMMON, "-O1", *_includes(), "-DR1_EMULATION", "-DR1_MODULE=r1fast_emulated"]
    flags += ["-Wno-unknown-pragmas", "-DR1_WITH_CUDA", '-DR1_CUDA_TARGETS=\\"emulated\\"']
    if sys.platform == "darwin":  # for ucontext, which emulation/fiber.h takes where it is not x86-64
        flags += ["-D_XOPEN_SOURCE=600", "-D_DARWIN_C_SOURCE"]
    lines = [f"flags = {' '.join(flags)}"]
    lines += [*_rule("cxx", f"{cxx} $flags -MMD -MF $out.d -x c++ -c $in -o $out", depfile="$out.d")]
    patterns = (*HOST_SOURCES, "emulation/*.cpp", "cuda/*.cu")
    objects = [_compile(lines, "cxx", path) for pattern in patterns for path in sorted(CSRC.glob(pattern))]
    for path in sorted(CSRC.glob("cpu/per_isa/*.cpp")):
        lines += [f"build {path.name}.plain.o: cxx {_escape(path)}", "  flags = $flags -DR1_ISA=plain"]
        objects += [f"{path.name}.plain.o"]
    lines += _rule("link", f"{cxx} $in -o $out {_link_flags()}")
    lines += [f"build {_escape(out)}: link {' '.join(objects)}"]
    _ninja(lines, work)


def compile_sanitized(tools: Toolchain, sanitizers: str, driver: Path, out: Path, work: Path) -> None:
    """Build a program of `driver` and the host sources without the bindings, with `-fsanitize=` these, to `out`."""
    flags = ["-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Wno-psabi", f"-I{CSRC}"]
    flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *(f"-DR1_WITH_{isa}" for isa in tools.isas)]
    lines = [f"flags = {' '.join(flags)}"]
    lines += [*_rule("cxx", f"{tools.cxx} $flags $isa -MMD -MF $out.d -c $in -o $out", depfile="$out.d")]
    objects = [f"{driver.name}.o"]
    lines += [f"build {objects[0]}: cxx {_escape(driver)}"]
    patterns = [pattern for pattern in HOST_SOURCES if not pattern.startswith("bindings/")]
    objects += [_compile(lines, "cxx", path) for pattern in patterns for path in sorted(CSRC.glob(pattern))]
    objects += _compile_per_isa(lines, tools)
    lines += _rule("link", f"{tools.cxx} -fsanitize={sanitizers} $in -o $out {_program_link_flags()}")
    _ninja([*lines, f"build {_escape(out)}: link {' '.join(objects)}"], work)


def _compile_per_isa(lines: list[str], tools: Toolchain) -> list[str]:
    objects = []
    for path in sorted(CSRC.glob("cpu/per_isa/*.cpp")):
        for isa, isa_flags in tools.isas.items():
            text = " ".join(("-ffp-contract=off", f"-DR1_ISA={isa}", *isa_flags))
            objects += [_compile(lines, "cxx", path, suffix=f".{isa}", isa=text)]
    return objects


def _compile(lines: list[str], rule: str, path: Path, *, suffix: str = "", isa: str = "") -> str:
    target = f"{path.relative_to(CSRC)}{suffix}.o"
    lines += [f"build {target}: {rule} {_escape(path)}"] + ([f"  isa = {isa}"] if isa else [])
    return target


def _rule(name: str, command: str, *, depfile: str = "") -> list[str]:
    lines = [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
    return [*lines, f"  depfile = {depfile}", "  deps = gcc"] if depfile else lines


def _ninja(lines: list[str], work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    (work / "build.ninja").write_text("\n".join([*lines, ""]), encoding="utf-8")
    ninja = [path] if (path := _which("ninja")) else [sys.executable, "-m", "ninja"]
    done = subprocess.run([*ninja, "-C", str(work)], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(ninja)} in {work} failed:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")


def _includes() -> list[str]:
    import pybind11

    folders = [str(CSRC), sysconfig.get_path("include"), pybind11.get_include()]
    return [f"-I{CSRC}", *(f"-isystem {folder}" for folder in folders[1:])]


def _link_flags() -> str:
    return "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared -pthread -ldl"


def _program_link_flags() -> str:
    return "" if sys.platform == "darwin" else "-pthread -ldl"


def _which(name: str | None) -> str | None:
    return shutil.which(name) if name else None


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
