"""How often a step reads from the device, and how much memory it takes: counted once, by the profiler.

Each read makes a GPU wait for all that was queued before. They are counted on a CPU too, where they are free: scalar
reads (`aten::_local_scalar_dense`: item(), float(), bool(), torch.tensor of 0-d tensors) by the profiler, copies to the
host as calls. On a GPU, where the profiler would count scalar reads of host tensors too, both are transfers, counted as
copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from variants import VARIANTS, Step

from gradlab.profiling.kineto import read_allocations, read_events
from gradlab.taps.buffer.transfer import HostCopy

SCALAR_READ = "aten::_local_scalar_dense"
MEASURED = "measured"


class Count(NamedTuple):
    """What one step brings to the host and takes of memory."""

    scalars: float
    copies: float
    peak: int


@contextlib.contextmanager
def counted_copies() -> Iterator[list[str]]:
    """Calls that copy a tensor to the host, or would if it lay on a GPU: `Tensor.cpu`, `.to("cpu")`, gradlab's own."""
    calls: list[str] = []
    cpu, to, init = Tensor.cpu, Tensor.to, HostCopy.__init__

    def counted_cpu(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append("cpu")
        return cpu(self, *args, **kwargs)

    def counted_to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if any(isinstance(a, str | torch.device) and str(a) == "cpu" for a in (*args, *kwargs.values())):
            calls.append("to")
        return to(self, *args, **kwargs)

    def counted_init(self: HostCopy, *args: Any, **kwargs: Any) -> None:
        calls.append("HostCopy")
        init(self, *args, **kwargs)

    patches = ((Tensor, "cpu", counted_cpu), (Tensor, "to", counted_to), (HostCopy, "__init__", counted_init))
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in patches:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield calls


def count(step: Step, variant: str, device: str = "cpu") -> Count:
    """What the steps of one period of a variant read and take: reads on average, memory at most."""
    period = VARIANTS[variant].period
    with VARIANTS[variant].turn():
        scalars, copies = host_reads(step, period, device)
        return Count(scalars / period, copies / period, peak_bytes(step, period, device))


def host_reads(step: Step, steps: int, device: str) -> tuple[int, int]:
    """The scalar reads and the copies to the host of some steps."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with counted_copies() as calls, profile(activities=activities) as recorded:
        for _ in range(steps):
            step()
        if device != "cpu":
            torch.cuda.synchronize()
    events = read_events(recorded.profiler.kineto_results)  # type: ignore[union-attr]
    scalars = sum(event.name == SCALAR_READ for event in events)
    if device == "cpu":
        return scalars, len(calls)
    transfers = sum(event.name.startswith("Memcpy DtoH") for event in events)
    return 0, transfers  # a scalar read of a tensor on the device is such a transfer too


def peak_bytes(step: Step, steps: int, device: str) -> int:
    """The most memory that tensors take during some steps, above the least, which is what stays between two steps.

    One step more goes before, so that the sizes of all that is freed are known.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with profile(activities=activities, profile_memory=True) as recorded:
        step()
        with record_function(MEASURED):
            for _ in range(steps):
                step()
    events = read_events(recorded.profiler.kineto_results)  # type: ignore[union-attr]
    began = next(event.start for event in events if event.name == MEASURED and not event.on_device)
    allocations = read_allocations(recorded.profiler.kineto_results)  # type: ignore[union-attr]
    changes = [a for a in allocations if (a.device != "cpu") == (device != "cpu") and a.time >= began]
    now = peak = least = 0
    for change in sorted(changes, key=lambda change: change.time):
        now += change.num_bytes
        peak, least = max(peak, now), min(least, now)
    return peak - least
