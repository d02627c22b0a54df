"""The `r1fast` command: `r1fast train ...` is `python -m r1fast.train ...`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

# Command -> the module whose `main` runs it, and what it does.
COMMANDS = {
    "train": ("r1fast.train", "run or continue the R1 pipeline (r1fast train --help lists every option)"),
    "plan": (
        "r1fast.plan_command",
        "print what a run would do here, or on other GPUs: r1fast plan --recipe R [--gpus 64 --gpu h800]",
    ),
    "report": (
        "r1fast.report.command",
        "write a run's report.html again, or one page of two runs (r1fast report --help)",
    ),
    "export": (
        "r1fast.export",
        "one Hugging Face directory of a stage, finished or not: r1fast export RUN --stage NAME [--out DIR]",
    ),
    "chat": ("r1fast.chat", "talk to any model of a run, its thinking shown apart: r1fast chat RUN [--model NAME]"),
    "rewards": (
        "r1fast.rewards.command",
        "score gold answers and samples without training: r1fast rewards check DATA.jsonl [--samples S.jsonl]",
    ),
    "data": (
        "r1fast.data.command",
        "what a data set holds, shares with evaluation sets, repeats: r1fast data check | overlap | duplicates FILE",
    ),
    "replay": (
        "r1fast.replay",
        "one training step again that a run gave up and wrote down: r1fast replay RUN/faults/replay-STAGE-STEP",
    ),
    "doctor": (
        "r1fast.doctor.command",
        "what is installed, whether a recipe can run here, what is wrong with a run: r1fast doctor [--recipe R | RUN]",
    ),
}
USAGE = "usage: r1fast COMMAND ...\n\ncommands:\n" + "".join(
    f"  {name:<8} {summary}\n" for name, (_, summary) in COMMANDS.items()
)


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a command; exit code 2 for an unknown one."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(f"r1fast: unknown command {command!r}: {hint}the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return int(import_module(COMMANDS[command][0]).main(rest))


if __name__ == "__main__":
    sys.exit(main())
