"""What watching costs: gradlab against no watching at all and against what people use instead, in one run.

Every turn of a variant is a pair: a few steps unwatched and as many steps watched, in random order; a ratio is the
median over the pairs of one variant, so that what the machine does meanwhile meets both sides. Turns of all variants
alternate until the time is used up. "unwatched again" is a pair of two equal things: what differs from 1 there, and the
width of the interval, is the resolution of the run. Reads beyond those of the unwatched step and peak memory above idle
are counted a step on their own (see `reads`).

On a CPU, time is that of the training thread; on a GPU it is wall time until the device has finished.

    python benchmarks/overhead.py [--device cuda] [--seconds 40] [--models transformer ...] [--variants ...]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import torch
from environment import write_result
from reads import count
from subjects import SUBJECTS, make, names
from variants import BASE, VARIANTS, WARM_UP, Step, attached, available

STEPS = {"mlp": 5, "dispatch-bound": 2}
"""Steps of one turn, where that is not 1."""


class Clock:
    """The time that steps take, in seconds."""

    def __init__(self, device: str) -> None:
        self.on_cpu = device == "cpu"

    def __call__(self, step: Step, steps: int) -> float:
        began = self._now()
        for _ in range(steps):
            step()
        return self._now() - began

    def _now(self) -> float:
        if self.on_cpu:
            return time.thread_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def timed_pairs(
    steps: dict[str, Step], turn_steps: int, seconds: float, clock: Clock
) -> dict[str, list[tuple[float, float]]]:
    """(unwatched, watched) seconds of each turn of each variant; whoever had least of its share has the next turn."""
    pairs: dict[str, list[tuple[float, float]]] = {variant: [] for variant in steps if variant != BASE}
    spent = dict.fromkeys(pairs, 0.0)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        variant = min(spent, key=lambda v: spent[v] / VARIANTS[v].share + random.random() * 1e-6)
        began, measured = time.monotonic(), dict[str, float]()
        for side in random.sample((BASE, variant), 2):
            with VARIANTS[side].turn():
                measured[side] = clock(steps[side], turn_steps)
        pairs[variant].append((measured[BASE], measured[variant]))
        spent[variant] += time.monotonic() - began
    return pairs


def estimate(pairs: list[tuple[float, float]], period: int, turn_steps: int) -> tuple[float, float, float]:
    """The ratio of watched to unwatched time, and a 95 % interval of it.

    Medians are taken apart over the turns with a due step and those without, and weighed by how many there are in a
    period: the median of both together would leave out the rare, expensive ones.
    """
    due, rest = [], []
    for turn, (base, watched) in enumerate(pairs):
        first = WARM_UP + turn * turn_steps
        is_due = -first % period < turn_steps
        (due if is_due else rest).append(watched / base)
    if not due or not rest:
        return _median(due or rest)
    weight = min(1.0, turn_steps / period)
    both = zip(_median(due), _median(rest), strict=True)
    ratio, low, high = (weight * a + (1 - weight) * b for a, b in both)
    return ratio, low, high


def _median(values: list[float]) -> tuple[float, float, float]:
    """The median and a 95 % interval of it by order statistics; the range itself below six values."""
    values, n = sorted(values), len(values)
    low = max(0, n // 2 - round(0.98 * n**0.5))  # 1.96 standard deviations of a binomial(n, 1/2)
    return statistics.median(values), values[low], values[n - 1 - low]


def measure(name: str, variants: list[str], seconds: float, device: str) -> list[dict[str, Any]]:
    """The rows of one model."""
    attempts = {variant: attached(variant, make(name, device)) for variant in variants}
    steps = {variant: step for variant, step in attempts.items() if not isinstance(step, str)}
    turn_steps = STEPS.get(name, 1)
    pairs = timed_pairs(steps, turn_steps, seconds, Clock(device))
    base_ms = 1e3 * statistics.median(base / turn_steps for turns in pairs.values() for base, _ in turns)
    base = count(steps[BASE], BASE, device)
    rows = []
    for variant, step in attempts.items():
        row: dict[str, Any] = {"model": name, "variant": variant}
        if isinstance(step, str):
            row |= dict.fromkeys(("time", "95 %", "scalar reads", "copies", "memory", "turns"))
            rows.append(row | {"note": step})
            continue
        turns = pairs.get(variant) or [(1.0, 1.0)]
        ratio, low, high = estimate(turns, VARIANTS[variant].period, turn_steps)
        row |= {"time": round(ratio, 4), "95 %": f"{low:.3f} to {high:.3f}"}
        counted = count(step, variant, device)
        row |= {"scalar reads": counted.scalars - base.scalars, "copies": counted.copies - base.copies}
        row |= {"memory": round(counted.peak / base.peak, 4), "turns": len(pairs.get(variant, ()))}
        rows.append(row | {"note": f"{base_ms:.2f} ms a step" if variant == BASE else ""})
    return rows


def main() -> None:
    """Measure every model and write one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=40, help="for each model, after warming up")
    parser.add_argument("--models", nargs="*", choices=list(SUBJECTS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    device, variants = arguments.device, available(arguments.variants)
    models = arguments.models or names(device)
    rows = [row for name in models for row in measure(name, variants, arguments.seconds, device)]
    write_result(
        "overhead" if device == "cpu" else f"overhead-{device}",
        rows,
        *("gradlab", "wandb", "pytorch-lightning", "torchlens"),
        seconds_a_model=arguments.seconds,
        threads=1,
        device=torch.cuda.get_device_name() if device != "cpu" else "cpu",
        clock="CPU time of the training thread" if device == "cpu" else "wall time, device synchronised",
    )


if __name__ == "__main__":
    main()
