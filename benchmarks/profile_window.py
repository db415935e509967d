"""What a profile window costs: outside it, inside it, and at its end, against torch.profiler used the usual way.

    python benchmarks/profile_window.py

All variants are measured in one process, interleaved, as CPU time of the training thread with one torch thread, and
the median over the rounds is reported. The usual way is `torch.profiler.profile(profile_memory=True)` with
`tensorboard_trace_handler(use_gzip=True)` and the table of `key_averages()`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from gradlab.profiling.schedule import Profile
from gradlab.profiling.window import Profiler

ROUNDS = 15
STEPS = 3


class Training:
    """A transformer encoder of four layers on random tokens, with AdamW: about 40 modules, 3,000 events a step."""

    def __init__(self, width: int = 64) -> None:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.model = nn.Sequential(nn.Embedding(100, width), nn.TransformerEncoder(layer, 4), nn.Linear(width, 100))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.tokens = torch.randint(100, (4, 32))

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.tokens).flatten(0, 1), self.tokens.flatten()).backward()
        self.optimizer.step()


def cpu_ms(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return 1000 * (time.thread_time() - start)


def plain(training: Training, folder: Path) -> dict[str, float]:
    return {"step": statistics.median(cpu_ms(training.step) for _ in range(STEPS))}


def outside(training: Training, folder: Path) -> dict[str, float]:
    """Steps on which no window is open, with all the calls that the training loop makes."""
    profiler = Profiler(Profile(wait=10**6), folder, training.model)
    profiler.begin()

    def step() -> None:
        profiler.data_ready()
        training.step()
        profiler.step()

    return {"step": statistics.median(cpu_ms(step) for _ in range(STEPS))}


def gradlab_window(training: Training, folder: Path) -> dict[str, float]:
    profiler = Profiler(Profile(wait=0, warmup=1, active=STEPS), folder, training.model, strict=True)
    profiler.begin()
    training.step()
    profiler.step()
    steps = []
    for number in range(STEPS):
        steps.append(cpu_ms(training.step))
        if number < STEPS - 1:
            profiler.step()
    end = cpu_ms(profiler.step)
    start = time.perf_counter()
    profiler.close()
    background = 1000 * (time.perf_counter() - start)
    return {"step": statistics.median(steps), "end": end / STEPS, "background (wall)": background / STEPS}


def usual_window(training: Training, folder: Path) -> dict[str, float]:
    handler = torch.profiler.tensorboard_trace_handler(str(folder), use_gzip=True)
    profiler = torch.profiler.profile(profile_memory=True)
    training.step()
    profiler.start()
    steps = [cpu_ms(training.step) for _ in range(STEPS)]

    def finish() -> None:
        profiler.stop()
        handler(profiler)
        profiler.key_averages().table(row_limit=20)

    return {"step": statistics.median(steps), "end": cpu_ms(finish) / STEPS}


def idle_calls_us() -> float:
    """The calls of one step of the loop, outside windows, on their own."""
    profiler = Profiler(Profile(wait=10**9), "nowhere")
    profiler.begin()
    calls = 100_000

    def loop() -> None:
        for _ in range(calls):
            profiler.data_ready()
            profiler.step()

    return 1000 * cpu_ms(loop) / calls


def main() -> None:
    torch.set_num_threads(1)
    training = Training()
    variants = (plain, outside, gradlab_window, usual_window)
    measured: dict[str, list[dict[str, float]]] = {variant.__name__: [] for variant in variants}
    for round_ in range(ROUNDS + 1):
        for variant in variants:
            folder = Path(tempfile.mkdtemp(prefix="gradlab-benchmark-"))
            found = variant(training, folder)
            shutil.rmtree(folder)
            if round_ > 0:  # the first round pays for imports and caches
                measured[variant.__name__].append(found)
    report(measured, idle_calls_us())


def report(measured: dict[str, list[dict[str, float]]], idle_us: float) -> None:
    medians = {
        name: {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
        for name, rows in measured.items()
    }
    base = medians["plain"]["step"]
    results = {
        "milliseconds": medians,
        "step over plain": {name: round(row["step"] / base, 3) for name, row in medians.items()},
        "calls of one step outside windows, microseconds": round(idle_us, 2),
        "end of window, usual over gradlab": round(
            medians["usual_window"]["end"] / medians["gradlab_window"]["end"], 1
        ),
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
