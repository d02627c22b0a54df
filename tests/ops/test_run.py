"""The choice of the op for a device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from r1fast.ops import run


def test_the_cpu_op_gets_as_many_threads_as_pytorch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, int]] = []
    module = SimpleNamespace(kv_append_cpu=lambda params, threads: calls.append((params, threads)))
    monkeypatch.setattr(run, "extension", lambda: module)
    run.run("kv_append", "params", torch.empty(1))
    assert calls == [("params", torch.get_num_threads())]


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kv_append runs on CPU and CUDA tensors, these are on meta"):
        run.run("kv_append", None, torch.empty(1, device="meta"))
