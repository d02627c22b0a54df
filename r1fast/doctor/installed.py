"""What is installed and built on this machine, with the command for what is missing; loads nothing but torch.

Libraries are found, not imported: importing DeepSpeed would build or load its ops, and a broken package must not break
its diagnosis.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from r1fast import __version__
from r1fast.apex import STATES, State, apex_state, remedy
from r1fast.doctor.line import Line, Status
from r1fast.doctor.sandbox import sandbox_lines
from r1fast.ops.extension import state

ROOT = Path(__file__).parents[2]
# Found where installed; nothing needs them. Distribution -> the command that installs it.
OPTIONAL = {
    "flash-attn": "pip install flash-attn --no-build-isolation",
    "liger-kernel": "pip install liger-kernel",
    "vllm": "pip install vllm",
    "peft": "pip install 'r1fast[lora]'",
    "bitsandbytes": "pip install 'r1fast[adam8bit]'",
}
APEX_STATUS: dict[State, Status] = {"absent": "-", "other": "warn", "unbuilt": "warn", "whole": "ok"}
TOOLS = {"g++": "apt install g++", "nvcc": "apt install nvidia-cuda-toolkit", "ninja": "pip install ninja"}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A distribution that r1fast needs: `bounds` such as ((">=", "2.11"), ("<", "2.14"))."""

    name: str
    bounds: tuple[tuple[str, str], ...]

    @property
    def spec(self) -> str:
        """As pip takes it: `torch>=2.11,<2.14`."""
        return self.name + ",".join(sign + version for sign, version in self.bounds)


def installed() -> Iterator[Line]:
    """Every check of the machine, cheapest first."""
    yield Line(status="ok", name="r1fast", value=f"{__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    yield _machine()
    for requirement in requirements():
        yield _required(requirement)
    yield from _accelerator()
    yield _extension()
    yield apex()
    for name, command in OPTIONAL.items():
        version = _version(name)
        found = Line(status="ok", name=name, value=version)
        yield found if version else Line(status="-", name=name, value="not installed; optional", fix=command)
    yield from sandbox_lines()
    for name, fix in TOOLS.items():
        path = shutil.which(name)
        needed = "; optional: builds extensions and DeepSpeed's ops"
        yield Line(status="ok" if path else "-", name=name, value=path or f"not found{needed}", fix="" if path else fix)


def requirements() -> list[Requirement]:
    """What r1fast needs on this platform: of the installed package, or of the checkout's pyproject.toml."""
    texts: list[str] = []
    pyproject = ROOT / "pyproject.toml"
    if pyproject.exists():
        texts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        texts = [text for text in metadata.requires("r1fast") or [] if "extra ==" not in text]
    return [requirement for text in texts if (requirement := read_requirement(text)) is not None]


def read_requirement(text: str) -> Requirement | None:
    """A requirement as pyproject.toml writes it; None where its `sys_platform` is another one than this."""
    spec, _, marker = (part.strip() for part in text.partition(";"))
    platform = re.search(r"sys_platform\s*==\s*['\"](\w+)['\"]", marker)
    if platform and platform.group(1) != sys.platform:
        return None
    name = re.match(r"[A-Za-z0-9._-]+", spec)
    assert name is not None, f"a requirement begins with a name: {text!r}"
    bounds = re.findall(r"(>=|<=|<|>|==)\s*([0-9][0-9A-Za-z.]*)", spec)
    # metadata sorts the bounds by their text; people read the lower one first
    return Requirement(name=name.group(), bounds=tuple(sorted(bounds, key=lambda bound: bound[0][0] != ">")))


def meets(version: str, bounds: tuple[tuple[str, str], ...]) -> bool:
    """Whether a version is within all bounds, by its numbers alone: `2.13.0+cpu` is 2.13."""
    found = _numbers(version)
    for sign, text in bounds:
        wanted = _numbers(text)
        width = max(len(found), len(wanted))
        pair = [numbers + (0,) * (width - len(numbers)) for numbers in (found, wanted)]
        order = (pair[0] > pair[1]) - (pair[0] < pair[1])
        if order not in {">=": (0, 1), "<=": (0, -1), ">": (1,), "<": (-1,), "==": (0,)}[sign]:
            return False
    return True


def apex() -> Line:
    """NVIDIA's apex with its CUDA kernels."""
    state = apex_state()
    value = STATES[state] + ("; optional: FusedAdam" if state == "absent" else "")
    return Line(status=APEX_STATUS[state], name="apex", value=value, fix=remedy(state))


def _required(requirement: Requirement) -> Line:
    version = _version(requirement.name)
    install = f"pip install '{requirement.spec}'"
    if not version:
        return Line(status="fail", name=requirement.name, value="not installed", fix=install)
    if not meets(version, requirement.bounds):
        return Line(status="warn", name=requirement.name, value=f"{version}, not tested with it", fix=install)
    if requirement.name == "deepspeed":
        return _deepspeed(version)
    return Line(status="ok", name=requirement.name, value=version)


def _deepspeed(version: str) -> Line:
    value = f"{version}, not loaded: its ops are built when it is first used"
    if shutil.which("g++") is None:
        return Line(status="warn", name="deepspeed", value=f"{value}, which needs g++", fix=TOOLS["g++"])
    return Line(status="ok", name="deepspeed", value=value)


def _accelerator() -> Iterator[Line]:
    """CUDA through torch, which must be there for anything to run."""
    if util.find_spec("torch") is None:
        return
    try:
        import torch
    except (ImportError, OSError) as error:
        value = f"installed, but it cannot be loaded: {str(error).splitlines()[0]}"
        yield Line(status="fail", name="torch", value=value, fix="pip install --force-reinstall torch")
        return
    has_card = Path("/dev/nvidia0").exists()
    if torch.version.cuda is None:
        if has_card:
            fix = "pip install 'torch' --index-url https://download.pytorch.org/whl/cu130"
            yield Line(status="warn", name="CUDA", value="an NVIDIA GPU is here, this PyTorch has no CUDA", fix=fix)
        else:
            yield Line(status="-", name="CUDA", value="no GPU, and a PyTorch without CUDA: everything runs on the CPU")
    elif not torch.cuda.is_available():
        value = f"PyTorch has CUDA {torch.version.cuda}, but no usable GPU or driver is here: runs go to the CPU"
        fix = "install or load NVIDIA's driver; nvidia-smi must list the GPU" if has_card else ""
        yield Line(status="warn" if has_card else "-", name="CUDA", value=value, fix=fix)
    else:
        for number in range(torch.cuda.device_count()):
            gpu: Any = torch.cuda.get_device_properties(number)
            free_bytes, total_bytes = torch.cuda.mem_get_info(number)
            memory = f"{free_bytes / 2**30:.0f} of {total_bytes / 2**30:.0f} GiB free"
            value = f"{torch.version.cuda}, GPU {number}: {gpu.name}, sm_{gpu.major}{gpu.minor}, {memory}"
            yield Line(status="ok" if gpu.major >= 8 else "warn", name="CUDA", value=value)
    kernels = "Triton kernels run on the GPU" if torch.cuda.is_available() else "PyTorch paths stand in for the kernels"
    yield Line(status="ok", name="kernels", value=kernels)


def _extension() -> Line:
    value, fix = state()
    return Line(status="warn" if fix else "ok", name="extension", value=value, fix=fix)


def _machine() -> Line:
    value = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPU cores"
    if util.find_spec("psutil") is not None:
        from r1fast.memory import available_bytes

        value += f", {available_bytes() / 2**30:.1f} GiB of memory available"
    return Line(status="ok", name="machine", value=value)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in release.group().split(".")) if release else (0,)
