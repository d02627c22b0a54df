"""The command line of `r1fast doctor`; exit code 1 where a check fails, 2 for bad input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from r1fast.doctor.installed import installed
from r1fast.doctor.line import show

USAGE = """usage: r1fast doctor                                      what is installed and built here
       r1fast doctor --recipe R [--SECTION.KEY VALUE ...]  and: can this recipe run here? (options as of r1fast train)
       r1fast doctor RUN                                  what is wrong with a run, finished or not
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks that the words ask for."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if words and not words[0].startswith("--"):
        return _run(words)
    passed = show(installed())
    if not words:
        return 0 if passed else 1
    if not passed:
        print("r1fast: install what is missing first, then the recipe can be checked", file=sys.stderr)
        return 1
    return _recipe(words)


def _recipe(words: list[str]) -> int:
    from r1fast.config import ConfigError
    from r1fast.options import parse
    from r1fast.train import run_directory

    try:
        invocation = parse(words)
    except ConfigError as error:
        print(f"r1fast: {error}", file=sys.stderr)
        return 2
    from transformers.utils.logging import disable_progress_bar

    from r1fast.doctor.recipe import check_recipe

    disable_progress_bar()  # type: ignore[no-untyped-call]
    print(f"\nrecipe {invocation.recipe}")
    return 0 if show(check_recipe(invocation.config, run_directory(invocation))) else 1


def _run(words: list[str]) -> int:
    from r1fast.config import ConfigError
    from r1fast.doctor.run import check_run
    from r1fast.options import recipe_names

    if len(words) > 1:
        print(f"r1fast: doctor takes one run, not {len(words)} words\n{USAGE}", end="", file=sys.stderr)
        return 2
    if words[0] in recipe_names() and not Path(words[0]).is_dir():
        print(f"r1fast: {words[0]} is a recipe: r1fast doctor --recipe {words[0]}", file=sys.stderr)
        return 2
    try:
        return 0 if show(check_run(Path(words[0]))) else 1
    except ConfigError as error:
        print(f"r1fast: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
