"""What profiling costs: the always-on layer, steps outside and inside windows, a window's end, a large trace.

Each row is one claim. Variants are interleaved in one process, with one torch thread, as CPU time of the training
thread (the large trace: CPU time of the process); a row has the median over the rounds. The usual way is
`torch.profiler.profile(profile_memory=True)` with `tensorboard_trace_handler(use_gzip=True)` and the table of
`key_averages()`; in Lightning, its PyTorchProfiler with the same schedule.

    python benchmarks/profiling.py [--rounds 15] [--trace-megabytes 200]

Not called profile.py: Python's own `cProfile` imports a module of that name.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from environment import write_result
from pytorch_lightning.profilers import PyTorchProfiler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import gradlab
from gradlab.events import EventWriter
from gradlab.lightning.callback import GradlabCallback
from gradlab.perf.performance import Performance
from gradlab.profiling.analysis.summary import summarize
from gradlab.profiling.kineto import read_window
from gradlab.profiling.options import ON_DEMAND, Profile
from gradlab.profiling.profiler import Profiler
from gradlab.profiling.recording import Recording
from gradlab.profiling.trace_file import save_traces
from gradlab.sinks import TensorBoardSink

STEPS = 4
AFTER_WINDOW = range(12, 40)
"""The batches of a fit that are measured: the window is over by then."""


class Training:
    """A transformer encoder of four layers on random tokens, with AdamW: about 40 modules, 3,000 events a step."""

    def __init__(self, width: int = 64) -> None:
        torch.manual_seed(0)
        self.model = make_model(width)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.tokens = torch.randint(100, (4, 32))

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.tokens).flatten(0, 1), self.tokens.flatten()).backward()
        self.optimizer.step()


def make_model(width: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
    return nn.Sequential(nn.Embedding(100, width), nn.TransformerEncoder(layer, 4), nn.Linear(width, 100))


def cpu_ms(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return 1000 * (time.thread_time() - start)


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="gradlab-benchmark-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


# Steps of a plain loop. Each variant is attached once; its steps alternate with those of the others.


def steps_of_loops(rounds: int, logdirs: Path) -> list[dict[str, Any]]:
    """Plain steps, steps with the always-on layer, and steps outside windows."""
    plain, again, always, watched, outside = (Training() for _ in range(5))
    sink = TensorBoardSink(EventWriter(logdirs / "always"))
    scalars = Performance(always.model, sink.scalars, strict=True)
    scalars.attach()
    always.optimizer.register_step_pre_hook(lambda *_: scalars.optimizer_begins())
    always.optimizer.register_step_post_hook(lambda *_: scalars.optimizer_ended())
    numbers = itertools.count()
    monitor = gradlab.watch(watched.model, watched.optimizer, taps=[], logdir=logdirs / "watched", strict=True)
    profiler = Profiler(ON_DEMAND, logdirs / "outside", outside.model, strict=True)
    profiler.begin()

    def outside_step() -> None:
        profiler.data_ready()
        outside.step()
        profiler.step()

    def always_step() -> None:
        always.step()
        scalars.step_ended(next(numbers))

    variants = {
        "unwatched": plain.step,
        "unwatched again": again.step,
        "always-on scalars": always_step,
        "a monitor without taps, with all of this": watched.step,
        "outside windows": outside_step,
    }
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(10 * rounds + 5):
        for name in random.sample(list(variants), len(variants)):
            step = variants[name]
            spent = cpu_ms(lambda step=step: [step() for _ in range(STEPS)]) / STEPS
            if number >= 5:  # the first rounds pay for imports, caches and the counting of FLOPs
                found[name].append(spent)
    monitor.close()
    scalars.close()
    profiler.close()
    return rows("step", found, "unwatched")


def rows(what: str, found: dict[str, list[float]], base: str) -> list[dict[str, Any]]:
    """A row a variant: its median, and the median of its ratios to the base of the same round."""
    return [
        {
            "what": what,
            "variant": name,
            "ms": round(statistics.median(values), 3),
            "ratio": round(statistics.median(v / b for v, b in zip(values, found[base], strict=True)), 4),
            "rounds": len(values),
        }
        for name, values in found.items()
    ]


# Windows: a step inside, and the end.


def our_window(training: Training, path: Path) -> tuple[float, float]:
    profiler = Profiler(Profile(wait=0, warmup=1, active=STEPS), path, training.model, strict=True)
    profiler.begin()
    training.step()
    profiler.step()
    steps = []
    for number in range(STEPS):
        steps.append(cpu_ms(training.step))
        if number < STEPS - 1:
            profiler.step()
    end = cpu_ms(profiler.step)
    profiler.close()
    return statistics.median(steps), end / STEPS


def usual_window(training: Training, path: Path) -> tuple[float, float]:
    handler = torch.profiler.tensorboard_trace_handler(str(path), use_gzip=True)
    profiler = torch.profiler.profile(profile_memory=True)
    training.step()
    profiler.start()
    steps = [cpu_ms(training.step) for _ in range(STEPS)]

    def finish() -> None:
        profiler.stop()
        handler(profiler)
        profiler.key_averages().table(row_limit=20)

    return statistics.median(steps), cpu_ms(finish) / STEPS


def windows(rounds: int) -> list[dict[str, Any]]:
    """A step inside a window and its end, a recorded step, against the usual way."""
    training = Training()
    inside: dict[str, list[float]] = {"torch.profiler": [], "gradlab": [], "unwatched": []}
    ends: dict[str, list[float]] = {"torch.profiler, gzip, key_averages": [], "gradlab": []}
    for number in range(rounds + 1):
        with folder() as path:
            usual, ours = usual_window(training, path), our_window(training, path)
        unwatched = statistics.median(cpu_ms(training.step) for _ in range(STEPS))
        if number > 0:
            for values, spent in zip(inside.values(), (usual[0], ours[0], unwatched), strict=True):
                values.append(spent)
            for values, spent in zip(ends.values(), (usual[1], ours[1]), strict=True):
                values.append(spent)
    return rows("step inside a window", inside, "torch.profiler") + rows(
        "end of a window, a recorded step", ends, "gradlab"
    )


# Lightning: batches after the window is over.


class Lightning(pl.LightningModule):
    """The same training under Lightning; notes the CPU time between batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = make_model(64)
        self.spent: list[float] = []
        self._last = 0.0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        now = time.thread_time()
        if batch_idx in AFTER_WINDOW:
            self.spent.append(1000 * (now - self._last))
        self._last = now
        return F.cross_entropy(self.model(batch).flatten(0, 1), batch.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.randint(100, (4 * AFTER_WINDOW.stop, 32)), batch_size=4)


