"""Imports flow one way: each package may import only itself and what lies below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import gradlab

ROOT = Path(gradlab.__file__).parent
LAYERS = [
    {"errors", "stats", "values", "arguments", "frame", "events"},
    {"taps", "jacobians", "profiling", "diagnose", "sinks"},
    {"delivery", "steps", "options", "process_end", "series_folder"},
    {"monitor"},
    {"lightning", "integrations", "models", "data"},
    {"config", "runs"},
    {"launch", "doctor", "board"},
    {"cli", "__main__", "attach"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
# `board` runs inside TensorBoard: it may see the event format, and nothing that needs torch.
BOARD_MAY_SEE = {"board", "events", "errors", "frame"}
NEVER_SEES_TENSORS = {"diagnose", "sinks", "events", "board", "frame", "values", "errors"}


def imports(path: Path) -> list[str]:
    """The full names of all modules that a file imports, inside functions too."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def files() -> list[tuple[str, Path]]:
    """Every source file with the part of the map that it belongs to."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part != "__init__":
            found.append((part, path))
    return found


def test_every_part_is_on_the_map() -> None:
    assert {part for part, _ in files()} <= RANK.keys() | {"board"}


def test_imports_point_down() -> None:
    wrong = []
    for part, path in files():
        for name in imports(path):
            if not name.startswith("gradlab."):
                continue
            target = name.split(".")[1]
            allowed = target in BOARD_MAY_SEE if part == "board" else RANK.get(target, 99) <= RANK[part]
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_what_sees_frames_sees_no_tensors() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for part, path in files()
        if part in NEVER_SEES_TENSORS
        for name in imports(path)
        if name.split(".")[0] == "torch"
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_only_where_they_belong() -> None:
    """`gradlab.watch` in a training script costs torch and numpy, and nothing else."""
    heavy = ["pytorch_lightning", "yaml", "pydantic", "click", "tensorboard", "plotly", "rich", "sklearn"]
    code = f"import sys, gradlab; gradlab.watch; gradlab.Tap; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing_gradlab_imports_no_torch() -> None:
    code = "import sys, gradlab; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
