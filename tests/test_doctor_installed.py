"""What is found on a machine: this one, and ones with other packages."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement as Packaging
from packaging.version import Version

from r1fast.doctor import installed
from r1fast.doctor.installed import Requirement, apex, meets, read_requirement, requirements
from r1fast.doctor.line import Line

ROOT = Path(__file__).parents[1]
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]


def found() -> dict[str, Line]:
    return {line.name: line for line in installed.installed()}


def test_this_machine() -> None:
    lines = found()
    assert lines["torch"].value == metadata.version("torch")
    assert {requirement.name for requirement in requirements()} <= set(lines)
    assert {"apex", "flash-attn", "liger-kernel", "vllm", "CUDA", "extension", "g++", "nvcc"} <= set(lines)
    assert all(line.status != "fail" for line in lines.values())
    assert all(line.fix for line in lines.values() if line.status in ("warn", "fail"))


def test_nothing_heavy_is_loaded() -> None:
    heavy = ("deepspeed", "transformers", "triton", "apex", "vllm", "flash_attn", "liger_kernel", "reasoning_gym")
    code = (
        "import sys\nfrom r1fast.doctor.installed import installed\nlist(installed())\n"
        f"print([name for name in {heavy} if name in sys.modules and name != 'triton'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_requirements_are_read_as_pip_reads_them() -> None:
    for text in [*DEPENDENCIES, "psutil<8,>=5.9", 'x>=1; sys_platform == "nowhere"']:
        known, own = Packaging(text), read_requirement(text)
        if known.marker is not None and not known.marker.evaluate():
            assert own is None
            continue
        assert own is not None
        assert Packaging(own.spec).specifier == known.specifier and own.name == known.name


def test_an_installed_package_tells_its_own_requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = ["torch<2.14,>=2.11", 'gguf>=0.10; extra == "gguf"', 'pytest>=8; extra == "test"']
    monkeypatch.setattr(installed, "ROOT", tmp_path)
    monkeypatch.setattr(metadata, "requires", lambda name: texts)
    assert [requirement.spec for requirement in requirements()] == ["torch>=2.11,<2.14"]


@pytest.mark.parametrize("version", ["2.10.1", "2.11", "2.11.0+cu130", "2.13.0+cpu", "2.14", "2.14.1", "3.0a1"])
def test_versions_compare_as_packaging_compares_them(version: str) -> None:
    bounds = ((">=", "2.11"), ("<", "2.14"))
    known = Packaging("torch>=2.11,<2.14").specifier.contains(Version(version).public, prereleases=True)
    assert meets(version, bounds) == known


def test_what_is_missing_or_untested_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    requirement = Requirement(name="torch", bounds=((">=", "2.11"), ("<", "2.14")))
    monkeypatch.setattr(installed, "_version", lambda name: "")
    assert installed._required(requirement) == Line(
        status="fail", name="torch", value="not installed", fix="pip install 'torch>=2.11,<2.14'"
    )
    monkeypatch.setattr(installed, "_version", lambda name: "2.20")
    line = installed._required(requirement)
    assert (line.status, line.value) == ("warn", "2.20, not tested with it")


def test_deepspeed_needs_a_compiler_only_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed.shutil, "which", lambda name: None)
    line = installed._deepspeed("0.19.8")
    assert (line.status, line.fix) == ("warn", "apt install g++")
    assert "deepspeed" not in sys.modules or line.value.startswith("0.19.8, not loaded")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the import path in which a test installs what it wants."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def package(directory: Path, *files: str) -> None:
    """A package whose import would fail: it must be found without it."""
    for name in ("__init__.py", *files):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("raise ImportError('this must not be imported')", encoding="utf-8")


def test_no_apex() -> None:
    line = apex()
    assert line.status == "-" and "github.com/NVIDIA/apex" in line.fix and "pip install apex" not in line.fix


def test_the_apex_of_pypi_is_not_taken_for_nvidias(site: Path) -> None:
    package(site / "apex", "interfaces.py")
    line = apex()
    assert line.status == "warn" and "not NVIDIA's" in line.value
    assert line.fix.startswith("pip uninstall apex; git clone https://github.com/NVIDIA/apex")


def test_nvidias_apex_with_and_without_its_kernels(site: Path) -> None:
    package(site / "apex", "optimizers/__init__.py", "optimizers/fused_adam.py")
    line = apex()
    assert line.status == "warn" and "no amp_C" in line.value
    (site / "amp_C.py").write_text("raise ImportError('this must not be imported')", encoding="utf-8")
    assert apex() == Line(status="ok", name="apex", value="NVIDIA's, with apex.optimizers.FusedAdam and amp_C")


def test_a_gpu_that_this_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed.Path, "exists", lambda path: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    line, _ = installed._accelerator()
    assert line.status == "warn" and "this PyTorch has no CUDA" in line.value
    assert "download.pytorch.org/whl/cu" in line.fix


@pytest.mark.gpu
def test_gpus_are_listed() -> None:
    line = found()["CUDA"]
    assert torch.cuda.get_device_name(0) in line.value and "GiB free" in line.value


def test_it_works_without_any_library(tmp_path: Path) -> None:
    """A bare Python: the doctor must say what to install, not die of it."""
    code = "import sys; from r1fast.doctor.command import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 1, done.stderr
    assert (
        "fail  torch            not installed\n                       -> pip install 'torch>=2.11,<2.14'" in done.stdout
    )
