"""What bounds a training step, in words: the evidence, and what to try.

Belongs here: thresholds, sentences and advice. Does not: how the shares are found (summary.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Bound = Literal["input", "host", "memory", "compute", "communication", "straggler"]

# The remedies differ from here on; below a fifth of the step, waiting for data is not what to work on first.
INPUT_SHARE = 0.2
DEVICE_BUSY_SHARE = 0.8
HOST_SHARE = 0.5
DENSE_SHARE = 0.5
SYNC_SHARE = 0.5
COMMUNICATION_SHARE = 0.3

OWN_SHARE, OWN_SHARE_SAID = 0.3, 0.05
"""From these shares of a step on gradlab's own work is what to look at first, and is spoken of."""
COMPILED_FROM = 10_000
"""A model with fewer parameters on a CPU is done before it is compiled."""

On = Literal["anything", "device", "cpu"]


class Attempt(NamedTuple):
    """What to try, and where that makes sense."""

    sentence: str
    on: On = "anything"
    """`device`: an accelerator computes; `cpu`: none does."""


_COMPILE = Attempt("torch.compile, which saves passes over memory between pointwise operators")
_THREADS = Attempt("more threads (torch.set_num_threads, OMP_NUM_THREADS), as far as there are idle cores", "cpu")
_ADVICE: dict[Bound, tuple[Attempt, ...]] = {
    "input": (
        Attempt("give the DataLoader more workers (num_workers) and keep them alive (persistent_workers=True)"),
        Attempt("move work out of the dataset's __getitem__: decode or tokenize once, ahead of training"),
        Attempt("pin_memory=True with non_blocking copies", "device"),
        Attempt("a larger prefetch_factor, where some batches take much longer than others", "cpu"),
    ),
    "host": (
        Attempt("a larger batch: the same calls, more arithmetic in each"),
        Attempt("torch.compile, which joins many small operators into few"),
        Attempt("fused or foreach optimizers, and no .item() or print of a tensor inside the step"),
    ),
    "memory": (
        _COMPILE,
        Attempt("fused kernels where there are some: scaled_dot_product_attention, fused optimizers, fused losses"),
        Attempt("a narrower type (bf16-mixed): half the bytes", "device"),
        _THREADS,
    ),
    "compute": (
        Attempt("lower precision (bf16-mixed) where the hardware has it", "device"),
        Attempt("a cheaper form of what takes most of the time"),
        _COMPILE,
        _THREADS,
    ),
    "communication": (
        Attempt(
            "fewer exchanges: accumulate gradients under no_sync() (Lightning does so with accumulate_grad_batches)"
        ),
        Attempt("fewer bytes: a compressing hook (bf16_compress_hook of DDP), or bf16-true parameters"),
        Attempt("more overlap: gradient_as_bucket_view=True and another bucket_cap_mb of DDP, prefetching of FSDP2"),
    ),
    "straggler": (
        Attempt("look at that rank's own summary: what it does longer than the others"),
        Attempt("shards of equal work: the same number and length of samples on each rank"),
        Attempt("the machine under it: other processes, a throttled GPU (perf/gpu_clock_mhz), a slower disk"),
    ),
}
_LESS_WATCHING = "watch less: a larger `every` of the taps, fewer of them, or fewer stats (histograms cost most)"
_NO_SYNC = "no .item(), .cpu(), print of a tensor or data-dependent shape inside the step: log from the step before"


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What the verdict rests on: shares of the mean recorded step, each from 0 to 1."""

    data: float
    """Waiting for the next batch."""
    overhead: float
    """Of the rest: Python, the autograd engine, and kinds of operators whose typical call is below 5 microseconds."""
    device_busy: float | None
    """Some kernel running; None where no device was used."""
    dense: float | None = None
    """Of the computing time: products, convolutions and attention. The rest moves memory. None where not known."""
    sync: float | None = None
    """Of the device's idle time: after calls in which the host waited for the device. None without a device."""
    communication: float | None = None
    """The device runs collectives and nothing else. None without a device."""
    gradlab: float = 0.0
    """Of the whole recorded step: gradlab's own hooks, which all other shares leave out."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What bounds the step."""

    bound: Bound
    sentence: str
    attempts: tuple[str, ...]
    """What to try, the most promising first."""

    def record(self, shares: Mapping[str, float | None]) -> dict[str, Any]:
        """As summary.json has it, with the shares that it rests on."""
        return {
            "bound": self.bound,
            "sentence": self.sentence,
            "attempts": list(self.attempts),
            "shares": dict(shares),
        }


