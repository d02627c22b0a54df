"""The ops as torch.compile sees them: opaque, and it knows which tensors they write to.

Outside a compiled function they are called as they are, because PyTorch's dispatcher takes 20 us for each call.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, ParamSpec, get_type_hints

import torch
from torch import Tensor

from r1fast.kernels.library import LIBRARY

Parameters = ParamSpec("Parameters")
REGISTERED: set[str] = set()  # names of the ops, which may be captured in CUDA graphs
# Each sort of argument in the language of PyTorch's schemas.
TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "int",
    float: "float",
    float | None: "float?",
}


def compiled_op(*, writes: tuple[str, ...]) -> Callable[[Callable[Parameters, None]], Callable[Parameters, None]]:
    """Register a function that returns nothing as `r1fast::NAME`; the result calls that where torch.compile traces.

    Dataclasses among its arguments become an argument for each of their fields. `writes` names the tensors that it
    writes to, those of a dataclass as `plan.status`. The function may be captured in a CUDA graph.
    """

    def register(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
        name = function.__name__
        signature, hints = inspect.signature(function), get_type_hints(function)
        classes = {argument: hints[argument] for argument in signature.parameters if is_dataclass(hints[argument])}
        members = {argument: tuple(field.name for field in fields(made)) for argument, made in classes.items()}
        keywords = [key for key, value in signature.parameters.items() if value.kind is value.KEYWORD_ONLY]

        def run(*flat: Any) -> None:
            values, arguments = iter(flat), {}
            for argument in signature.parameters:
                if argument in classes:
                    parts = {member: next(values) for member in members[argument]}
                    arguments[argument] = classes[argument](**parts)
                else:
                    arguments[argument] = next(values)
            options = {key: arguments.pop(key) for key in keywords}
            function(*arguments.values(), **options)

        LIBRARY.define(f"{name}({_schema(classes, hints, list(signature.parameters), writes)}) -> ()")  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"r1fast::{name}", lambda *flat: None, lib=LIBRARY)
        REGISTERED.add(name)
        registered = getattr(torch.ops.r1fast, name).default
        names = tuple(signature.parameters)
        defaults = {key: value.default for key, value in signature.parameters.items()}

        @functools.wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
            if not torch.compiler.is_compiling():
                return function(*args, **kwargs)
            given: dict[str, Any] = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            flat = []
            for argument in names:
                value = given[argument]
                flat += [getattr(value, member) for member in members[argument]] if argument in members else [value]
            return registered(*flat)  # type: ignore[no-any-return]

        return call

    return register


def _schema(classes: dict[str, Any], hints: dict[str, Any], names: list[str], writes: tuple[str, ...]) -> str:
    """The arguments as PyTorch's schemas list them, with a mark at each tensor that is written to."""
    listed: list[tuple[str, Any]] = []
    for argument in names:
        if argument in classes:
            sorts = get_type_hints(classes[argument])
            listed += [(f"{argument}.{field.name}", sorts[field.name]) for field in fields(classes[argument])]
        else:
            listed.append((argument, hints[argument]))
    unknown = set(writes) - {path for path, _ in listed}
    assert not unknown, f"no arguments: {unknown}"
    text: list[str] = []
    for path, sort in listed:
        mark = f"(a{len(text)}!)" if path in writes else ""
        text.append(f"{TYPES[sort].replace('Tensor', 'Tensor' + mark)} {path.replace('.', '_')}")
    return ", ".join(text)
