"""Whether this machine can train, profile and show: small checks, each with its fix.

A check is a function that returns a Result. One that raises has found a fault that nobody thought of, and says so.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from gradlab.errors import without_warnings

Status = Literal["ok", "warn", "fail", "skip"]

_PACKAGES = ("torch", "pytorch-lightning", "tensorboard", "torch-tb-profiler")
_LEAST_FREE_BYTES = 1 << 30
_LEAST_WRITE_SPEED = 20e6
_LEAST_SHM_BYTES = 64 << 20
_PROBE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one check has found."""

    name: str
    """What was looked at, in a word."""
    status: Status
    """`ok`, `warn` (works, but worse), `fail` (something cannot be done) or `skip` (not on this machine)."""
    what: str
    """What was seen."""
    fix: str = ""
    """What to do about it."""


def run_checks(runs_root: Path) -> Iterator[Result]:
    """The result of each check, as soon as it is known; a few seconds in all, most of them imports."""
    checks: dict[str, Callable[[], Result]] = {
        "python": check_python,
        **{package: partial(check_package, package) for package in _PACKAGES},
        "devices": check_devices,
        "training": check_training,
        "profiler": check_profiler,
        "plugins": check_plugins,
        "data server": check_data_server,
        "runs": partial(check_runs, runs_root),
        "/dev/shm": check_shared_memory,
        "git": check_git,
    }
    for name, check in checks.items():
        yield _guarded(name, check)


def _guarded(name: str, check: Callable[[], Result]) -> Result:
    """The result of a check; a fault where it raises."""
    try:
        with without_warnings():
            return check()
    except Exception as error:
        return Result(name=name, status="fail", what=f"{type(error).__name__}: {error}")


def check_python() -> Result:
    """Python in the range that gradlab is tested with."""
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Result(name="python", status="ok", what=found)
    return Result(name="python", status="warn", what=found, fix="gradlab is tested with Python 3.11 to 3.13")


def check_package(package: str) -> Result:
    """An installed version in the range that gradlab's own metadata ask for."""
    from packaging.requirements import Requirement

    asked = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, metadata.requires("gradlab") or [])
        if requirement.marker is None
    }[package]
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Result(name=package, status="fail", what="not installed", fix=f"pip install '{package}{asked}'")
    if asked.contains(found.split("+")[0], prereleases=True):
        return Result(name=package, status="ok", what=found)
    return Result(name=package, status="warn", what=f"{found}, outside {asked}", fix=f"pip install '{package}{asked}'")


def check_devices() -> Result:
    """What torch can compute on, and whether its CUDA build fits the driver."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Result(name="devices", status="ok", what=f"{', '.join(names)}; CUDA {torch.version.cuda}")
    driver = _nvidia_driver()
    if driver is None:
        return Result(
            name="devices", status="ok", what=f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads; no GPU"
        )
    if torch.version.cuda is None:
        fix = "install a torch that is built with CUDA: pytorch.org says which"
        return Result(name="devices", status="warn", what=f"driver {driver}, but torch is built without CUDA", fix=fix)
    fix = f"the driver must support CUDA {torch.version.cuda}; see CUDA_VISIBLE_DEVICES too"
    what = f"driver {driver}, but torch sees no GPU"
    return Result(name="devices", status="warn", what=what, fix=fix)


def _nvidia_driver() -> str | None:
    """The version of NVIDIA's driver, None where there is none."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, timeout=10, check=True, encoding="utf-8", errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def check_training() -> Result:
    """One step of a small network on every device, with finite gradients."""
    import torch

    for device in _torch_devices():
        model = torch.nn.Linear(8, 8, device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(4, 8, device=device)).square().mean().backward()
        optimizer.step()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
            return Result(name="training", status="fail", what=f"a step on {device} gives non-finite weights")
    return Result(name="training", status="ok", what=f"a step on {', '.join(_torch_devices())}")


