"""These tests run twice: as they are, and with TRITON_INTERPRET=1, where CPU tensors take the Triton kernels.

Only what a file says of `INTERPRETED` differs. The interpreter is slow: fewer examples by default.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED and settings.get_current_profile_name() == "deterministic":
    settings.register_profile("interpreted", settings.get_profile("deterministic"), max_examples=12)
    settings.load_profile("interpreted")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # what the numpy underneath says of -inf, NaN and overflow, which the tests are about
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"))
