"""sanitized.cpp under AddressSanitizer with UBSan, and under ThreadSanitizer: nothing may be found."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from emulated import ROOT, compiler

DRIVER = Path(__file__).with_name("sanitized.cpp")


def build(sanitizers: str) -> Path:
    """The program, built where it is out of date."""
    tools = compiler().find_toolchain("0")
    if tools is None:
        pytest.skip("needs a C++17 compiler: apt-get install g++")
    work = ROOT / "build" / f"sanitized-{sanitizers.replace(',', '-')}"
    try:
        compiler().compile_sanitized(tools, sanitizers, DRIVER, work / "sanitized", work)
    except compiler().BuildError as error:
        if "cannot find" in str(error) or "unsupported option" in str(error):
            pytest.skip(f"this compiler has no sanitizers: {str(error)[-200:]}")
        raise
    return work / "sanitized"


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_sanitizers_find_nothing(sanitizers: str) -> None:
    program = str(build(sanitizers))
    environment = os.environ | {
        "ASAN_OPTIONS": "detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    if "unexpected memory mapping" in done.stderr and shutil.which("setarch"):  # too much ASLR for this compiler's TSan
        done = subprocess.run(["setarch", "-R", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    assert done.stdout == "nothing found\n"
