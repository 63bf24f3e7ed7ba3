"""Imports point one way, and what can be used alone stays alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "dft_cluster"
LAYERS = [
    {"errors", "storage_uri"},
    {"config", "facts", "arithmetic", "patch"},
    {"models", "combinations"},
    {"training", "config_file"},
    {"evaluation", "runs"},
    {"editing"},
    {"ranks"},
    {"methods"},
    {"comparison", "planning"},
    {"cluster", "local"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(file: Path) -> set[str]:
    """The parts of this package that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dft_cluster."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "dft_cluster":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dft_cluster.")}
    return found


def test_no_arrow_runs_back() -> None:
    checked = 0
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in LEVEL:
            checked += 1
            wrong = {name for name in imported(file) if name != part and LEVEL[name] >= LEVEL[part]}
            assert not wrong, f"{file.name} in {part} imports {wrong}"
    assert checked > 60


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("dft_cluster.config", ("torch", "ray", "transformers")),
        ("dft_cluster.facts.readers", ("torch", "ray", "transformers", "datasets")),
        ("dft_cluster.arithmetic.selection", ("ray", "deepspeed", "transformers")),
        ("dft_cluster.patch", ("ray", "deepspeed", "transformers", "pydantic")),
        ("dft_cluster.methods.run", ("ray",)),
    ],
)
def test_what_can_be_used_alone(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
