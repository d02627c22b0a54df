"""The other processes of a step that several take together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any


def start_others(options: dict[str, Any]) -> list[subprocess.Popen[str]]:
    """The other ranks, which get the questions that this process gets; none for one process, or in one of them."""
    processes = options.get("processes", 1)
    if processes == 1 or "RANK" in os.environ:
        return []
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port.getsockname()[1]))
    os.environ.update(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes), RANK="0", LOCAL_RANK="0")
    return [
        subprocess.Popen(
            [sys.executable, "-m", "bench.step_worker", json.dumps(options)],
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(1, processes)
    ]
