"""The schedule of what is measured while a model trains: which measurement is due on which step, on which probe batch.

A Monitor has one, calls it where a step begins and ends, and takes the blocks. How each is measured is in `replayed`,
`live`, `growth` and `sharpness`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from gradlab.errors import JacobianError, did_you_mean, warn
from gradlab.frame import JacobianBlock
from gradlab.jacobians.growth import depth_growth
from gradlab.jacobians.inputs import first_samples
from gradlab.jacobians.live import LiveSlice
from gradlab.jacobians.options import DepthGrowth, JacobianSlice, Measurement, Sharpness
from gradlab.jacobians.replayed import ReplayedSlice
from gradlab.jacobians.request import request_of
from gradlab.jacobians.sharpness import loss_sharpness

_LARGE_BYTES = 16 << 20
"""More than this on each step is worth a warning."""

HandOut = Callable[[JacobianBlock, int], None]
Failed = Callable[[str, Exception], None]


class Schedule:
    """Measures on steps that are due. What fails is switched off and reported; training is never disturbed."""

    def __init__(
        self,
        specs: Sequence[Measurement],
        model: nn.Module,
        probe: Any,
        hand_out: HandOut,
        failed: Failed,
    ) -> None:
        """Take what is to be measured.

        Args:
            specs: slices, depth growths, sharpnesses.
            model: the model that trains.
            probe: the probe batch of `train`, or a mapping from names to probe batches, or None where `use_probe` gives
                it later.
            hand_out: takes each block and its step.
            failed: takes the name of what was switched off, and why.
        """
        self.model = model
        self.specs = list(specs)
        self._hand_out, self._failed = hand_out, failed
        self._probes: dict[str, Any] = {}
        self._measurers: dict[int, Callable[[int], JacobianBlock]] = {}
        self._live: dict[int, LiveSlice] = {}
        self._large: set[int] = set()
        self._given = dict(probe) if isinstance(probe, Mapping) else {"train": probe}
        for name, batch in self._given.items():
            if batch is not None:
                self.use_probe(batch, name)

    def wants(self, name: str = "train") -> bool:
        """Whether a probe batch of this name is needed and not there yet."""
        return name not in self._probes and any(
            spec.probe == name and getattr(spec, "mode", "replay") == "replay"
            for spec in self.specs
            if not isinstance(spec, Sharpness)
        )

    def use_probe(self, batch: Any, name: str = "train") -> None:
        """Take copies of the first samples of a batch, as the model's forward takes it, as a probe batch."""
        most = max((s.samples for s in self.specs if not isinstance(s, Sharpness) and s.probe == name), default=0)
        if most:
            self._probes[name] = first_samples(batch, most, exact=False)

    def begin(self, step: int) -> None:
        """A step begins: watch its forward for live slices that are due."""
        for spec in [s for s in self.specs if isinstance(s, JacobianSlice) and s.mode == "live"]:
            if step % spec.every == 0:
                self._guarded(spec, partial(self._begin_live, spec, step))

    def end(self, step: int) -> None:
        """A step has ended: measure what is due, on the weights after it; a live slice, on those of its forward."""
        for spec in [spec for spec in self.specs if step % spec.every == 0]:
            self._guarded(spec, partial(self._measure, spec, step))

    def close(self) -> None:
        """Let go of hooks and graphs."""
        for live in self._live.values():
            live.drop()

    def _begin_live(self, spec: JacobianSlice, step: int) -> None:
        self._live_slice(spec).begin(step)

    def _measure(self, spec: Measurement, step: int) -> None:
        block = self._block(spec, step)
        if block is not None:
            self._warn_of_size(spec, block)
            self._hand_out(block, step)

    def _warn_of_size(self, spec: Measurement, block: JacobianBlock) -> None:
        if block.values.nbytes > _LARGE_BYTES and id(spec) not in self._large:
            self._large.add(id(spec))
            warn(
                f"{title(spec)} has {' x '.join(map(str, block.values.shape))} entries, "
                f"{block.values.nbytes >> 20} MiB on each of its steps; rows, cols or block=False make it smaller."
            )

    def _block(self, spec: Measurement, step: int) -> JacobianBlock | None:
        if isinstance(spec, Sharpness):
            return self._sharpness(spec)
        if isinstance(spec, JacobianSlice) and spec.mode == "live":
            return self._live_slice(spec).end()
        probe = self._probe_of(spec)
        if probe is None:
            return None
        if id(spec) not in self._measurers:
            self._measurers[id(spec)] = self._measurer(spec, probe)
        return self._measurers[id(spec)](step)

    def _probe_of(self, spec: JacobianSlice | DepthGrowth) -> Any:
        """Its probe batch; None while that of validation may still come."""
        if spec.probe in self._probes or spec.probe == "validation":
            return self._probes.get(spec.probe)
        if spec.probe == "train":
            raise JacobianError(
                "no probe batch: the model itself was not called, only parts of it; give one as watch(probe=...)."
            )
        near = did_you_mean(spec.probe, [*self._given, "train", "validation"])
        raise JacobianError(
            f"there is no probe batch {spec.probe!r}.{near} Give it as watch(probe={{{spec.probe!r}: ...}})."
        )

    def _measurer(self, spec: JacobianSlice | DepthGrowth, probe: Any) -> Callable[[int], JacobianBlock]:
        """What measures one thing: kept with the engine that it chose."""
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

    def _sharpness(self, spec: Sharpness) -> JacobianBlock | None:
        if spec.loss is None:
            raise ValueError("it needs loss=, a function from the model to a scalar loss on a fixed batch.")
        return loss_sharpness(self.model, spec.loss, top=spec.top, products=spec.products, label=spec.label)

    def _live_slice(self, spec: JacobianSlice) -> LiveSlice:
        if id(spec) not in self._live:
            self._live[id(spec)] = LiveSlice(self.model, request_of(spec), spec.samples, zlib.crc32(spec.of.encode()))
        return self._live[id(spec)]

    def _guarded(self, spec: Measurement, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.specs = [one for one in self.specs if one is not spec]
            if id(spec) in self._live:
                self._live[id(spec)].drop()
            self._failed(title(spec), error)


def title(spec: Measurement) -> str:
    """What a message calls it."""
    if isinstance(spec, JacobianSlice):
        return f"the Jacobian of {spec.of!r} by {spec.wrt!r}"
    return "the sharpness" if isinstance(spec, Sharpness) else f"the depth growth of {spec.of!r} by {spec.wrt!r}"
