"""The schedule of what is measured while a model trains: which measurement is due on which step, on which probe batch.

A Monitor has one, calls it where a step begins and ends, and takes the blocks. How each is measured is in `replayed`,
`live`, `growth` and `sharpness`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from gradlab.errors import JacobianError, did_you_mean, warn
from gradlab.frame import JacobianBlock
from gradlab.jacobians.growth import depth_growth
from gradlab.jacobians.inputs import first_samples
from gradlab.jacobians.live import LiveSlice
from gradlab.jacobians.live_sharpness import LiveSharpness
from gradlab.jacobians.options import DepthGrowth, JacobianSlice, Measurement, Sharpness
from gradlab.jacobians.replayed import ReplayedSlice
from gradlab.jacobians.request import request_of
from gradlab.jacobians.sharpness import loss_sharpness

_LARGE_BYTES = 16 << 20
"""More than this on each step is worth a warning."""

Deliver = Callable[[JacobianBlock, int], None]
ReportFailure = Callable[[str, Exception], None]


@dataclass(eq=False)
class _Scheduled:
    """One measurement, and what is kept of it from one of its steps to the next."""

    spec: Measurement
    live: LiveSlice | None = None
    """Of a live slice, from its first step on."""
    measure: Callable[[int], JacobianBlock] | None = None
    """From a step to a block, by replays of a probe batch, from its first step with one on."""
    was_large: bool = False
    """Whether its size was warned of."""
    once: bool = False
    """Whether it is measured one time, as soon as it can be."""
    next_loss: LiveSharpness | None = None
    """Of a sharpness that is measured once, on the loss of the next backward."""

    def drop(self) -> None:
        """Let go of hooks and graphs."""
        for live in (self.live, self.next_loss):
            if live is not None:
                live.drop()

    def is_due(self, step: int) -> bool:
        """Whether it is measured on this step, counted from 0."""
        return self.once or step % self.spec.every == 0


class Schedule:
    """Measures on steps that are due. What fails is switched off and reported; training is never disturbed."""

    def __init__(
        self,
        specs: Sequence[Measurement],
        model: nn.Module,
        probe: Any,
        deliver: Deliver,
        report_failure: ReportFailure,
    ) -> None:
        """Take what is to be measured.

        Args:
            specs: slices, depth growths, sharpnesses.
            model: the model that trains.
            probe: the probe batch of `train`, or a mapping from names to probe batches, or None where `use_probe` gives
                it later.
            deliver: takes each block and its step.
            report_failure: takes the name of what was switched off, and why.
        """
        self.model = model
        self._scheduled = [_Scheduled(spec) for spec in specs]
        self.usual_loss: Callable[[Any], Any] | None = None
        """From the model to the training's loss, for what is measured once; None where nobody knows it."""
        self._deliver, self._report_failure = deliver, report_failure
        self._probes: dict[str, Any] = {}
        given = dict(probe) if isinstance(probe, Mapping) else {"train": probe}
        self._probe_names = [*given, "train", "validation"]
        for name, batch in given.items():
            if batch is not None:
                self.use_probe(batch, name)

    def wants(self, name: str = "train") -> bool:
        """Whether a probe batch of this name is needed and not there yet."""
        return name not in self._probes and any(
            spec.probe == name and getattr(spec, "mode", "replay") == "replay" for spec in self._with_probe()
        )

    def use_probe(self, batch: Any, name: str = "train") -> None:
        """Take copies of the first samples of a batch, as the model's forward takes it, as a probe batch."""
        most = max((spec.samples for spec in self._with_probe() if spec.probe == name), default=0)
        if most:
            self._probes[name] = first_samples(batch, most, exact=False)

    def measure_once(self, spec: DepthGrowth | Sharpness) -> None:
        """Measure on one of the next steps, beside what is scheduled; no loss and no probe batch needs to be there."""
        one = _Scheduled(spec, once=True)
        if isinstance(spec, Sharpness) and spec.loss is None:
            loss = next((s.spec.loss for s in self._scheduled if isinstance(s.spec, Sharpness)), self.usual_loss)
            one.spec = replace(spec, loss=loss)
            if loss is None:
                one.next_loss = LiveSharpness(self.model, spec)
                one.next_loss.begin()
        self._scheduled.append(one)

    def begin(self, step: int) -> None:
        """A step begins: watch its forward for live slices that are due."""
        for one in [one for one in self._scheduled if _is_live(one.spec) and one.is_due(step)]:
            self._guarded(one, partial(self._begin_live, one, step))

    def end(self, step: int) -> None:
        """A step has ended: measure what is due, on the weights after it; a live slice, on those of its forward."""
        for one in [one for one in self._scheduled if one.is_due(step)]:
            self._guarded(one, partial(self._measure, one, step))

    def close(self) -> None:
        """Let go of hooks and graphs."""
        for one in self._scheduled:
            one.drop()

    def _with_probe(self) -> list[JacobianSlice | DepthGrowth]:
        return [one.spec for one in self._scheduled if not isinstance(one.spec, Sharpness)]

    def _begin_live(self, one: _Scheduled, step: int) -> None:
        self._live_slice(one).begin(step)

    def _measure(self, one: _Scheduled, step: int) -> None:
        block = self._block(one, step)
        if block is not None:
            _warn_of_size(one, block)
            self._deliver(block, step)
            if one.once:
                self._forget(one)

    def _block(self, one: _Scheduled, step: int) -> JacobianBlock | None:
        spec = one.spec
        if one.next_loss is not None:
            return one.next_loss.end()
        if isinstance(spec, Sharpness):
            return self._sharpness(spec)
        if _is_live(spec):
            return self._live_slice(one).end()
        probe = self._probes.get(spec.probe) if one.once else self._probe_of(spec)
        if probe is None:
            return None
        if one.measure is None:
            one.measure = self._measurer(spec, probe)
        return one.measure(step)

    def _probe_of(self, spec: JacobianSlice | DepthGrowth) -> Any:
        """Its probe batch; None while that of validation may still come."""
        if spec.probe in self._probes or spec.probe == "validation":
            return self._probes.get(spec.probe)
        if spec.probe == "train":
            raise JacobianError(
                "no probe batch: the model itself was not called, only parts of it; give one as watch(probe=...)."
            )
        near = did_you_mean(spec.probe, self._probe_names)
        raise JacobianError(
            f"there is no probe batch {spec.probe!r}.{near} Give it as watch(probe={{{spec.probe!r}: ...}})."
        )

    def _measurer(self, spec: JacobianSlice | DepthGrowth, probe: Any) -> Callable[[int], JacobianBlock]:
        if isinstance(spec, JacobianSlice):
            return ReplayedSlice(spec, self.model, probe).measure
        x = first_samples(probe, spec.samples)
        return lambda step: depth_growth(
            self.model,
            x,
            at=spec.at,
            of=spec.of,
            wrt=spec.wrt,
            directions=spec.directions,
            samples=spec.samples,
            seed=zlib.crc32(spec.full_label.encode()),
            label=spec.full_label,
        )

    def _sharpness(self, spec: Sharpness) -> JacobianBlock:
        if spec.loss is None:
            raise ValueError("it needs loss=, a function from the model to a scalar loss on a fixed batch.")
        return loss_sharpness(self.model, spec.loss, top=spec.top, products=spec.products, label=spec.label)

    def _live_slice(self, one: _Scheduled) -> LiveSlice:
        if one.live is None:
            spec = one.spec
            assert isinstance(spec, JacobianSlice)
            one.live = LiveSlice(self.model, request_of(spec), spec.samples, zlib.crc32(spec.of.encode()))
        return one.live

    def _forget(self, one: _Scheduled) -> None:
        self._scheduled = [other for other in self._scheduled if other is not one]
        one.drop()

    def _guarded(self, one: _Scheduled, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._forget(one)
            self._report_failure(_title(one.spec), error)


def _is_live(spec: Measurement) -> bool:
    return isinstance(spec, JacobianSlice) and spec.mode == "live"


def _warn_of_size(one: _Scheduled, block: JacobianBlock) -> None:
    if block.values.nbytes > _LARGE_BYTES and not one.was_large:
        one.was_large = True
        warn(
            f"{_title(one.spec)} has {' x '.join(map(str, block.values.shape))} entries, "
            f"{block.values.nbytes >> 20} MiB on each of its steps; rows, cols or block=False make it smaller."
        )


def _title(spec: Measurement) -> str:
    """What a message calls it."""
    if isinstance(spec, JacobianSlice):
        return f"the Jacobian of {spec.of!r} by {spec.wrt!r}"
    return "the sharpness" if isinstance(spec, Sharpness) else f"the depth growth of {spec.of!r} by {spec.wrt!r}"
