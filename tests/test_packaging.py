"""The wheel and the sdist hold what the package needs, the symlinked kernels as real files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_imports import SOURCES, imports

import r1fast

ROOT = Path(__file__).parents[1]
JUNK = shutil.ignore_patterns("__pycache__", "*.so")
DISTRIBUTIONS = {"lingua": "lingua-language-detector"}  # of modules with another name
APART = "vllm"  # in an environment of its own, with other requirements
CPU_ONLY = os.environ | {"R1FAST_CUDA": "0"}  # the CUDA kernels take a minute more and change nothing here


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def build(kind: str, source: Path, out: Path, path: str | None = None) -> Path:
    """Build with the project's backend, in a process of its own because the backend works in the cwd.

    `path` takes the place of PATH: without a compiler there, the wheel has no extension.
    """
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(out)!r})"
    env = CPU_ONLY if path is None else CPU_ONLY | {"PATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=source, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("no C++ compiler found" in done.stderr) == (path == "" and kind == "wheel")
    (built,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what packaging reads, symlink kept, so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("r1fast", "kernels", "csrc", "tests"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=JUNK)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    assert (copy / "r1fast" / "kernels").is_symlink()
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", source, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = build("sdist", source, tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "data_filter"):  # Python before 3.11.4 has none
            file.extractall(folder, filter="data")
        else:
            file.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


def package_files() -> set[str]:
    """Every file of the package as a wheel names it: code, recipes, weights, marker."""
    followed = [*(ROOT / "r1fast").glob("**/*"), *(ROOT / "r1fast" / "kernels").glob("*")]
    return {
        str(path.relative_to(ROOT))
        for path in followed
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name and not name.endswith(".so")}
    assert names == package_files()
    assert {"r1fast/py.typed", "r1fast/recipes/tiny.toml"} <= names
    assert [name for name in wheel.namelist() if name.endswith(".so")] == [
        f"r1fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    ]


def test_kernels_in_the_wheel_are_the_files_of_the_checkout(wheel: zipfile.ZipFile) -> None:
    kernels = sorted((ROOT / "kernels").glob("*.py"))
    assert kernels
    for path in kernels:
        assert wheel.read(f"r1fast/kernels/{path.name}") == path.read_bytes()
        assert not (wheel.getinfo(f"r1fast/kernels/{path.name}").external_attr >> 16) & 0o020000  # not a link


def test_an_sdist_holds_kernels_as_real_files_and_builds_the_same_wheel_without_a_compiler(
    sdist: Path, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    kernels = sdist / "r1fast" / "kernels"
    assert kernels.is_dir()
    assert not kernels.is_symlink()
    rebuilt = zipfile.ZipFile(build("wheel", sdist, tmp_path, path=""))
    (extension,) = set(wheel.namelist()) - set(rebuilt.namelist())
    assert extension.startswith("r1fast/_C.")
    assert set(rebuilt.namelist()) < set(wheel.namelist())


def test_an_sdist_holds_all_that_the_extension_is_compiled_from(sdist: Path) -> None:
    sources = [path for path in (ROOT / "csrc").glob("**/*") if path.is_file() and "__pycache__" not in path.parts]
    assert sources
    for path in sources:
        assert (sdist / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_the_wheels_metadata(wheel: zipfile.ZipFile) -> None:
    folder = f"r1fast-{r1fast.__version__}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert f"Version: {r1fast.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "r1fast = r1fast.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()


def test_a_checkout_without_symlinks_says_what_to_do(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "copy", symlinks=True)
    (tmp_path / "copy" / "r1fast" / "kernels").unlink()
    (tmp_path / "copy" / "r1fast" / "kernels").write_text("../kernels")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=tmp_path / "copy", capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "core.symlinks=true" in done.stderr


def test_linux_only_dependencies_have_markers_and_apex_is_never_named(project: dict[str, Any]) -> None:
    dependencies = project["project"]["dependencies"]
    for name in ("triton", "deepspeed"):
        (line,) = [line for line in dependencies if line.startswith(name)]
        assert line.endswith("; sys_platform == 'linux'")
    for requirements in (dependencies, *project["project"]["optional-dependencies"].values()):
        assert "apex" not in map(distribution, requirements)


def test_every_import_is_a_declared_dependency(project: dict[str, Any]) -> None:
    declared = set(map(distribution, project["project"]["dependencies"]))
    optional = project["project"]["optional-dependencies"]
    extras = set(map(distribution, [*optional["data"], *optional["gguf"], *optional["lora"]]))
    for path in SOURCES:
        for name in imports(path, typing_too=True):
            head = name.split(".")[0]
            if head not in sys.stdlib_module_names and head not in ("r1fast", APART):
                head = DISTRIBUTIONS.get(head, head.replace("_", "-"))
                assert head in declared | extras, f"{path.name} imports {head}; declare it"


def distribution(requirement: str) -> str:
    """The name in a requirement, normalised."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()
