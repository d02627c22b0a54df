"""The ops run several ways on CPU tensors: by each instruction set of this CPU, and by the CUDA kernels, emulated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from emulated import emulated

from r1fast.ops import decode_plan, extension, kv_append, kv_copy, paged_decode, sample, sequence_step

EMULATED = "emulated"
BACKENDS = ("plain", "avx2", "avx512", "avx512_bf16", EMULATED)


@contextmanager
def using(backend: str) -> Iterator[None]:
    """The ops use this backend; skips where the CPU or the build has none such."""
    if backend == EMULATED:
        with _emulating():
            yield
        return
    module = extension.extension()
    before = module.build_info()["isa"]
    try:
        module.select_isa(backend)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        yield
    finally:
        module.select_isa(before)


@contextmanager
def _emulating() -> Iterator[None]:
    def run(op: str, params: Any, like: torch.Tensor) -> None:
        assert like.device.type == "cpu"
        getattr(emulated(), f"{op}_cuda")(params, 0)

    with ExitStack() as patches:
        for module in (decode_plan, kv_append, kv_copy, paged_decode, sample, sequence_step):
            patches.enter_context(patch.object(module, "extension", emulated))
            patches.enter_context(patch.object(module, "run", run))
        yield
