"""`r1fast report RUN [--compare RUN2]`: write the page of a run again, also of one that is going on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from r1fast.report.page import write_report

BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print where it is; exit code 2 for a directory without a run or a file that cannot be used."""
    parser = argparse.ArgumentParser(prog="r1fast report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run, finished or going on")
    parser.add_argument("--compare", type=Path, metavar="RUN2", help="a second run: its curves laid over the first's")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (RUN/report.html, RUN/compare-NAME2.html with --compare)"
    )
    options = parser.parse_args(argv)
    try:
        path = write_report(options.run, other=options.compare, out=options.out)
    except (ValueError, OSError) as error:
        print(f"r1fast report: {error}", file=sys.stderr)
        return BAD_INPUT
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