def judge(shares: Shares, *, step_ms: float, largest: tuple[str, float], num_parameters: int | None = None) -> Verdict:
    """The verdict on the mean step, without gradlab's own part in it.

    Args:
        shares: where its time goes.
        step_ms: its duration, without that part.
        largest: what takes most of the computation, and its share of it.
        num_parameters: of the model, where that is known.
    """
    found = _bound(shares, step_ms, largest)
    sentence, attempts = found.sentence, list(found.attempts)
    if shares.gradlab >= OWN_SHARE_SAID:
        sentence = f"{sentence[:-1]}; gradlab's own work, {shares.gradlab:.0%} of the recorded step, is left out."
    is_small = shares.device_busy is None and num_parameters is not None and num_parameters < COMPILED_FROM
    if is_small or shares.gradlab >= OWN_SHARE:
        attempts = [one for one in attempts if not one.startswith("torch.compile")]
    if shares.gradlab >= OWN_SHARE:
        attempts.insert(0, _LESS_WATCHING)
    return Verdict(bound=found.bound, sentence=sentence, attempts=tuple(attempts))


def _bound(shares: Shares, step_ms: float, largest: tuple[str, float]) -> Verdict:
    is_on_device = shares.device_busy is not None
    if shares.data >= INPUT_SHARE:
        wait = f"{shares.data:.0%} of a step ({shares.data * step_ms:.3g} of {step_ms:.3g} ms) waits for the next batch"
        return verdict("input", wait, on_device=is_on_device)
    if shares.device_busy is not None:
        return _on_device(shares, shares.device_busy, largest)
    overhead = (
        f"{shares.overhead:.0%} of the step without its data wait goes to Python, the autograd engine and operators"
    )
    if shares.overhead >= HOST_SHARE:
        return verdict("host", f"{overhead} of less than 5 us", on_device=False)
    if shares.dense is not None and shares.dense < DENSE_SHARE:
        return verdict("memory", _memory_evidence(shares.dense) + _largest_share(largest), on_device=False)
    evidence = f"only {overhead} of less than 5 us; the rest computes" + _largest_share(largest)
    return verdict("compute", evidence, on_device=False)


def _on_device(shares: Shares, device_busy: float, largest: tuple[str, float]) -> Verdict:
    if (shares.communication or 0.0) >= COMMUNICATION_SHARE:
        return verdict("communication", f"during {shares.communication:.0%} of a step the device only exchanges data")
    busy = f"the device computes during {device_busy:.0%} of a step"
    if device_busy < DEVICE_BUSY_SHARE:
        if shares.sync is not None and shares.sync >= SYNC_SHARE:
            idle = f"{shares.sync:.0%} of its idle time follows calls in which the host waited for it"
            return verdict("host", f"{busy}; {idle}", first=_NO_SYNC)
        return verdict("host", f"{busy} and waits for the host to launch work in the rest")
    if shares.dense is not None and shares.dense < DENSE_SHARE:
        return verdict("memory", f"{busy}; {_memory_evidence(shares.dense)}" + _largest_share(largest))
    return verdict("compute", busy + _largest_share(largest))


def verdict(bound: Bound, evidence: str, *, on_device: bool = True, first: str | None = None) -> Verdict:
    """A verdict with its evidence; `first` is tried before what is usual for that bound."""
    unfit = "cpu" if on_device else "device"
    attempts = tuple(one.sentence for one in _ADVICE[bound] if one.on != unfit)
    attempts = attempts if first is None else (first, *attempts[:-1])
    title = "straggling rank" if bound == "straggler" else f"{bound}-bound"
    return Verdict(bound=bound, sentence=f"{title}: {evidence}.", attempts=attempts)


def _memory_evidence(dense: float) -> str:
    return f"{1 - dense:.0%} of the computing time moves memory (pointwise operators, reductions, copies)"


def _largest_share(largest: tuple[str, float]) -> str:
    name, share = largest
    return f", {share:.0%} of it in {name}"
