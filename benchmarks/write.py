"""What it costs to write one logged step of 200 sites by 5 statistics: gradlab's event writer against torch's.

    python benchmarks/write.py

All variants take turns in one process. CPU time is the process's, so that it holds what torch's writer thread takes
from the training thread; both times include the flush at the end. The median over the rounds is reported. The names,
which are written once a file, are in neither the times nor the bytes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from environment import write_result
from torch.utils.tensorboard import SummaryWriter

from gradlab.events import EventWriter
from gradlab.frame import Frame, Schema, Series
from gradlab.sinks import TensorBoardSink

ROUNDS = 9
METRICS = ("weight_grad.norm", "weight_grad.max_abs", "output.norm", "output_grad.norm", "update.norm")
SITES = tuple(f"encoder.layers.{i // 4}.{part}.weight" for i in range(200) for part in ("qkvo"[i % 4],))
FEW_SITES = SITES[:20]


@dataclass(frozen=True)
class Variant:
    """A way to write a step."""

    name: str
    steps: int
    """How many steps a round has."""
    sites: tuple[str, ...]
    open: Callable[[Path, tuple[str, ...]], tuple[Callable[[int], None], Callable[[], None], Callable[[], None]]]
    """Makes the functions that write a step, flush, and close."""


def vectors(folder: Path, sites: tuple[str, ...]):
    writer, schemas, values = EventWriter(folder), [Schema(metric, sites) for metric in METRICS], numbers(sites)
    return lambda step: writer.vectors(zip(schemas, values, strict=True), step, 1.5e9), writer.flush, writer.close


def sink(folder: Path, sites: tuple[str, ...]):
    return open_sink(folder, sites, "few")


def sink_all(folder: Path, sites: tuple[str, ...]):
    return open_sink(folder, sites, "all")


def open_sink(folder: Path, sites: tuple[str, ...], scalars: str):
    sink = TensorBoardSink(EventWriter(folder), scalars=scalars)
    series = {m: Series(Schema(m, sites), v) for m, v in zip(METRICS, numbers(sites), strict=True)}
    return lambda step: sink.frame(Frame(step, 1.5e9, series)), sink.flush, sink.close


def add_scalar(folder: Path, sites: tuple[str, ...]):
    writer = SummaryWriter(folder)
    named = [
        (f"{m}/{s}", float(v))
        for m, vs in zip(METRICS, numbers(sites), strict=True)
        for s, v in zip(sites, vs, strict=True)
    ]

    def write(step: int) -> None:
        for tag, value in named:
            writer.add_scalar(tag, value, step)

    return write, writer.flush, writer.close


def add_scalars(folder: Path, sites: tuple[str, ...]):
    writer = SummaryWriter(folder)
    named = {m: dict(zip(sites, map(float, vs), strict=True)) for m, vs in zip(METRICS, numbers(sites), strict=True)}

    def write(step: int) -> None:
        for metric, by_site in named.items():
            writer.add_scalars(metric, by_site, step)

    return write, writer.flush, writer.close


def numbers(sites: tuple[str, ...]) -> np.ndarray:
    """[metrics, sites] float32."""
    return np.random.default_rng(0).lognormal(0, 3, (len(METRICS), len(sites))).astype(np.float32)


VARIANTS = (
    Variant("gradlab: EventWriter.vectors", 2000, SITES, vectors),
    Variant("gradlab: TensorBoardSink.frame", 2000, SITES, sink),
    Variant("gradlab: TensorBoardSink.frame, scalars=all", 500, SITES, sink_all),
    Variant("torch: add_scalar", 10, SITES, add_scalar),
    # add_scalars keeps one file and one thread a line: 200 sites would be a thousand of each.
    Variant("torch: add_scalars (20 sites)", 10, FEW_SITES, add_scalars),
)


def measure(variant: Variant) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and bytes of one step."""
    with tempfile.TemporaryDirectory(prefix="gradlab-benchmark-") as name:
        write, flush, close = variant.open(Path(name), variant.sites)
        for step in range(2):
            write(step)
        flush()
        size, cpu, wall = bytes_in(name), time.process_time(), time.perf_counter()
        for step in range(2, variant.steps + 2):
            write(step)
        flush()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        close()
        return cpu / variant.steps, wall / variant.steps, (bytes_in(name) - size) / variant.steps


def bytes_in(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def main() -> None:
    measured: dict[str, list[tuple[float, float, float]]] = {variant.name: [] for variant in VARIANTS}
    for round_ in range(ROUNDS + 1):
        for variant in VARIANTS:
            found = measure(variant)
            if round_ > 0:  # the first round pays for imports
                measured[variant.name].append(found)
    rows = [row(variant, measured[variant.name]) for variant in VARIANTS]
    path = write_result("write", rows, "numpy", "tensorboard", "google-crc32c", sites=len(SITES), metrics=len(METRICS))
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def row(variant: Variant, found: list[tuple[float, float, float]]) -> dict[str, str | float]:
    cpu, wall, size = (statistics.median(column) for column in zip(*found, strict=True))
    values = len(METRICS) * len(variant.sites)
    return {
        "writer": variant.name,
        "values a step": values,
        "CPU us a step": round(1e6 * cpu, 2),
        "wall us a step": round(1e6 * wall, 2),
        "CPU ns a value": round(1e9 * cpu / values, 2),
        "bytes a value": round(size / values, 2),
    }


if __name__ == "__main__":
    main()
