"""What a run was: command, code, versions, devices, seed. Written once at the start, without a secret.

No value of the environment is recorded, no address of a repository, no contents of untracked files.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gradlab.runs.folder import RunFolder, read_json, write_json

PATCH_LIMIT_BYTES = 1_000_000
_UNTRACKED_LIMIT = 200
_PACKAGES = ("torch", "pytorch-lightning", "tensorboard", "torch-tb-profiler", "numpy")


def describe(argv: Sequence[str], *, seed: int | None, folder: Path | None = None) -> dict[str, Any]:
    """The record of a run that starts now, with the state of the repository at `folder` (default: here)."""
    return {
        "argv": list(argv),
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seed": seed,
        "git": git_state(folder or Path.cwd()),
        "versions": versions(),
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count(), "pid": os.getpid()},
        "devices": devices(),
    }


def write_record(folder: RunFolder, record: dict[str, Any], *, repository: Path | None = None) -> None:
    """Write `record.json` and, where something is uncommitted, `uncommitted.patch`."""
    patch = uncommitted_patch(repository or Path.cwd()) if record["git"] else b""
    if patch and len(patch) > PATCH_LIMIT_BYTES:
        record["git"]["patch"] = f"left out: {len(patch)} bytes, more than {PATCH_LIMIT_BYTES}"
    elif patch:
        folder.patch.write_bytes(patch)
        record["git"]["patch"] = folder.patch.name
    write_json(folder.record, record)


def append_attempt(folder: RunFolder, record: dict[str, Any]) -> None:
    """Add the record of a resumed run to that of the first attempt."""
    first = read_json(folder.record) or {}
    first.setdefault("resumed", []).append(record)
    write_json(folder.record, first)


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch, whether something is uncommitted, and untracked names; None without git or a repository."""
    sha = _git(folder, "rev-parse", "HEAD")
    if sha is None:
        return None
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or b""
    lines = (_git(folder, "status", "--porcelain") or b"").decode(errors="replace").splitlines()
    untracked = [line[3:] for line in lines if line.startswith("??")]
    return {
        "sha": sha.decode(errors="replace").strip(),
        "branch": branch.decode(errors="replace").strip(),
        "dirty": len(lines) > len(untracked),
        "untracked": untracked[:_UNTRACKED_LIMIT],
    }


def uncommitted_patch(folder: Path) -> bytes:
    """`git diff HEAD`, empty where nothing is uncommitted."""
    return _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") or b""


def versions() -> dict[str, str | None]:
    """Versions of Python, gradlab and what it depends on; None for what is not installed."""
    import gradlab

    found: dict[str, str | None] = {"python": platform.python_version(), "gradlab": gradlab.__version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    torch = sys.modules.get("torch")
    found["cuda"] = torch.version.cuda if torch else None
    return found


def devices() -> list[dict[str, Any]]:
    """The CUDA devices that this process sees, where torch is loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"index": index, "name": device.name, "memory_bytes": device.total_memory}
        for index, device in enumerate(properties)
    ]


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints, or None where it fails, is absent or takes longer than ten seconds."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments], capture_output=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
