"""The ops as torch.compile sees them: opaque, with shapes. Inside, they loop, read values and launch kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("r1fast", "FRAGMENT")  # type: ignore[no-untyped-call]


def op(schema: str, *, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as `r1fast::NAME`, by its schema; `fake` returns empty outputs of the right shapes.

    The result calls the op where torch.compile traces, and the function itself elsewhere. The op has no autograd
    formula: an autograd.Function calls it.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        # Left out of the CUDA graphs that mode="reduce-overhead" captures: an op may wait for the GPU (a mask's number
        # of tokens), and the loss's counter belongs to no graph.
        LIBRARY.define(schema, tags=(torch.Tag.cudagraph_unsafe,))  # type: ignore[no-untyped-call]
        name = schema.partition("(")[0]
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"r1fast::{name}", fake, lib=LIBRARY)
        registered = getattr(torch.ops.r1fast, name).default

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            return registered(*args) if torch.compiler.is_compiling() else function(*args)

        return call

    return register
