"""Imports point one way, kernels stand alone, files stay short, and importing the package does nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import r1fast

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "r1fast").glob("**/*.py")) + sorted((ROOT / "r1fast" / "kernels").glob("*.py"))

# Top to bottom, design.md section 4. A module may reach its own layer and lower ones; modules that are not named here
# (configuration, records, metrics, ...) may be imported from anywhere and must not lead back up either.
LAYERS = (
    ("cli",),
    ("train",),
    ("pipeline",),
    ("stages",),
    ("rollout", "rewards", "scorer", "trainer"),
    ("policy", "attention"),
    ("kernels", "ops"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, typing_too: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, in functions too; those for type checkers only on demand."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too:
            skipped.update(child for statement in node.body for child in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}, line {node.lineno}: relative import; write the full name"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def graph() -> dict[str, set[str]]:
    """Module -> the modules of r1fast that it imports."""
    modules = {module_name(path): path for path in SOURCES}
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for target in imports(path):
            known = target if target in modules else target.rpartition(".")[0]
            if known in modules and known != "r1fast":
                edges[name].add(known)
    return edges


def layer(module: str) -> int | None:
    head = module.removeprefix("r1fast.").split(".")[0]
    return next((number for number, names in enumerate(LAYERS) if head in names), None)


def reached(edges: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    pending = [start]
    while pending:
        fresh = edges[pending.pop()] - seen
        seen |= fresh
        pending.extend(fresh)
    return seen


def test_every_layer_exists() -> None:
    heads = {name.removeprefix("r1fast.").split(".")[0] for name in graph()}
    assert {name for names in LAYERS for name in names} <= heads


def test_nothing_calls_back_up() -> None:
    edges = graph()
    for module in edges:
        own = layer(module)
        if own is None:
            continue
        above = {target for target in reached(edges, module) if (other := layer(target)) is not None and other < own}
        assert not above, f"{module} leads up to {sorted(above)}"


def test_no_cycles() -> None:
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_kernels_import_only_torch_triton_the_extension_and_each_other() -> None:
    paths = sorted((ROOT / "kernels").glob("*.py"))
    assert paths
    for path in paths:
        for name in imports(path, typing_too=True):
            head = name.split(".")[0]
            allowed = head in {"torch", "triton"} or head in sys.stdlib_module_names
            assert allowed or name.startswith(("r1fast.kernels.", "r1fast.ops.")), f"{path.name} imports {name}"


def test_kernels_are_never_imported_by_their_directory() -> None:
    """`import kernels.x` would load a second copy of a module, or Hugging Face's package of that name."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "r1fast" / "kernels").is_dir()
    for folder in ("r1fast", "kernels", "tests", "bench"):
        for path in (ROOT / folder).glob("**/*.py"):
            for name in imports(path, typing_too=True):
                assert name.split(".")[0] != "kernels", f"{path} imports {name}; write r1fast.{name}"


def test_files_stay_short() -> None:
    long = {}
    for folder in ("r1fast", "kernels", "csrc", "bench", "tests"):
        for path in (ROOT / folder).glob("**/*"):
            if path.suffix in {".py", ".cpp", ".h", ".hpp", ".cu", ".cuh"}:
                num_lines = len(path.read_text(encoding="utf-8").splitlines())
                if num_lines > 400:
                    long[str(path.relative_to(ROOT))] = num_lines
    assert not long


def test_public_names_exist() -> None:
    for name in r1fast.__all__:
        assert getattr(r1fast, name) is not None
    assert set(r1fast.__all__) <= set(dir(r1fast))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = r1fast.nonsense


def python(code: str, cwd: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(cwd)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_importing_the_package_is_free(tmp_path: Path) -> None:
    code = "import sys, r1fast; print([m for m in ('torch', 'transformers', 'deepspeed', 'rich') if m in sys.modules])"
    assert python(code, tmp_path).strip() == "[]"


def test_importing_every_module_has_no_side_effects(tmp_path: Path) -> None:
    """No process group, seed, thread, signal handler, environment variable, log handler or file of ours."""
    names = [module_name(path) for path in SOURCES]
    code = f"""
import importlib, logging, os, signal, sys, threading
import torch, transformers  # what these do is theirs

def state():
    return {{
        "environment": {{key: value for key, value in os.environ.items() if not key.startswith("TORCHINDUCTOR_")}},
        "signals": [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)],
        "threads": threading.active_count(),
        "handlers": list(logging.getLogger().handlers),
        "dtype": torch.get_default_dtype(),
        "num_threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "cuda": torch.cuda.is_initialized(),
        "groups": torch.distributed.is_initialized(),
        "path": list(sys.path),
        "files": sorted(os.listdir(".")),
    }}

before = state()
for name in {names}:
    importlib.import_module(name)
after = state()
print([key for key in before if before[key] != after[key]], "deepspeed" in sys.modules)
"""
    assert python(code, tmp_path).strip() == "[] False"
