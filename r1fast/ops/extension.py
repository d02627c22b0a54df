"""The compiled extension r1fast._C: loaded when an operation first needs it, with one line where it is missing."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType

INSTALL = "pip install -e ."
INSTALL_CUDA = "R1FAST_CUDA=1 pip install -e ."


@functools.cache
def extension() -> ModuleType:
    """r1fast._C. Raises RuntimeError with the command that builds it where it is missing or cannot be loaded."""
    try:
        return importlib.import_module("r1fast._C")
    except ImportError as error:
        reason = "is not built" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise RuntimeError(f"r1fast._C {reason}; it needs a C++17 compiler: {INSTALL}") from error


def cuda_targets() -> str:
    """What the CUDA kernels were compiled for, such as `sm_80,sm_90,compute_90`; empty where there are none."""
    return str(extension().build_info()["cuda_targets"])


def state() -> tuple[str, str]:
    """One line about the extension, and the command that repairs it: empty where nothing is to be done."""
    try:
        info = extension().build_info()
    except RuntimeError as error:
        return str(error).partition(";")[0], INSTALL
    value = f"r1fast._C, CPU code for {', '.join(info['isas'])} (here {info['isa']})"
    if info["cuda_targets"]:
        return f"{value}, CUDA kernels for {info['cuda_targets']}", ""
    if Path("/dev/nvidia0").exists():
        return f"{value}, without the CUDA kernels, and an NVIDIA GPU is here", INSTALL_CUDA
    return f"{value}, no CUDA kernels", ""
