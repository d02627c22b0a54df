"""These tests run twice: as they are, and with TRITON_INTERPRET=1, where CPU tensors take the Triton kernels.

Only what a file says of `INTERPRETED` differs. The interpreter is slow: fewer examples by default.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import settings
from rounding import INTERPRETED

if INTERPRETED:
    from triton.language import core
    from triton.runtime import interpreter

    patch_all, first_builtin = interpreter._patch_builtin, {}

    def patch_once(package: Any, *more: Any) -> None:
        """Triton's interpreter looks through the whole language at every call inside a kernel: half of its time."""
        if package not in first_builtin:
            names = (name for name, member in inspect.getmembers(package) if core.is_builtin(member))
            first_builtin[package] = next(names, None)
        name = first_builtin[package]
        if name is not None and core.is_builtin(getattr(package, name)):
            patch_all(package, *more)

    interpreter._patch_builtin = patch_once
    if settings.get_current_profile_name() == "deterministic":
        settings.register_profile("interpreted", settings.get_profile("deterministic"), max_examples=12)
        settings.load_profile("interpreted")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # what numpy says of -inf, NaN and overflow, which the tests are about
        item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"))
