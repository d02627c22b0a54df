"""What pyproject.toml cannot say: how r1fast._C is compiled, and that the kernels' symlink must be there.

`R1FAST_CUDA=1 pip install -e .` insists on the CUDA kernels, `R1FAST_CUDA=0` leaves them out; unset, they are built
where nvcc is found. Without a C++ compiler the package installs without the extension and says so when it is needed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
KERNELS = ROOT / "r1fast" / "kernels"

if not KERNELS.is_dir():
    raise SystemExit(
        f"{KERNELS} must be a directory or a symlink to ../kernels; this checkout has a plain file or nothing there. "
        "Clone again with symlinks on: git clone -c core.symlinks=true"
    )


def load_compile() -> ModuleType:
    """csrc/compile.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("r1fast_compile", ROOT / "csrc" / "compile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class BuildExtension(build_ext):
    """Hands the one extension to csrc/compile.py."""

    def build_extension(self, ext: Extension) -> None:
        compiler = load_compile()
        try:
            tools = compiler.find_toolchain(os.environ.get("R1FAST_CUDA"))
            if tools is None:
                print("r1fast: no C++ compiler found; installing without r1fast._C", file=sys.stderr)
                ext.optional = True  # setuptools would look for the file to copy it
                return
            out = Path(self.get_ext_fullpath(ext.name)).resolve()
            out.parent.mkdir(parents=True, exist_ok=True)
            # Not in build_temp, which is new each time for an editable install: objects are used again.
            work = ROOT / "build" / f"csrc{sysconfig.get_config_var('EXT_SUFFIX')}"
            compiler.compile_extension(tools, out, work)
        except compiler.BuildError as error:
            raise SystemExit(f"r1fast: {error}") from error


setup(ext_modules=[Extension("r1fast._C", sources=[])], cmdclass={"build_ext": BuildExtension})
