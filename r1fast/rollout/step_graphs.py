"""The decode step as CUDA graphs: the host launches one thing a token, however many layers the model has."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable
from pathlib import Path

import torch

from r1fast.rollout import host_reads

WARM_UPS = 2  # libraries make their handles and workspaces in the first run on a stream, kernels load in it
TURN_OFF = "set rollout.cuda_graphs = false (RolloutEngine: cuda_graphs=False)"


def bucket_rows(capacity: int) -> list[int]:
    """Rows of the graphs for up to `capacity` rows: 16, 32, 48, 64, 96, 128, 192 and so on, the last `capacity`.

    A step of fewer rows runs the next one, of which a third at most rests. Sixteen rows are one tile of a tensor core.
    """
    found, size = [], 16
    while size < capacity:
        found.append(size)
        size += 16 if size < 64 else 1 << (size.bit_length() - 2)
    return [*found, capacity]


class StepGraphs:
    """One graph for each kind of step. They share their memory, so one runs at a time, and hold every address.

    What a step gives is in buffers that are not the graphs' own; nothing else may look at their memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __contains__(self, kind: Hashable) -> bool:
        return kind in self._graphs

    def __len__(self) -> int:
        return len(self._graphs)

    def replay(self, kind: Hashable) -> None:
        """Run a captured step on the current stream."""
        self._graphs[kind].replay()

    def clear(self) -> None:
        """Forget all: something that they read is elsewhere now."""
        self._graphs.clear()

    def capture(self, kind: Hashable, step: Callable[[], None]) -> None:
        """Run `step` twice, so it must change nothing that counts, then capture it. The largest kind comes first.

        Raises RuntimeError with the operation that no graph can hold, and how to do without graphs.
        """
        graph = torch.cuda.CUDAGraph()
        shared = next((other.pool() for other in self._graphs.values()), None)
        try:
            with torch.cuda.device(self.device):
                caller = torch.cuda.current_stream()
                self._stream.wait_stream(caller)
                with torch.cuda.stream(self._stream):
                    with host_reads.NoHostReads():  # type: ignore[no-untyped-call]
                        for _ in range(WARM_UPS):
                            step()
                    # the same stream: handles are one's own; other threads (NCCL's) may go on as they like
                    with torch.cuda.graph(graph, pool=shared, stream=self._stream, capture_error_mode="thread_local"):
                        step()
                caller.wait_stream(self._stream)
        except torch.cuda.OutOfMemoryError:
            raise  # the machine's fault, and said clearly
        except RuntimeError as error:
            raise RuntimeError(f"the decode step cannot be a CUDA graph: {_origin(error)}; {TURN_OFF}") from error
        self._graphs[kind] = graph


def _origin(error: BaseException) -> str:
    """The first of the errors that led to this one, and the line of code that it came from."""
    while error.__context__ is not None:  # ending a capture that has failed fails, too
        error = error.__context__
    frames = traceback.extract_tb(error.__traceback__)
    watch = (str(Path(torch.__file__).parent), host_reads.__file__)  # how it was found, not where it is
    where = next((frame for frame in reversed(frames) if not frame.filename.startswith(watch)), frames[-1])
    text = " ".join(str(error).split("\n")[0].split())
    return f"{text} (in {where.name}, {where.filename}:{where.lineno}: {where.line})"