def fit(path: Path, *, callbacks: list[pl.Callback], profiler: Any = None) -> float:
    """The median CPU time of a batch after the window."""
    module = Lightning()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        callbacks=callbacks,
        profiler=profiler,
    )
    trainer.fit(module)
    return statistics.median(module.spent)


def lightning(rounds: int) -> list[dict[str, Any]]:
    """Batches after a window of three steps, against Lightning's own profiler."""
    found: dict[str, list[float]] = {"unwatched": [], "gradlab": [], "Lightning's PyTorchProfiler": []}
    for number in range(rounds + 1):
        with folder() as path:
            schedule = torch.profiler.schedule(wait=5, warmup=2, active=3)
            theirs = PyTorchProfiler(dirpath=path, filename="theirs", schedule=schedule, profile_memory=True)
            ours = GradlabCallback(taps=[], profile=Profile(), performance=True, profile_dir=path)
            ways = {
                "unwatched": partial(fit, path, callbacks=[]),
                "gradlab": partial(fit, path, callbacks=[ours]),
                "Lightning's PyTorchProfiler": partial(fit, path, callbacks=[], profiler=theirs),
            }
            for name in random.sample(list(ways), len(ways)):
                spent = ways[name]()
                if number > 0:
                    found[name].append(spent)
    return rows("Lightning batch after a window", found, "unwatched")


# A large trace.


def large_trace(megabytes: float) -> list[dict[str, Any]]:
    """What it takes to summarise, and to write, a trace of so many megabytes."""
    training = Training()
    training.step()
    num_steps = max(1, round(megabytes / megabytes_a_step(training)))
    recorded, size = record(training, num_steps), 0.0
    start = time.process_time()
    num_events = len(recorded.results.events())
    summarize(read_window(recorded))
    summarised = time.process_time() - start
    with folder() as path:
        start = time.process_time()
        files = save_traces(recorded, path, rank=0, stamp=1, keep_raw=False)
        written = time.process_time() - start
        size = sum(file.stat().st_size for file in files.values()) / 1e6
    what = f"trace of {megabytes:.0f} MB, {num_steps} steps, {num_events} events"
    return [
        {"what": what, "variant": "summarised", "ms": round(1000 * summarised), "ratio": None, "rounds": 1},
        {"what": what, "variant": f"written, {size:.0f} MB", "ms": round(1000 * written), "ratio": None, "rounds": 1},
    ]


def record(training: Training, num_steps: int) -> Any:
    recording = Recording(Profile(), training.model, lambda: (training.optimizer,))
    recording.start()
    for number in range(num_steps):
        recording.begin_step(number, waits_for_data=False)
        training.step()
        recording.end_step()
    return recording.stop()


def megabytes_a_step(training: Training) -> float:
    with folder() as path:
        file = path / "trace.json"
        record(training, 2).results.save(str(file))
        return file.stat().st_size / 2e6


def main() -> None:
    """Measure every claim and write one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--trace-megabytes", type=float, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with folder() as path:
        found = steps_of_loops(arguments.rounds, path)
    found += windows(arguments.rounds)
    found += lightning(max(3, arguments.rounds // 3))
    found += large_trace(arguments.trace_megabytes)
    write_result(
        "profiling",
        found,
        *("gradlab", "pytorch-lightning"),
        rounds=arguments.rounds,
        threads=1,
        load_average=round(os.getloadavg()[1], 1),
        clock="CPU time of the training thread; the large trace: of the process",
    )


if __name__ == "__main__":
    main()
