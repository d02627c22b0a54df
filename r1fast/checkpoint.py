"""The saved state of an unfinished stage: files under `stages/NN-NAME/state/` that carry the SHA-256 of their bytes.

    step-00000040-SHA256.pt         everything the step after the 40th depends on; the newest ones are kept
    part-NAME-SHA256.pt             what a stage without steps has finished; all are kept
    elapsed.json                    seconds that the steps and parts so far took, over all launches

The hash is part of the name, so that one rename publishes both; `sha256sum` shows whether a file is whole. It is that
of the bytes that were written, not of what the disk returned: whatever changes them on the way is found, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from r1fast.atomic import atomic_file, sync_directory

_NAME = re.compile(r"(?P<kind>step|part)-(?P<name>.+)-(?P<sha256>[0-9a-f]{64})\.pt")


class StateFolder:
    """The state of the stage in `directory`; `warn` is told, with names, of files that had to be passed over.

    `beat` is called for every part of a file that is written. `keep`: states, the newest ones. One is enough to
    continue from; another is for a disk that returns something else.
    """

    def __init__(
        self, directory: Path, warn: Callable[[str], None], beat: Callable[[str], object] = len, *, keep: int = 2
    ) -> None:
        self.path = directory / "state"
        self._warn, self._beat, self._keep = warn, beat, keep

    def save(self, step: int, state: Any) -> None:
        """Write the state after `step`; the older ones stay until it is whole."""
        self._write(f"step-{step:08}", state)
        for path in self._files("step")[: -self._keep]:
            path.unlink()

    def newest(self) -> tuple[int, Path] | None:
        """The last step whose state is whole, and its file. None: the stage has to start again."""
        corrupt = []
        found = None
        for path in reversed(self._files("step")):
            if _is_whole(path):
                found = _step_of(path), path
                break
            corrupt.append(path)
        for path in corrupt:
            follows = f"going back to the state after step {found[0]}" if found else "the stage starts again"
            self._warn(f"{_set_aside(path)} is corrupt (its SHA-256 is not the one in its name): {follows}")
        return found

    def has_states(self) -> bool:
        """Whether there is any state to look at, whole or not."""
        return bool(self._files("step"))

    def save_part(self, name: str, part: Any) -> None:
        """Write a finished part."""
        self._write(f"part-{name}", part)

    def find_part(self, name: str) -> Path | None:
        """The file of a finished part; None if it has to be done (again)."""
        for path in self._files("part"):
            if _match(path)["name"] == name:
                if _is_whole(path):
                    return path
                self._warn(
                    f"{_set_aside(path)} is corrupt (its SHA-256 is not the one in its name): {name} is done again"
                )
        return None

    def save_elapsed(self, seconds: float) -> None:
        """Remember the time that led here."""
        with atomic_file(self.path / "elapsed.json") as file:
            json.dump({"wall_s": seconds}, file)

    def elapsed_s(self) -> float:
        """Seconds of earlier launches, without those that the interruption cost."""
        path = self.path / "elapsed.json"
        if not path.exists():
            return 0.0
        try:
            return float(json.loads(path.read_text(encoding="utf-8"))["wall_s"])
        except (ValueError, KeyError, TypeError):
            self._warn(f"{path} is corrupt: the stage's wall_s will lack the time before this launch")
            return 0.0

    def drop(self) -> None:
        """Forget everything: the stage is finished."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, value: Any) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._drop_partials()
        partial, hashed = self.path / f"{name}.partial", _Hashed(self._beat)
        try:
            with partial.open("wb") as file:
                hashed.file = file
                torch.save(value, cast("IO[bytes]", hashed))  # it writes in order and never seeks
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / f"{name}-{hashed.sha256.hexdigest()}.pt")
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if hashed.error is not None and error is not hashed.error:
                raise hashed.error from error  # torch's writer says "unexpected pos" where the disk is full
            raise
        sync_directory(self.path)

    def _drop_partials(self) -> None:
        """What killed writes have left: each as large as a state, under the name of a step that may not be saved again.

        None is being written: only rank 0 of the run that holds the directory's lock writes states, whole ones also
        where ZeRO shares them out, and one at a time (`BackgroundWriter`, `SafePoint`).
        """
        for kind in ("step", "part"):
            for left in self.path.glob(f"{kind}-*.partial"):
                left.unlink(missing_ok=True)

    def _files(self, kind: str) -> list[Path]:
        """Whole or corrupt, not the partial ones, by name and so by step; of one name the newest comes last."""
        paths = list(self.path.glob(f"{kind}-*.pt"))
        return sorted(
            (path for path in paths if _NAME.fullmatch(path.name)),
            key=lambda path: (_match(path)["name"], path.stat().st_mtime_ns),
        )


class _Hashed:
    """Writes to `file`, with a `beat` for every part; the SHA-256 of what was written, and the error that ended it."""

    def __init__(self, beat: Callable[[str], object]) -> None:
        self.file: IO[bytes] | None = None
        self.sha256, self._beat = hashlib.sha256(), beat
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        assert self.file is not None
        self._beat("part of a state written")
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        assert self.file is not None
        self.file.flush()


def read_state(path: Path, *, mapped: bool = False) -> Any:
    """What was saved, on the CPU; code in the file is not run.

    `mapped`: tensors are read from the file when they are used, by processes of a host into the same memory.
    """
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)


def _match(path: Path) -> re.Match[str]:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return match


def _step_of(path: Path) -> int:
    return int(_match(path)["name"])


def _is_whole(path: Path) -> bool:
    return _sha256(path) == _match(path)["sha256"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _set_aside(path: Path) -> Path:
    """Out of the way under its name with `.corrupt`, for whoever wants to know what happened to it."""
    return path.replace(path.with_name(f"{path.name}.corrupt"))
