"""The `r1fast` command: `r1fast train ...` is `python -m r1fast.train ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = """usage: r1fast COMMAND ...

commands:
  train    run or continue the R1 pipeline (r1fast train --help lists every option)
  plan     print what a run would do, and exit: r1fast train --dry-run
  report   write a run's report.html again, or one page of two runs (r1fast report --help)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a command; exit code 2 for an unknown one."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "plan":
        command, rest = "train", [*rest, "--dry-run"]
    if command == "report":
        from r1fast.report.command import main as report

        return report(rest)
    if command != "train":
        print(f"r1fast: unknown command {command!r}; the commands are train, plan, report", file=sys.stderr)
        return 2
    from r1fast.train import main as train

    return train(rest)


if __name__ == "__main__":
    sys.exit(main())
