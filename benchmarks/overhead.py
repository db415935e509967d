"""What watching costs: gradlab against no watching at all and against what people use instead, in one run.

All variants of a model take their turns in random order, round after round; a ratio is the median over the rounds of
CPU time with the variant by CPU time of the unwatched model in the same round. The second unwatched row shows how far
apart two equal things are. Host reads are counted under torch.profiler on one more step: each would stall a GPU.

    python benchmarks/overhead.py [--rounds 30] [--models transformer ...] [--variants ...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from environment import write_result
from subjects import SUBJECTS, Subject, make

import gradlab
from gradlab import Tap

EVERYTHING = (Tap("*", of=["output", "output_grad"]), Tap("*", of="weight_grad"))
Step = Callable[[], None]


def unwatched(subject: Subject) -> Step:
    """Nothing but training."""
    return subject.step


def with_taps(*taps: Tap) -> Callable[[Subject], Step]:
    """gradlab with these taps, writing an event file."""

    def watched(subject: Subject) -> Step:
        gradlab.watch(subject.model, subject.optimizer, taps=taps, logdir=tempfile.mkdtemp())
        return subject.step

    return watched


def every(steps: int, taps: tuple[Tap, ...] = EVERYTHING) -> tuple[Tap, ...]:
    """The same taps, due less often."""
    return tuple(Tap(tap.at, of=tap.of, every=steps) for tap in taps)


def wandb_watch(subject: Subject) -> Step:
    """wandb.watch of the gradients, logged every step, offline."""
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), reinit="create_new")
    run.watch(subject.model, log="gradients", log_freq=1)

    def step() -> None:
        subject.step()
        run.log({})

    return step


def lightning_grad_norm(subject: Subject) -> Step:
    """Lightning's grad_norm after each backward, as its documentation shows."""
    from pytorch_lightning.utilities import grad_norm

    def step() -> None:
        subject.optimizer.zero_grad()
        subject.loss().backward()
        grad_norm(subject.model, norm_type=2)
        subject.optimizer.step()

    return step


def detect_anomaly(subject: Subject) -> Step:
    """torch.autograd.detect_anomaly around each step."""

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autograd.detect_anomaly():
                subject.step()

    return step


def full_backward_hooks(subject: Subject) -> Step:
    """A norm and its host read in register_full_backward_hook of every module."""
    norms: list[float] = []

    def hook(module: Any, grad_input: Any, grad_output: Any) -> None:
        norms.append(grad_output[0].norm().item())

    for module in subject.model.modules():
        module.register_full_backward_hook(hook)

    def step() -> None:
        norms.clear()
        subject.step()

    return step


def torchlens(subject: Subject) -> Step:
    """TorchLens: a log of every op of the forward, with gradients, each step."""
    raise ImportError("TorchLens logs a forward that it runs itself; see benchmarks/memory.py for what it keeps")


VARIANTS: dict[str, Callable[[Subject], Step]] = {
    "unwatched": unwatched,
    "unwatched again": unwatched,
    "gradlab: parameter gradients": with_taps(Tap("*", of="weight_grad")),
    "gradlab: everything": with_taps(*EVERYTHING),
    "gradlab: everything, every 10th step": with_taps(*every(10)),
    "gradlab: nothing due": with_taps(*every(10**9)),
    "wandb.watch (gradients)": wandb_watch,
    "Lightning grad_norm": lightning_grad_norm,
    "torch detect_anomaly": detect_anomaly,
    "module full backward hooks": full_backward_hooks,
}
STEPS = {"mlp": 20, "convnet": 2, "transformer": 2, "dispatch-bound": 10}


def host_reads(step: Step) -> int:
    """How many device-to-host reads one step makes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    return sum(event.name == "aten::_local_scalar_dense" for event in profile.profiler.kineto_results.events())


def measure(name: str, variants: list[str], rounds: int) -> list[dict[str, Any]]:
    """The rows of one model."""
    steps: dict[str, Step] = {}
    for variant in variants:
        with contextlib.suppress(ImportError):
            steps[variant] = VARIANTS[variant](make(name))
    for step in steps.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(rounds):
        for variant in random.sample(list(steps), len(steps)):
            began = time.process_time()
            for _ in range(STEPS[name]):
                steps[variant]()
            times[variant].append((time.process_time() - began) / STEPS[name])
    base = times["unwatched"]
    return [
        {
            "model": name,
            "variant": variant,
            "ms a step": round(1e3 * statistics.median(times[variant]), 3),
            "ratio": round(statistics.median(t / b for t, b in zip(times[variant], base, strict=True)), 4),
            "host reads": host_reads(steps[variant]),
        }
        for variant in steps
    ]


def main() -> None:
    """Measure every model and write one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    rows = [row for name in arguments.models for row in measure(name, arguments.variants, arguments.rounds)]
    write_result("overhead", rows, "wandb", "pytorch-lightning", rounds=arguments.rounds, threads=1)


if __name__ == "__main__":
    main()
