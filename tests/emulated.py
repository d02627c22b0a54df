"""csrc/compile.py, and the CUDA kernels compiled to run on the host with a fiber for each thread."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"


def load(name: str, path: Path) -> ModuleType:
    """A module from a file that is in no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def compiler() -> ModuleType:
    """csrc/compile.py."""
    return load("r1fast_compile", CSRC / "compile.py")


@functools.cache
def emulated() -> ModuleType:
    """The extension with its CUDA kernels emulated on the host; built once for each state of the sources."""
    tools = compiler().find_toolchain("0")
    if tools is None:
        pytest.skip("needs a C++17 compiler to build the emulated kernels: apt-get install g++")
    digest = hashlib.sha256()
    for path in sorted(path for path in CSRC.glob("**/*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(path.read_bytes())
    work = ROOT / "build" / "emulated"
    out = work / f"{digest.hexdigest()[:16]}" / f"r1fast_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not out.exists():
        for old in work.glob("*/r1fast_emulated*"):
            shutil.rmtree(old.parent)
        out.parent.mkdir(parents=True, exist_ok=True)
        compiler().compile_emulated(tools.cxx, out, work)
    return load("r1fast_emulated", out)
