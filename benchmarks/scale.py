"""What watching adds to a distributed step: collectives, bytes, host work and event file, at 1, 2 and 4 ranks on gloo.

docs/scale.md has the model that these figures check. Bare and watched steps alternate in one process a rank, each side
first as often as the other; CPU time of rank zero, all its threads and the training thread by itself, so that ranks
that wait for each other on few cores do not count.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from environment import write_result
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

import gradlab
from gradlab import Tap

RANKS = (1, 2, 4)
PARAMETERS, ALL = [Tap("*", of="weight_grad")], [Tap("*", of=["weight_grad", "output", "output_grad"])]
CASES = {
    "32 layers, parameters": (32, 192, PARAMETERS),
    "8 layers, all": (8, 192, ALL),
    "32 layers, all": (32, 192, ALL),
    "8 wide layers, parameters": (8, 1024, PARAMETERS),
    "8 wide layers, all": (8, 1024, ALL),
}
STEPS, ROUNDS = int(os.environ.get("SCALE_STEPS", "8")), int(os.environ.get("SCALE_ROUNDS", "36"))
BATCH = 192


class Job:
    """A model of some depth under DDP, and its training step."""

    def __init__(self, depth: int, width: int) -> None:
        torch.manual_seed(0)
        layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
        self.network = DistributedDataParallel(nn.Sequential(*layers))
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-3)
        self.x = torch.randn(BATCH, width)
        self.steps = max(1, STEPS * 192 // width)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.network(self.x).square().mean().backward()
        self.optimizer.step()

    def seconds(self) -> tuple[float, float]:
        """CPU time of a step, the mean over a few: of all threads, and of this one."""
        process, thread = time.process_time(), time.thread_time()
        for _ in range(self.steps):
            self.step()
        return (time.process_time() - process) / self.steps, (time.thread_time() - thread) / self.steps


def sent(step: Any) -> tuple[int, int]:
    """How many collectives a step sends, and the bytes of gradlab's, which alone go through `dist.all_reduce` here."""
    sizes: list[int] = []
    reduce = dist.all_reduce

    def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = noted
    try:
        with CommDebugMode() as comm:
            step()
    finally:
        dist.all_reduce = reduce
    return comm.get_total_counts(), sum(sizes)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One size of model on this number of ranks."""
    depth, width, taps = CASES[name]
    bare, watched = Job(depth, width), Job(depth, width)
    logdir = folder / f"{name}-{dist.get_world_size()}"
    monitor = gradlab.watch(
        watched.network, watched.optimizer, taps=taps, logdir=logdir, across_ranks=True, performance=False
    )
    for job in (bare, watched):
        for _ in range(3):
            job.step()
    collectives, without = sent(watched.step), sent(bare.step)
    pairs = []
    for turn in range(ROUNDS):
        first, second = (job.seconds() for job in ((bare, watched) if turn % 2 else (watched, bare)))
        pairs.append((first, second) if turn % 2 else (second, first))
    files = [*logdir.glob("events.out.*")]
    monitor._delivery.deliver(wait=True)
    size, logged = _size(monitor, files), monitor.step
    for _ in range(STEPS):
        watched.step()
    monitor._delivery.deliver(wait=True)
    grown = (_size(monitor, files) - size) / (monitor.step - logged)
    values = sum(len(series) for series in monitor.latest().values())
    monitor.close()
    return {
        "values": values,
        "collectives": collectives[0] - without[0],
        "bytes": collectives[1],
        "bare_ms": 1e3 * statistics.median(a for (a, _), _ in pairs),
        "added_ms": [1e3 * ms for ms in median(b - a for (a, _), (b, _) in pairs)],
        "thread_ms": 1e3 * statistics.median(b - a for (_, a), (_, b) in pairs),
        "event_bytes": round(grown),
    }


def median(values: Iterable[float]) -> tuple[float, float, float]:
    """The median and a 95 % interval of it, by order statistics."""
    ordered = sorted(values)
    far = round(0.98 * len(ordered) ** 0.5)
    middle = len(ordered) // 2
    return statistics.median(ordered), ordered[max(0, middle - far)], ordered[min(len(ordered) - 1, middle + far)]


def _size(monitor: gradlab.Monitor, files: list[Path]) -> int:
    for sink in monitor.sinks:
        sink.flush()
    return sum(file.stat().st_size for file in files)


def work(rank: int, world: int, port: int, folder: Path) -> None:
    """One rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook")  # CommDebugMode's
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = {name: measure(name, folder) for name in CASES}
    if rank == 0:
        (folder / f"{world}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(world: int, folder: Path) -> Mapping[str, Any]:
    """What rank zero of so many has measured."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    arguments = [str(world), str(port), str(folder)]
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), *arguments]) for rank in range(world)]
    if any([process.wait() for process in ranks]):
        raise SystemExit("a rank has failed")
    return json.loads((folder / f"{world}.json").read_text())


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for world in RANKS:
            for name, found in on_ranks(world, Path(folder)).items():
                n, (added, low, high) = found["values"], found["added_ms"]
                rows.append(
                    {
                        "case": f"{name}; ranks: {world}",
                        "values a step": n,
                        "collectives added": found["collectives"],
                        "bytes reduced": found["bytes"],
                        "by the model": 8 * (2 * n + 3) if world > 1 else 0,
                        "bare CPU ms": round(found["bare_ms"], 2),
                        "added CPU ms": round(added, 2),
                        "95 %": f"{low:.2f} to {high:.2f}",
                        "on the training thread": round(found["thread_ms"], 2),
                        "added %": round(100 * added / found["bare_ms"], 1),
                        "event bytes a step": found["event_bytes"],
                    }
                )
    write_result("scale", rows, steps=STEPS, rounds=ROUNDS, batch=BATCH)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
