"""A small real training run to profile, and readers of what a window writes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradlab.profiling.analysis.events import Event
from gradlab.profiling.profiler import Profiler


class Run:
    """An MLP, its optimizer and its data; `step` trains on one batch."""

    def __init__(self, model: nn.Module | None = None, width: int = 16) -> None:
        torch.manual_seed(0)
        self.model = model or nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 4))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.x, self.y = torch.randn(8, width), torch.randint(4, (8,))
        self.losses: list[float] = []

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    def train(self, profiler: Profiler, num_steps: int) -> None:
        profiler.begin(0)
        for number in range(num_steps):
            profiler.data_ready()
            self.step()
            profiler.step(number)


def num_hooks(model: nn.Module) -> int:
    """All hooks on all modules, of every kind that PyTorch knows."""
    return sum(
        len(value)
        for module in model.modules()
        for name, value in vars(module).items()
        if "_hooks" in name and hasattr(value, "__len__")
    )


def read_trace(window: Path) -> dict[str, Any]:
    (path,) = window.glob("*.pt.trace.json.gz")
    return json.loads(gzip.decompress(path.read_bytes()))


def read_summary(window: Path) -> dict[str, Any]:
    return json.loads((window / "summary.json").read_text())


def recorded_steps(window: Path) -> list[int]:
    return [row["step"] for row in read_summary(window)["steps"]]


def events_of(trace: dict[str, Any]) -> list[Event]:
    """The events of a Chrome trace in the form in which a live window reads them from kineto."""
    ranges = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    (main,) = {event["tid"] for event in ranges if event["name"].startswith("ProfilerStep#")}
    return [_event(event, main) for event in ranges if event["cat"] in (*_HOST, *_DRIVER, *_DEVICE)]


_HOST = ("cpu_op", "user_annotation")
_DRIVER = ("cuda_runtime", "cuda_driver")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def _event(event: dict[str, Any], main: int) -> Event:
    arguments = event.get("args", {})
    start = round(event["ts"] * 1000)
    operator, on_device = event["cat"] in _HOST, event["cat"] in _DEVICE
    return Event(
        name=event["name"],
        start=start,
        end=start + round(event["dur"] * 1000),
        thread=event["tid"],
        on_device=on_device,
        sequence=arguments.get("Sequence number", -1),
        forward_thread=main if arguments.get("Fwd thread id") else 0,
        correlation=arguments.get("External id" if operator else "correlation", 0),
        launched_by=0 if operator else arguments.get("External id", 0),
    )


def crossings(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The pairs of ranges of a Chrome trace that intersect on their thread, by name."""
    found, open_ones = [], []
    ranges = [
        (event["tid"], start, -start - round(event["dur"] * 1000), event["name"])
        for event in events
        if event.get("ph") == "X" and event["cat"] in (*_HOST, "python_function")
        for start in [round(event["ts"] * 1000)]
    ]
    for thread, start, end, name in sorted(ranges):
        while open_ones and (open_ones[-1][0] != thread or open_ones[-1][1] <= start):
            open_ones.pop()
        if open_ones and -end > open_ones[-1][1]:
            found.append((open_ones[-1][2], name))
        open_ones.append((thread, -end, name))
    return found
