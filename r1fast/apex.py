"""NVIDIA's apex: found without being imported. The package of that name on PyPI is a toolkit for Pyramid."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Literal

INSTALL = (
    "git clone https://github.com/NVIDIA/apex && cd apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "
    "pip install -v --no-build-isolation ."
)
# What is there -> what it means.
STATES = {
    "absent": "NVIDIA's is not installed",
    "other": "another package of that name (PyPI's Pyramid toolkit), not NVIDIA's",
    "unbuilt": "NVIDIA's, built without its CUDA kernels (no amp_C): apex.optimizers.FusedAdam cannot run",
    "whole": "NVIDIA's, with apex.optimizers.FusedAdam and amp_C",
}
State = Literal["absent", "other", "unbuilt", "whole"]


def apex_state() -> State:
    """Which apex is installed."""
    spec = util.find_spec("apex")
    if spec is None:
        return "absent"
    if not any((Path(f) / "optimizers" / "fused_adam.py").exists() for f in spec.submodule_search_locations or []):
        return "other"
    return "whole" if util.find_spec("amp_C") else "unbuilt"


def remedy(state: State) -> str:
    """The command that gives NVIDIA's apex; empty where it is there."""
    if state == "whole":
        return ""
    return INSTALL if state == "absent" else f"pip uninstall apex; {INSTALL}"
