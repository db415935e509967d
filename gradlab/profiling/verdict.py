"""What holds a training step back, in words: its data, its host or its arithmetic; the evidence, and what to try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bound = Literal["input", "host", "compute"]

# The remedies differ from here on; below a fifth of the step, waiting for data is not what to work on first.
INPUT_SHARE = 0.2
DEVICE_BUSY_SHARE = 0.8
HOST_SHARE = 0.5

_TRY: dict[Bound, tuple[str, ...]] = {
    "input": (
        "give the DataLoader more workers (num_workers) and keep them alive (persistent_workers=True)",
        "move work out of the dataset's __getitem__: decode or tokenize once, ahead of training",
        "on a GPU, pin_memory=True with non_blocking copies",
    ),
    "host": (
        "a larger batch: the same calls, more arithmetic in each",
        "torch.compile, which joins many small operators into few",
        "fused or foreach optimizers, and no .item() or print of a tensor inside the step",
    ),
    "compute": (
        "lower precision (bf16-mixed) where the hardware has it",
        "a cheaper form of what takes most of the time",
        "torch.compile, which saves passes over memory between pointwise operators",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What the verdict rests on: shares of the mean recorded step, each from 0 to 1."""

    data: float
    """Waiting for the next batch."""
    overhead: float
    """Of the rest: Python, the autograd engine, and kinds of operators whose typical call is below 5 microseconds."""
    device_busy: float | None
    """Some kernel running; None where no device was used."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What bounds the step."""

    bound: Bound
    sentence: str
    attempts: tuple[str, ...]
    """What to try, the most promising first."""


def judge(shares: Shares, *, step_ms: float, largest: tuple[str, float]) -> Verdict:
    """The verdict on the mean step.

    Args:
        shares: where its time goes.
        step_ms: its duration.
        largest: what takes most of the computation, and its share of it.
    """
    if shares.data >= INPUT_SHARE:
        wait = f"{shares.data:.0%} of a step ({shares.data * step_ms:.3g} of {step_ms:.3g} ms) waits for the next batch"
        return _verdict("input", wait)
    if shares.device_busy is not None:
        busy = f"the device computes during {shares.device_busy:.0%} of a step"
        if shares.device_busy < DEVICE_BUSY_SHARE:
            return _verdict("host", f"{busy} and waits for the host to launch work in the rest")
        return _verdict("compute", busy + _of(largest))
    overhead = (
        f"{shares.overhead:.0%} of the step without its data wait goes to Python, the autograd engine and operators"
    )
    if shares.overhead >= HOST_SHARE:
        return _verdict("host", f"{overhead} of less than 5 us")
    return _verdict("compute", f"only {overhead} of less than 5 us; the rest computes" + _of(largest))


def _of(largest: tuple[str, float]) -> str:
    name, share = largest
    return f", {share:.0%} of it in {name}"


def _verdict(bound: Bound, evidence: str) -> Verdict:
    return Verdict(bound=bound, sentence=f"{bound}-bound: {evidence}.", attempts=_TRY[bound])
