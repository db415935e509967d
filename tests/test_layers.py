"""Imports flow one way: each part of the package imports only itself and the floors below it; there are no circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import gradlab

ROOT = Path(gradlab.__file__).parent
FLOORS = [
    ["errors", "values", "arrays", "arguments", "tags", "frame", "finding", "findings"],
    ["identity", "distributed", "autograd_engine", "optimizers", "torch_arguments", "doctor"],
    ["stats", "events", "data", "hooks", "sites"],
    ["taps", "nonfinite", "perf", "jacobians", "sinks", "diagnose", "facts", "board"],
    ["profiling", "summary"],
    ["monitor", "config"],
    ["lightning", "integrations", "models", "runs"],
    ["launch", "compare"],
    ["attach", "sweep", "queue"],
    ["serve"],
    ["cli"],
    ["__main__"],
]
"""From the ground up. On one floor a part imports only what stands to the left of it."""
ORDER = {part: number for number, part in enumerate(part for floor in FLOORS for part in floor)}
MAY_SEE = {
    "board": {
        "errors",
        "values",
        "arguments",
        "frame",
        "finding",
        "findings",
        "tags",
        "events",
    },  # it runs inside TensorBoard
    "jacobians": set(ORDER) - {"taps", "nonfinite", "perf"},
    "attach": set(ORDER) - {"sweep", "queue"},
}
"""Parts that may import even less than their floor allows."""
NEVER_SEES_TENSORS = {"diagnose", "sinks", "events", "board", *FLOORS[0]}
HEAVY = ["pytorch_lightning", "yaml", "pydantic", "click", "tensorboard", "plotly", "rich", "sklearn"]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(["gradlab", *path.relative_to(ROOT).with_suffix("").parts])
        found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports(name: str) -> list[tuple[str, str]]:
    """Each (module, name in it or "") that a module imports: at its top, inside functions, and for type checks."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((full, "") if full in modules() else (node.module, alias.name))
    return found


def part_of(module: str) -> str:
    """The part of the map that a module belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def ours(name: str) -> list[tuple[str, str]]:
    """What a module imports of gradlab."""
    return [(module, imported) for module, imported in imports(name) if module.split(".")[0] == "gradlab"]


def test_every_part_is_on_the_map() -> None:
    assert {part_of(name) for name in modules()} - {""} <= ORDER.keys()


def test_imports_point_down() -> None:
    wrong = []
    for name in modules():
        part = part_of(name)
        for target in {part_of(module) for module, _ in ours(name)} - {"", part} if part else ():
            below = ORDER[target] < ORDER[part]
            if not below or target not in MAY_SEE.get(part, ORDER):
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_private_name_is_imported_from_another_package() -> None:
    wrong = [
        f"{name} imports {imported} of {module}"
        for name in modules()
        for module, imported in ours(name)
        if imported.startswith("_") and not imported.startswith("__") and part_of(module) != part_of(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_make_no_circle() -> None:
    """Not inside functions or for type checks either: two files that need one another are one file or three."""
    edges = {
        name: sorted({module for module, _ in ours(name) if module in modules() and "." in module} - {name})
        for name in modules()
        if "." in name
    }
    done: set[str] = set()
    circles = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            circles.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in edges[name]:
                visit(target, [*path, name])
            done.add(name)

    for name in edges:
        visit(name, [])
    assert not circles, "\n".join(circles)


def test_what_sees_frames_sees_no_tensors() -> None:
    wrong = [
        f"{name} imports {module}"
        for name in modules()
        if part_of(name) in NEVER_SEES_TENSORS
        for module, _ in imports(name)
        if module.split(".")[0] == "torch"
    ]
    assert not wrong, "\n".join(wrong)


def test_each_package_says_what_is_in_it() -> None:
    packages = [path for path in ROOT.rglob("__init__.py") if path.parent != ROOT]
    silent = [str(path.relative_to(ROOT)) for path in packages if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_heavy_packages_are_imported_only_where_they_belong() -> None:
    """`gradlab.watch` in a training script costs torch and numpy, and nothing else."""
    code = f"import sys, gradlab; gradlab.watch; gradlab.Tap; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing_gradlab_imports_no_torch() -> None:
    code = "import sys, gradlab; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
