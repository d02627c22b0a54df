"""One check, one line: ok, `-` (optional and absent), warn or fail; what was found; how to repair it."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Literal

Status = Literal["ok", "-", "warn", "fail"]
COLOURS: dict[Status, str] = {"ok": "32", "-": "2", "warn": "33", "fail": "31"}
NAME_WIDTH = 16
COMMAND = re.compile(r"(?:^|(?<=: ))(?:apt|git|pip|py-spy|python|torchrun) ")  # of a shell, up to the end of the fix


@dataclass(frozen=True, kw_only=True)
class Line:
    """`value` is what was found, with figures; `fix` a command or an option, empty where there is nothing to do."""

    status: Status
    name: str
    value: str
    fix: str = ""


def show(lines: Iterable[Line], stream: IO[str] | None = None) -> bool:
    """Print each line as it comes; True unless one of them is a fail.

    In a terminal it is coloured and wrapped, elsewhere a check and its fix are a line each, for grep. A command is
    never wrapped: it must survive copy and paste.
    """
    stream = sys.stdout if stream is None else stream
    terminal, width = stream.isatty(), shutil.get_terminal_size().columns
    passed = True
    for line in lines:
        passed = passed and line.status != "fail"
        head = f"{line.status:<5} {line.name:<{NAME_WIDTH}} "
        indent = " " * len(head)
        texts = [head + line.value] + ([f"{indent}-> {line.fix}"] if line.fix else [])
        if terminal:
            texts = _wrap(head + line.value, width, indent) + (_fix_rows(line.fix, width, indent) if line.fix else [])
            texts[0] = f"\x1b[{COLOURS[line.status]}m{texts[0][:5]}\x1b[0m{texts[0][5:]}"
        print("\n".join(texts), file=stream, flush=True)
    return passed


def _fix_rows(fix: str, width: int, indent: str) -> list[str]:
    """The fix after an arrow, prose wrapped, a command in a row of its own unless all of it fits."""
    arrow = f"{indent}-> "
    command = COMMAND.search(fix)
    if command is None or len(arrow + fix) <= width:
        return _wrap(arrow + fix, width, indent)
    prose = fix[: command.start()].rstrip()
    if not prose:
        return [arrow + fix]
    return [*_wrap(arrow + prose, width, indent), fix[command.start() :]]


def _wrap(text: str, width: int, indent: str) -> list[str]:
    """Rows of at most `width` columns; names of options and paths stay whole."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
