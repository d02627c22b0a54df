"""Two hosts on one machine: network namespaces with a switch between them, whose cable to the second can be pulled."""

from __future__ import annotations

import os
import subprocess
from types import TracebackType

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Hosts:
    """Context manager; skips the test where namespaces or the interfaces are not to be had."""

    def __init__(self) -> None:
        self.names = tuple(f"r1fast{os.getpid()}{end}" for end in ("a", "b"))
        self.switch = f"r1fast{os.getpid()}s"

    def __enter__(self) -> Hosts:
        try:
            for name in (*self.names, self.switch):
                _ip("netns", "add", name)
            self._connect()
        except FileNotFoundError:
            pytest.skip("needs the ip command for network namespaces: apt-get install iproute2")
        except subprocess.CalledProcessError as error:
            self.__exit__(None, None, None)
            pytest.skip(f"needs the right to make network namespaces: {error.stderr.strip()}")
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def command(self, number: int, *words: str) -> list[str]:
        """What runs `words` on a host."""
        return ["ip", "netns", "exec", self.names[number], *words]

    def cut(self) -> None:
        """Packets are lost without a word, as when a switch fails: no interface goes down, no connection is refused."""
        _ip("-n", self.switch, "link", "set", "port1", "nomaster")

    def restore(self) -> None:
        """The cable is back."""
        _ip("-n", self.switch, "link", "set", "port1", "master", "bridge0")

    def _connect(self) -> None:
        _ip("-n", self.switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge0", "up")
        for number, (name, address) in enumerate(zip(self.names, ADDRESSES, strict=True)):
            port = f"port{number}"
            _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", self.switch)
            _ip("-n", self.switch, "link", "set", port, "up", "master", "bridge0")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", name, "link", "set", interface, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
