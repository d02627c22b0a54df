"""The page: data, styles, scripts and the chart library in one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from r1fast.atomic import atomic_file
from r1fast.report.contents import compare, read_run

REPORT_FILE = "report.html"
ASSETS = Path(__file__).parent / "assets"
VENDOR = Path(__file__).parent / "vendor"
# Each is one part of one script: later ones use what earlier ones define.
STYLES = ("theme", "controls", "charts", "samples", "narrow")
SCRIPTS = ("base", "models", "series", "charts", "tokens", "samples", "problems", "stages", "main")
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def write_report(
    run_dir: str | os.PathLike[str], *, other: str | os.PathLike[str] | None = None, out: Path | None = None
) -> Path:
    """Write the page of a run, finished or not, whole or not at all; returns where.

    other: a second run to lay over the first. out: the file, `report.html` in the run's directory unless given
    (`compare-NAME.html` with a second run, so that each page has its own file).
    Raises ConfigError for a directory without a run, ValueError for a run's file that cannot be read, OSError.
    """
    first = Path(run_dir)
    if other is None:
        data: dict[str, Any] = {"runs": [read_run(first)], "comparison": None}
    else:
        second = Path(other)
        runs = (read_run(first, num_runs=2), read_run(second, num_runs=2))
        data = {"runs": list(runs), "comparison": compare(first, second, runs)}
    data |= {"version": _version(), "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    name = REPORT_FILE if other is None else f"compare-{Path(other).resolve().name}.html"
    path = first / name if out is None else out
    with atomic_file(path, "wb") as file:
        file.write(page(data))
    return path


def page(data: Mapping[str, Any]) -> bytes:
    """The page that shows `data`, as UTF-8.

    Its content security policy lets nothing run but the two scripts of the package (by their hash) and nothing load.
    """
    library = _read(VENDOR / "uPlot.iife.min.js")
    script = '"use strict";\n(() => {\n' + "\n".join(_read(ASSETS / f"{name}.js") for name in SCRIPTS) + "})();\n"
    styles = "\n".join([_read(VENDOR / "uPlot.min.css"), *(_read(ASSETS / f"{name}.css") for name in STYLES)])
    parts = {
        "policy": (
            f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(styles)}; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
        "title": html.escape(" and ".join(f"{run['name']}, seed {run['seed']}" for run in data["runs"])),
        "styles": styles,
        "data": embedded(data),
        "licence": html.escape(_read(VENDOR / "LICENSE")),
        "library": library,
        "script": script,
    }
    whole = _PLACE.sub(lambda place: parts[place[1]], _read(ASSETS / "page.html"))
    return whole.encode("utf-8", "replace")  # a lone surrogate in a sample is not worth a page


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that may stand within <script>: nothing in it can end the element or start a comment or a tag."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _version() -> str:
    """Not the package's own attribute, which it lacks where `r1fast` is the directory above: a checkout's parent."""
    try:
        return metadata.version("r1fast")
    except metadata.PackageNotFoundError:
        return "not installed"
