"""Hypothesis profiles, and what happens to tests marked `slow` and `gpu`.

`pytest` is deterministic. `pytest --hypothesis-profile=thorough` draws many new examples; `pytest --slow` adds the
long tests.
"""

from __future__ import annotations

import os

# Before torch is imported: the tests' tensors are tiny, and idle OpenMP threads that spin slow everything else.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,  # the first call of an op compiles or loads something
    max_examples=50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("deterministic")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests marked slow, too")


def pytest_report_header() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none, tests marked gpu are skipped"
    path = "interpreted" if os.environ.get("TRITON_INTERPRET") == "1" else "TRITON_INTERPRET=1 pytest tests/kernels"
    return f"torch {torch.__version__}, gpu: {device}, Triton kernels on the CPU: {path}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs a CUDA GPU, there is none here")
    not_asked = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(not_asked)
