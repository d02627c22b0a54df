"""The page as a file: self-contained, safe whatever a sample says, whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_run import HOSTILE, log, sample, write_config, write_hostile_run, write_rows

from r1fast.report import page as page_module
from r1fast.report.page import ASSETS, SCRIPTS, STYLES, embedded, write_report


class Elements(HTMLParser):
    """What a browser's parser finds: tags with attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = tag
            self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[-1] = (self._open, self.texts[-1][1] + data)

    def content(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    write_hostile_run(tmp_path / "run")
    return write_report(tmp_path / "run")


def read_data(path: Path) -> dict[str, Any]:
    return dict(json.loads(Elements(path.read_text(encoding="utf-8")).content("script")[0]))


def test_what_models_write_stays_data(hostile: Path) -> None:
    (run,) = read_data(hostile)["runs"]
    samples = run["groups"]["rl_1"]["steps"][0]["groups"][0]["samples"]
    assert [one["response"] for one in samples] == list(HOSTILE)
    elements = Elements(hostile.read_text(encoding="utf-8"))
    assert [tag for tag, _ in elements.tags].count("script") == 3
    assert not [tag for tag, _ in elements.tags if tag == "img"]
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]


def test_nothing_is_loaded_and_nothing_runs_but_the_scripts_of_the_package(hostile: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    elements = Elements(text)
    for tag, attributes in elements.tags:
        for name in ("src", "href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, name, value)
    policy = next(a["content"] for t, a in elements.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy
    _, library, script = elements.content("script")
    (styles,) = elements.content("style")
    for content in (library, script, styles):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "innerHTML" not in script and "document.write" not in script and "eval(" not in script
    assert not re.search(r"url\(|@import", styles)


@given(st.text())
def test_embedded_json_cannot_end_its_element(text: str) -> None:
    found = embedded({text: [text, "</script>", "<!--", "]]>"]})
    assert not set("<>&") & set(found)
    assert json.loads(found) == {text: [text, "</script>", "<!--", "]]>"]}


def test_a_character_that_is_none_does_not_stop_the_page(tmp_path: Path) -> None:
    write_config(tmp_path, "rl_1")
    row = json.dumps(sample(1, 0, response="half \ud83e of a pair"))  # escaped, as another writer may do
    (tmp_path / "stages" / "04-rl_1").mkdir(parents=True)
    (tmp_path / "stages" / "04-rl_1" / "samples.jsonl").write_text(row + "\n", encoding="utf-8")
    (run,) = read_data(write_report(tmp_path))["runs"]
    assert run["groups"]["rl_1"]["steps"][0]["groups"][0]["samples"][0]["response"] == "half ? of a pair"


def test_every_asset_is_used() -> None:
    names = {f"{name}.js" for name in SCRIPTS} | {f"{name}.css" for name in STYLES} | {"page.html"}
    assert {path.name for path in ASSETS.iterdir()} == names
    for path in ASSETS.iterdir():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name


def test_the_chart_library_comes_with_its_licence(hostile: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    assert "uPlot (v1.6.32)" in text and "The MIT License" in text and "Leon Sorokin" in text


def test_a_page_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hostile_run(tmp_path)
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    before = path.read_bytes()

    def broken(data: object) -> bytes:
        raise ValueError("no page")

    monkeypatch.setattr(page_module, "page", broken)
    with pytest.raises(ValueError, match="no page"):
        write_report(tmp_path)
    assert path.read_bytes() == before
    assert not [name for name in tmp_path.iterdir() if name.suffix == ".partial"]


def test_two_runs_get_a_page_of_their_own(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_config(tmp_path / name, "rl_1", seed=seed)
        log(tmp_path / name, "rl_1", {1: {"reward": float(seed)}})
    path = write_report(tmp_path / "a", other=tmp_path / "b")
    assert path == tmp_path / "a" / "compare-b.html"
    data = read_data(path)
    assert [run["seed"] for run in data["runs"]] == [0, 1]
    assert [setting["key"] for setting in data["comparison"]["settings"]] == ["run.seed"]
    assert "<title>r1fast: made, seed 0 and made, seed 1</title>" in path.read_text(encoding="utf-8")
    assert write_report(tmp_path / "a", out=tmp_path / "x.html") == tmp_path / "x.html"


def test_a_run_with_more_than_a_page_holds_stays_below_five_megabytes(tmp_path: Path) -> None:
    write_config(tmp_path, "r1_zero", "rl_1")
    for number, stage in enumerate(("r1_zero", "rl_1")):
        rows = [sample(step, k, response="等" * 2000, tokens=400) for step in range(1, 101) for k in range(4)]
        write_rows(tmp_path / "stages" / f"{(1, 4)[number]:02d}-{stage}" / "samples.jsonl", rows)
        log(tmp_path, stage, {step: {f"x{n}": step / 7 for n in range(40)} for step in range(1, 1500)})
    path = write_report(tmp_path)
    assert 1_000_000 < path.stat().st_size < 5_000_000
