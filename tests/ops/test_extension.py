"""Building and finding r1fast._C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from emulated import compiler

from r1fast.ops import extension

ROOT = Path(__file__).parents[2]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The facts of a build; change them, and the extension is another one."""
    facts: dict[str, object] = {"isas": ["plain", "avx2"], "isa": "avx2", "cuda_targets": ""}
    monkeypatch.setattr(extension, "extension", lambda: SimpleNamespace(build_info=lambda: facts))
    return facts


def test_cuda_without_nvcc_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler(), "find_nvcc", lambda: None)
    with pytest.raises(compiler().BuildError, match=r"R1FAST_CUDA=1, but nvcc is neither on PATH.*unset R1FAST_CUDA"):
        compiler().find_toolchain("1")
    assert compiler().find_toolchain(None).nvcc is None


def test_cuda_is_left_out_on_demand_and_other_values_are_refused() -> None:
    assert compiler().find_toolchain("0").nvcc is None
    with pytest.raises(compiler().BuildError, match="R1FAST_CUDA='yes' must be 0"):
        compiler().find_toolchain("yes")


def test_no_compiler_is_no_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler(), "_which", lambda name: None)
    assert compiler().find_toolchain(None) is None


def test_a_broken_source_shows_what_the_compiler_said(tmp_path: Path) -> None:
    with pytest.raises(compiler().BuildError, match=r"no such rule|unknown build rule"):
        compiler()._ninja(["build x: nothing"], tmp_path / "work")


def test_the_state_names_what_was_built(built: dict[str, object]) -> None:
    assert extension.state() == ("r1fast._C, CPU code for plain, avx2 (here avx2), no CUDA kernels", "")
    built["cuda_targets"] = "sm_80 sm_90"
    assert extension.state()[0].endswith("CUDA kernels for sm_80 sm_90")


def test_a_gpu_without_kernels_is_one_line_and_a_command(
    built: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    value, fix = extension.state()
    assert value.endswith("without the CUDA kernels, and an NVIDIA GPU is here")
    assert fix == "R1FAST_CUDA=1 pip install -e ."


def test_without_the_extension_everything_imports_and_the_line_says_how_to_build_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['r1fast._C'] = None\n"
        "import r1fast, r1fast.train, r1fast.ops\nfrom r1fast import csrc_info\nsys.exit(csrc_info.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == "r1fast._C is not built\n-> pip install -e .\n"


def test_a_launch_without_a_driver_names_the_op() -> None:
    module = extension.extension()
    if not extension.cuda_targets() or torch.cuda.is_available():
        pytest.skip("needs the CUDA kernels built (nvcc) and no GPU")
    params = module.DecodePlanParams(num_rows=1, members_per_item=1)
    with pytest.raises(RuntimeError, match=r"decode_plan: there is no usable NVIDIA GPU or driver here.*pass CPU"):
        module.decode_plan_cuda(params, 0)


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"DecodePlanParams.* no attribute 'nonsense'"):
        extension.extension().DecodePlanParams(nonsense=1)
