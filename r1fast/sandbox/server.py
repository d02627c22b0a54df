"""The process that forks programs: clean of tests' answers, so that a program finds none in the memory it inherits.

Protocol over stdin and stdout, one JSON object a line, one request at a time. It first says `{"directory", "layers"}`.
Requests: `{"source", "language"}` replaces the program; `{"stage", "limits", "stdin", "test"}` runs it and is
answered by the fields of `client.Ended`. When its stdin closes it kills what runs, removes its directory and ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r1fast.sandbox import landlock, seccomp
from r1fast.sandbox.confine import Limits, drop_capabilities, unshare_network
from r1fast.sandbox.layers import Layers
from r1fast.sandbox.program import SOURCES, Program, connect

TICK_MS = 20  # between looks at what the kernel does not limit: threads and files
MAX_THREADS = 64
MAX_FILES, MAX_BYTES = 256, 64 << 20
MAX_COMPILED_BYTES = 256 << 20
# What most programs import: once, here.
PRELOADED = ("bisect", "collections", "functools", "heapq", "itertools", "math", "random", "re", "string", "typing")
STRAYS_S = 0.5  # most time for processes that left their group; a kernel need not tell which they are
SHOWN_BYTES = 2000  # of stderr
_PR_SET_CHILD_SUBREAPER, _PR_SET_DUMPABLE = 36, 4


class Server:
    """The loop; `serve` returns a program in the process that shall run it, and None at the end of this one."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.directory = tempfile.mkdtemp(prefix="r1fast-program-")
        self.work = os.path.join(self.directory, "work")
        self.language = "python"
        self.source = os.path.join(self.directory, "source")
        for part in (self.work, self.source):
            os.mkdir(part)
        # Bare descriptors: in a forked process no object may close one that is the program's by then.
        self._streams = [_scratch_file(self.directory) for _ in range(4)]
        self._unread = b""
        self._woken, wake = os.pipe()
        for end in (self._woken, wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of `close`
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        _own_descendants()
        self.layers = probe()

    def serve(self) -> Program | None:
        """Answer requests until stdin closes."""
        self._say({"directory": self.directory, "layers": asdict(self.layers)})
        while (request := self._read()) is not None:
            if "source" in request:
                self._replace(request["language"], request["source"])
                self._say({})
                continue
            program = self._run(request)
            if program is not None:
                return program
        return None

    def close(self) -> None:
        """Remove everything; only in the process of the server itself."""
        if os.getpid() == self.pid:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _replace(self, language: str, source: str) -> None:
        _make_empty(self.source)
        self.language = language
        Path(self.source, SOURCES[language]).write_text(source, encoding="utf-8")

    def _run(self, request: dict[str, Any]) -> Program | None:
        limits = Limits(**request["limits"])
        for stream in self._streams:
            os.ftruncate(stream, 0)
            os.lseek(stream, 0, os.SEEK_SET)
        _write_all(self._streams[0], request["stdin"].encode("utf-8", "surrogateescape"))
        os.lseek(self._streams[0], 0, os.SEEK_SET)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            return self._become(request, limits)
        with contextlib.suppress(OSError):  # it has done so itself, or is gone
            os.setpgid(pid, pid)
        reason, code, cpu_s = self._watch(pid, limits, compiles=request["stage"] == "build")
        _make_empty(self.work)  # no test sees what another left
        if reason != "gone":
            answer = {"reason": reason, "code": code, "cpu_s": cpu_s, "wall_s": time.monotonic() - began}
            self._say(answer | _outputs(self._streams[1:], limits.file_bytes))
        return None

    def _become(self, request: dict[str, Any], limits: Limits) -> Program:
        """In the forked process: leave all behind that is the server's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        directory = self.source if request["stage"] == "build" else self.work
        os.chdir(directory)
        connect(*self._streams)
        return Program(
            stage=request["stage"],
            language=self.language,
            directory=directory,
            source=self.source,
            limits=limits,
            layers=self.layers,
            test=request["test"],
        )

    def _watch(self, pid: int, limits: Limits, *, compiles: bool) -> tuple[str, int, float]:
        """Wait for the end, or bring it about: (reason, exit status or -signal, CPU seconds)."""
        reason, deadline = "exit", time.monotonic() + limits.wall_s
        poller = select.poll()
        poller.register(0, 0)  # reports only that the other end has closed
        poller.register(self._woken, select.POLLIN)
        while True:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                break
            if reason == "exit":
                reason = self._excess(pid, compiles) or ("wall" if time.monotonic() >= deadline else "exit")
            if reason != "exit":
                _kill(pid)
            for descriptor, _ in poller.poll(TICK_MS):
                if descriptor == 0:
                    reason = "gone"
                    poller.unregister(0)
                else:
                    os.read(self._woken, 4096)
        _kill(pid)  # what of its group outlives it
        _kill_strays()
        cpu_s = usage.ru_utime + usage.ru_stime
        code = os.waitstatus_to_exitcode(status)
        if reason == "exit" and (code == -signal.SIGXCPU or cpu_s > limits.cpu_s):
            reason = "cpu"
        return reason, code, cpu_s

    def _excess(self, pid: int, compiles: bool) -> str:
        """What of the things that no kernel limit counts there is too much of."""
        with contextlib.suppress(OSError):  # no /proc, or it has just ended
            if len(os.listdir(f"/proc/{pid}/task")) > MAX_THREADS:
                return "threads"
        num_files = num_bytes = 0
        with contextlib.suppress(OSError), os.scandir(self.source if compiles else self.work) as entries:
            for entry in entries:
                num_files += 1
                with contextlib.suppress(OSError):
                    num_bytes += entry.stat(follow_symlinks=False).st_size
        return "files" if num_files > MAX_FILES or num_bytes > (MAX_COMPILED_BYTES if compiles else MAX_BYTES) else ""

    def _read(self) -> dict[str, Any] | None:
        parts = [self._unread]
        while b"\n" not in parts[-1]:
            self._await_input()
            received = os.read(0, 1 << 20)
            if not received:
                return None
            parts.append(received)
        line, _, self._unread = b"".join(parts).partition(b"\n")
        request: dict[str, Any] = json.loads(line)
        return request

    def _await_input(self) -> None:
        """Until there is something to read. A signal just before it ends this wait, too; a read would go on."""
        poller = select.poll()
        for descriptor in (0, self._woken):
            poller.register(descriptor, select.POLLIN)
        while all(descriptor != 0 for descriptor, _ in poller.poll()):
            os.read(self._woken, 4096)

    def _say(self, answer: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the other end is gone: the next read ends the loop
            _write_all(1, json.dumps(answer).encode() + b"\n")


def probe() -> Layers:
    """Try the layers, each in a process of its own."""
    filtered = seccomp.supported() and _succeeds(_try_filter)
    files = landlock.abi() if _succeeds(_try_landlock) else 0
    return Layers(seccomp=filtered, landlock=files, netns=not filtered and _succeeds(unshare_network))


def _try_filter() -> None:
    import socket

    seccomp.install(read_only=True)
    for act in (os.fork, socket.socket):
        try:
            act()
        except PermissionError:
            continue
        os._exit(1)


def _try_landlock() -> None:
    drop_capabilities()
    landlock.restrict(read=["/usr"], write=[])
    try:
        os.listdir("/")
    except PermissionError:
        return
    os._exit(1)


def _succeeds(act: Any) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _scratch_file(directory: str) -> int:
    path = os.path.join(directory, "stream")
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    return opened


def _make_empty(directory: str) -> None:
    """Of the plain files that a program may make; of anything else where no Landlock kept it from that."""
    if os.listdir(directory):
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _outputs(streams: list[int], limit: int) -> dict[str, str]:
    """Standard output, the end of standard error, and what came on the descriptor of results."""
    stdout, result = (os.pread(stream, limit + 1, 0) for stream in (streams[0], streams[2]))
    size = os.fstat(streams[1]).st_size
    stderr = os.pread(streams[1], SHOWN_BYTES, max(0, size - SHOWN_BYTES))
    texts = {"stdout": stdout, "stderr": stderr, "result": result}
    return {name: text.decode("utf-8", "replace") for name, text in texts.items()}


def _kill(pid: int) -> None:
    for end in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(pid, signal.SIGKILL)


def _own_descendants() -> None:
    """Become the parent of orphans below, and closed to debuggers of the same user."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))
        libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0))


def _kill_strays() -> None:
    """End and collect what left the group of its program; without seccomp a program can do that."""
    deadline = time.monotonic() + STRAYS_S
    with contextlib.suppress(ChildProcessError):  # none is left
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
                    _kill(int(child))
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)


def main() -> None:
    """Serve; in a forked process, run its program."""
    for name in PRELOADED:
        importlib.import_module(name)
    server = Server()
    gc.freeze()  # a collection in a forked process need not touch, and so copy, what is here
    program = None
    try:
        program = server.serve()
    finally:
        server.close()
    if program is not None:
        program.finish()
