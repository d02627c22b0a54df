"""Saving without stopping: a copy of the state on the host, which a thread writes while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class BackgroundWriter:
    """One write at a time, in a thread; whoever begins the next one waits for it.

    What it raised is raised by the next `wait`, once, so that no write fails unnoticed. A process that ends without
    waiting still ends after its write.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._awaited = False
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def works_apart(self) -> bool:
        """Asked by a write: whether it is one of this writer's, and nobody waits for it."""
        return threading.current_thread() is self._thread and not self._awaited

    def start(self, write: Callable[[], None]) -> None:
        """Wait for the write before, and begin this one."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="r1fast save")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises what the write raised."""
        thread = self._thread
        if thread is not None:
            self._awaited = True
            thread.join()
            self._thread, self._awaited = None, False
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Wait at the end, also of work that failed: its error is the one that is raised, with a note of the write's.

        Work that was only stopped (SIGTERM) did not fail: then the write's error is raised.
        """
        try:
            yield
        except Exception as error:
            try:
                self.wait()
            except Exception as unsaved:
                error.add_note(f"and the state that was being written is not saved: {unsaved!r}")
            raise
        except BaseException:
            self.wait()
            raise
        self.wait()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error


def snapshot(state: Any) -> Any:
    """A copy of nested dicts, lists, tuples and tensors; tensors on the host, from a GPU into page-locked memory.

    What shares memory shares it in the copy, too. Other values are taken as they are: they must be immutable.
    """
    known: dict[Any, Tensor] = {}
    found = _copied(state, known)
    if any(key[0].type == "cuda" for key in known):
        torch.cuda.synchronize()  # all copies run beside each other until here
    return found


def state_bytes(state: Any) -> int:
    """Bytes of the tensors in it, each once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {_key(t): t for t in _tensors(state)}.values())


def _copied(value: Any, known: dict[Any, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = _key(value)
        if key not in known:
            known[key] = _on_host(value.detach())
        return known[key]
    if isinstance(value, Mapping):
        return {name: _copied(item, known) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item, known) for item in value)
    return value


def _on_host(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _key(tensor: Tensor) -> Any:
    """Of the memory that a tensor shows, and how."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