def check_profiler() -> Result:
    """A profile of one step has operators, and kernels where there is a GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    devices = _torch_devices()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if "cuda:0" in devices else [])
    with _native_messages_dropped(), profile(activities=activities) as profiler:
        torch.ones(64, 64, device=devices[-1]).matmul(torch.ones(64, 64, device=devices[-1])).sum().item()
    events = profiler.profiler.kineto_results.events()
    kernels = [event for event in events if event.device_type() == torch._C._autograd.DeviceType.CUDA]
    if not events:
        return Result(name="profiler", status="fail", what="torch.profiler records nothing")
    if "cuda:0" in devices and not kernels:
        fix = "CUPTI is missing or may not be used: see nvidia.com/ERR_NVGPUCTRPERM"
        return Result(name="profiler", status="warn", what="no kernels in a profile of the GPU", fix=fix)
    seen = f"{len(events)} events" + (f", {len(kernels)} on the GPU" if kernels else "")
    return Result(name="profiler", status="ok", what=f"one step gives {seen}")


@contextlib.contextmanager
def _native_messages_dropped() -> Iterator[None]:
    """Drop what C++ code prints: torch 2.13's profiler reports its own start and stop to stderr."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _torch_devices() -> list[str]:
    """The CPU and every CUDA device."""
    import torch

    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def check_plugins() -> Result:
    """TensorBoard finds its plugins, and those of other packages can be imported."""
    points = sorted(metadata.entry_points(group="tensorboard_plugins"), key=lambda point: point.name)
    broken = []
    for point in points:
        try:
            point.load()
        except Exception as error:
            broken.append(f"{point.name} ({error})")
    importlib.import_module("tensorboard.program")
    names = ", ".join(point.name for point in points)
    if broken:
        fix = "TensorBoard will not start: reinstall or remove that package"
        return Result(name="plugins", status="fail", what=f"cannot load {', '.join(broken)}", fix=fix)
    if not any("torch_tb_profiler" in point.value for point in points):
        fix = "pip install torch-tb-profiler"
        return Result(name="plugins", status="warn", what=f"no PyTorch Profiler tab among {names}", fix=fix)
    return Result(name="plugins", status="ok", what=f"TensorBoard finds {names}")


def check_data_server() -> Result:
    """TensorBoard's fast loader."""
    from tensorboard.data import server_ingester

    try:
        server_ingester.get_server_binary()
    except server_ingester.NoDataServerError as error:
        fix = "pip install tensorboard-data-server; without it TensorBoard reads runs slowly"
        return Result(name="data server", status="warn", what=str(error), fix=fix)
    return Result(name="data server", status="ok", what="TensorBoard's fast loader is there")


def check_runs(root: Path) -> Result:
    """Runs can be written, fast enough and with room."""
    folder = _existing_parent(root)
    free = shutil.disk_usage(folder).free
    try:
        speed = _write_speed(folder)
    except OSError as error:
        fix = "choose another place with --runs DIR"
        return Result(name="runs", status="fail", what=f"{folder} cannot be written: {error.strerror}", fix=fix)
    what = f"{root}: {free / 1e9:.0f} GB free, {speed / 1e6:.0f} MB/s"
    if free < _LEAST_FREE_BYTES:
        return Result(name="runs", status="fail", what=what, fix="checkpoints need room: free some")
    if speed < _LEAST_WRITE_SPEED:
        return Result(name="runs", status="warn", what=what, fix="checkpoints will take long; a local disk is faster")
    return Result(name="runs", status="ok", what=what)


def _existing_parent(path: Path) -> Path:
    """`path`, or the nearest of its parents that exists as a folder."""
    path = path.absolute()
    return path if path.is_dir() or path == path.parent else _existing_parent(path.parent)


def _write_speed(folder: Path) -> float:
    """Bytes a second of writing a file to the disk itself."""
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        begin = time.perf_counter()
        for _ in range(_PROBE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _PROBE_BYTES / (time.perf_counter() - begin)


def check_shared_memory() -> Result:
    """Room for the workers of a DataLoader to hand over batches."""
    if not os.path.isdir("/dev/shm"):
        return Result(name="/dev/shm", status="skip", what="none on this system")
    free = shutil.disk_usage("/dev/shm").free
    if free < _LEAST_SHM_BYTES:
        fix = "give the container more (--shm-size), or use num_workers: 0"
        return Result(name="/dev/shm", status="warn", what=f"{free / 1e6:.0f} MB free", fix=fix)
    return Result(name="/dev/shm", status="ok", what=f"{free / 1e9:.1f} GB free")


def check_git() -> Result:
    """git, which records where a run's code came from."""
    if shutil.which("git") is None:
        return Result(name="git", status="warn", what="not found", fix="install git: runs will not record their commit")
    done = subprocess.run(
        ["git", "--version"], capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
    )
    return Result(name="git", status="ok", what=done.stdout.strip().removeprefix("git version "))
