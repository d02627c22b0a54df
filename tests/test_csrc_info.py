"""`python -m r1fast.csrc_info`."""

from __future__ import annotations

import pytest

from r1fast import csrc_info


def test_what_was_built_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csrc_info, "state", lambda: ("r1fast._C, built", ""))
    assert csrc_info.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "r1fast._C, built"
    assert "   page_tokens: 64" in lines
    assert any(line.startswith("   isas: plain") for line in lines)


def test_what_is_to_be_repaired_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csrc_info, "state", lambda: ("r1fast._C is not built", "pip install -e ."))
    assert csrc_info.main() == 1
    assert capsys.readouterr().out == "r1fast._C is not built\n-> pip install -e .\n"
