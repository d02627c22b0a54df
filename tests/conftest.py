"""Hypothesis profiles, and what happens to tests marked `slow` and `gpu`.

`pytest` is deterministic. `pytest --hypothesis-profile=thorough` draws many new examples; `pytest --slow` adds the
long tests.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported: the tests' tensors are tiny, and idle OpenMP threads that spin slow everything else.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A rollout of the recipes takes two: beside other tests, one that spins keeps the other from its turn.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import HealthCheck, settings

from bench.chromium import Chromium, Page, find_chromium

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


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """One browser for all tests that look at pages."""
    if find_chromium() is None:
        pytest.skip("needs a browser to open pages in, there is none here: apt-get install chromium")
    with Chromium() as browser:
        yield browser


@pytest.fixture
def opened(chromium: Chromium) -> Iterator[Callable[..., Page]]:
    """Opens pages at a size; afterwards none may have complained, or have asked for anything but itself."""
    pages: list[tuple[Page, Path]] = []

    def open_page(path: Path, size: tuple[int, int] = (1280, 900), *, dark: bool = False) -> Page:
        pages.append((chromium.open(path, width=size[0], height=size[1], dark=dark), path))
        return pages[-1][0]

    yield open_page
    for page, path in pages:
        assert page.errors == []
        assert [url for url in page.requests if url not in (path.resolve().as_uri(), "data:,")] == []
        page.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with these options; skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)
