"""The shapes of the benches that read a head."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    tokens: int
    width: int
    vocabulary: int
    dtype: str

    @property
    def shape(self) -> dict[str, int]:
        return {"T": self.tokens, "D": self.width, "V": self.vocabulary}

    @property
    def label(self) -> str:
        return f"{self.dtype}, T={self.tokens} D={self.width} V={self.vocabulary}"

    @property
    def element_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2


H100 = Head(8192, 4096, 151936, "bfloat16")
SMOLLM2 = {dtype: Head(2048, 576, 49152, dtype) for dtype in ("float32", "bfloat16")}
TINY = {dtype: Head(24, 16, 131, dtype) for dtype in ("float32", "bfloat16")}
HEAD: dict[str, list[Head]] = {"cuda": [H100], "cpu": list(SMOLLM2.values())}
"""The shape that figures are judged at."""
SWEEP: dict[str, list[Head]] = {
    "cuda": [
        *(Head(8192, width, 151936, "bfloat16") for width in (1536, 2048, 3584, 8192)),
        Head(8192, 4096, 128256, "bfloat16"),
        *(Head(tokens, 4096, 151936, "bfloat16") for tokens in (1024, 2048, 4096, 16384, 32768)),
    ],
    "cpu": [],
}
"""One axis at a time."""
