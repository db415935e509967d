"""What a device reports while it works: the counters of torch's allocator, and NVML's load, power and temperature.

Belongs here: readings that change during a run. Does not: what a device can do at best (devices.py). Nothing here
waits for the device. NVML is read in a thread of its own, since one reading can take milliseconds.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_INTERVAL_SECONDS = 5.0
_PAGE_BYTES = 4096


def memory_scalars(device: torch.device) -> dict[str, float]:
    """`perf/memory_...` of the device's allocator, and the resident memory of this process. Nothing is reset."""
    scalars: dict[str, float] = {}
    if device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        for name, key in (("allocated", "current"), ("peak", "peak")):
            scalars[f"perf/memory_{name}_bytes"] = float(stats.get(f"allocated_bytes.all.{key}", 0))
        scalars["perf/memory_reserved_bytes"] = float(stats.get("reserved_bytes.all.current", 0))
    resident = _resident_bytes()
    if resident is not None:
        scalars["perf/host_memory_bytes"] = resident
    return scalars


def _resident_bytes() -> float | None:
    try:
        return float(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES)
    except (OSError, IndexError, ValueError):
        return None


class Telemetry:
    """NVML's numbers of one CUDA device, sampled every five seconds by a daemon thread until `close`.

    Where nvidia-ml-py cannot be imported, or the driver refuses, `scalars` stays empty and `missing` says why.
    """

    def __init__(self, device: torch.device, *, interval_seconds: float = _INTERVAL_SECONDS) -> None:
        self.missing = ""
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._latest: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        if device.type != "cuda":
            self.missing = "no CUDA device"
            return
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            handle = _handle(nvml, device)
        except Exception as error:
            self.missing = f"{type(error).__name__}: {error}"
            return
        arguments = (weakref.ref(self), nvml, handle, self._stop)
        self._thread = threading.Thread(
            target=_sample_until_stopped, args=arguments, name="gradlab-telemetry", daemon=True
        )
        self._thread.start()

    def scalars(self) -> dict[str, float]:
        """The newest sample."""
        return self._latest

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            self._thread = None


def _handle(nvml: Any, device: torch.device) -> Any:
    """NVML's handle of torch's device: by UUID, since CUDA_VISIBLE_DEVICES numbers them anew."""
    properties = torch.cuda.get_device_properties(device)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")


def _sample_until_stopped(telemetry: weakref.ref[Telemetry], nvml: Any, handle: Any, stop: threading.Event) -> None:
    while True:
        scalars = read_nvml(nvml, handle)
        owner = telemetry()
        if owner is None:
            return
        owner._latest = scalars
        interval = owner._interval_seconds
        del owner
        if stop.wait(interval):
            return


def read_nvml(nvml: Any, handle: Any) -> dict[str, float]:
    """NVML's readings of one device; what the device does not have is left out."""
    readings: dict[str, Callable[[], float]] = {
        "perf/gpu_utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "perf/gpu_memory_used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        "perf/gpu_power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "perf/gpu_temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "perf/gpu_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
    }
    scalars: dict[str, float] = {}
    for name, read in readings.items():
        try:
            scalars[name] = float(read())
        except Exception:  # of NVML's own kind, or an attribute that an old nvidia-ml-py lacks
            continue
    return scalars
