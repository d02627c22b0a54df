"""Opening rows by name: a file by its suffix, several by a pattern, a directory, or a data set of the hub."""

from __future__ import annotations

import glob
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from r1fast.data.lines import JsonLines
from r1fast.data.rows import Fault, Row, Rows
from r1fast.data.tables import HubRows, ParquetRows, is_saved
from r1fast.templates import RECIPES

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def open_rows(name: str, columns: Sequence[str] | None = None) -> Rows:
    """The rows of `name`; of a table only `columns` (None: all).

    A file ending in .jsonl, .jsonl.gz or .parquet; a pattern of such (`part-*.parquet`), joined in the order of their
    names; a directory of such files, or one that `datasets` saved (`DIRECTORY#SPLIT`); a file that lies with the
    recipes; else a data set of the hub, `OWNER/NAME[:SUBSET][#SPLIT]`. Raises ValueError for what is not there or
    cannot be read.
    """
    path = Path(name).expanduser()
    if any(sign in name for sign in "*?["):
        found = sorted(glob.glob(str(path)))
        if not found:
            raise ValueError(f"{name}: no file matches; check the pattern and the directory")
        return _joined([Path(file) for file in found], columns)
    if path.is_dir():
        if is_saved(path):
            return HubRows(str(path), columns)
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise ValueError(f"{name}: a directory without {', '.join(SUFFIXES)} or a saved data set; name a file")
        return _joined(files, columns)
    if path.exists() or name.endswith(SUFFIXES):
        beside = RECIPES / name
        return _open_file(beside if beside.is_file() and not path.exists() else path, columns)
    if "#" in name and is_saved(Path(name.partition("#")[0]).expanduser()):
        return HubRows(name, columns)
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ValueError(f"{name}: cannot read (No such file or directory); give an existing file")
    return HubRows(name, columns)


def _open_file(path: Path, columns: Sequence[str] | None) -> Rows:
    if path.suffix == ".parquet":
        return ParquetRows(path, columns)
    return JsonLines(path)


def _joined(paths: list[Path], columns: Sequence[str] | None) -> Rows:
    parts = [_open_file(path, columns) for path in paths]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


class JoinedRows:
    """Several `Rows` one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.name = parts[0].name
        self._parts = parts
        self._starts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, place: int) -> Row:
        part, inside = self._find(place)
        return part[inside]

    def scan(self) -> Iterator[tuple[int, Row | Fault]]:
        """The rows of every part, in order."""
        for start, part in zip(self._starts, self._parts, strict=False):
            for place, row in part.scan():
                yield start + place, row

    def where(self, place: int) -> str:
        """Where the part says it is."""
        part, inside = self._find(place)
        return part.where(inside)

    def _find(self, place: int) -> tuple[Rows, int]:
        number = bisect_right(self._starts, place) - 1
        return self._parts[number], place - self._starts[number]
