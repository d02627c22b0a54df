"""The report's size, the time to build and to open it, and its pictures: `python -m bench.report RUN`.

The pictures for the README need a Chromium (`apt-get install chromium`) and a Chinese font
(`apt-get install fonts-wqy-microhei`); without `--pictures` nothing is drawn. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

from bench.chromium import Chromium, find_chromium
from r1fast.pipeline import versions
from r1fast.report.page import write_report

RESULTS = Path(__file__).parent / "results"
REPEATS = 5
DESKTOP, PHONE = (1280, 1900), (390, 1650)


def build_s(run_dir: Path, page: Path) -> list[float]:
    """Seconds of each of `REPEATS` builds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        write_report(run_dir, out=page)
        times.append(time.perf_counter() - start)
    return times


def open_s(browser: Chromium, page: Path) -> list[float]:
    """Seconds until the page has drawn itself in a new tab."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        tab = browser.open(page, width=1280, height=900)
        tab.settle()
        times.append(time.perf_counter() - start)
        tab.close()
    return times


def draw(browser: Chromium, page: Path) -> None:
    """The head of the page on a desktop, a group's tokens on a phone in the dark."""
    desktop = browser.open(page, width=DESKTOP[0], height=DESKTOP[1])
    desktop.screenshot(RESULTS / "report-desktop.png")
    phone = browser.open(page, width=PHONE[0], height=PHONE[1], dark=True)
    phone.value("document.querySelector('#samples input[value=entropy]').click()")
    phone.value("document.getElementById('samples').scrollIntoView({ behavior: 'instant' })")
    phone.screenshot(RESULTS / "report-phone.png")


def main() -> None:
    """Measure, and draw if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--pictures", action="store_true", help=f"write the pictures to {RESULTS}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        figures: dict[str, object] = {"build_s": round(statistics.median(build_s(options.run, page)), 3)}
        figures["bytes"] = page.stat().st_size
        if find_chromium() is not None:
            with Chromium() as browser:
                figures["open_s"] = round(statistics.median(open_s(browser, page)), 3)
                if options.pictures:
                    draw(browser, page)
    print(json.dumps({"bench": "report", **figures, "machine": platform.machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
