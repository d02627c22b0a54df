"""What the compiled extension holds: `python -m r1fast.csrc_info`; exit status 1 where something is to be repaired."""

from __future__ import annotations

import sys

from r1fast.ops.extension import extension, state


def main() -> int:
    """Print the state of the extension, and the facts of its build."""
    value, fix = state()
    print(value)
    if fix:
        print(f"-> {fix}")
        return 1
    for name, fact in extension().build_info().items():
        print(f"   {name}: {' '.join(fact) if isinstance(fact, list) else fact}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
