"""What tests read off a page in the browser, and how they set its controls."""

from __future__ import annotations

import json

from bench.chromium import Page

DESKTOP, PHONE = (1280, 900), (390, 844)


def texts(page: Page, selector: str) -> list[str]:
    return list(page.value(f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.textContent)"))


def focus(page: Page, selector: str) -> None:
    page.value(f"document.querySelector({json.dumps(selector)}).focus()")


def choose(page: Page, label: str, value: str, within: str) -> None:
    """Set a <select> as a person does: by its label, with a change event."""
    page.value(
        f"""(() => {{
          const label = [...document.querySelectorAll("{within} label")].find((one) => one.textContent === {label!r});
          const box = document.getElementById(label.htmlFor);
          box.value = {value!r};
          box.dispatchEvent(new Event("change"));
        }})()"""
    )
    page.settle()


def legend(page: Page, chart: str) -> dict[str, float | None]:
    """Figure -> the value that a chart's legend shows, exact."""
    found = page.value(
        f"""Object.fromEntries([...document.querySelectorAll('[data-chart="{chart}"] .legend button')]
          .map((key) => [key.dataset.series, key.querySelector("output").dataset.value]))"""
    )
    return {name: float(text) if text else None for name, text in found.items()}
