"""The compiled objects: nothing of a richer instruction set may leak into the code that every CPU runs."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_no_function_is_shared_between_instruction_sets() -> None:
    """A weak symbol is kept once by the linker, perhaps the copy that was compiled for AVX-512."""
    objects = sorted((ROOT / "build" / f"csrc{sysconfig.get_config_var('EXT_SUFFIX')}").glob("cpu/per_isa/*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("needs the objects of a build in this checkout (pip install -e .) and nm")
    for path in objects:
        symbols = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout
        shared = [
            line for line in symbols.splitlines() if line[17:18] in "WVu" and "isa_" not in line and line[:16].strip()
        ]
        assert not shared, f"{path.name}: {shared}; see csrc/cpu/per_isa/isa_namespace.h"
