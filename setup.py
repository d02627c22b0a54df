"""What pyproject.toml cannot say: a checkout whose symlinks were lost must not build a wheel without its kernels."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup

KERNELS = Path(__file__).parent / "r1fast" / "kernels"

if not KERNELS.is_dir():
    raise SystemExit(
        f"{KERNELS} must be a directory or a symlink to ../kernels; this checkout has a plain file or nothing there. "
        "Clone again with symlinks on: git clone -c core.symlinks=true"
    )

setup()
