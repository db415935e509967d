"""A slice that is measured again and again while a model trains, by replays of the same samples."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import nn

from gradlab.frame import JacobianBlock
from gradlab.jacobians.engines.fallback import Fallback
from gradlab.jacobians.inputs import first_samples, on_device_of
from gradlab.jacobians.measure import measure
from gradlab.jacobians.options import JacobianSlice
from gradlab.jacobians.request import request_of


class ReplayedSlice:
    """Measures one slice on a probe batch of its own."""

    def __init__(self, spec: JacobianSlice, model: nn.Module, x: Any) -> None:
        """Keep copies of the first `spec.samples` samples of `x`.

        Args:
            spec: what to measure.
            model: the model that trains; measured without a trace.
            x: a batch as the model takes it: a tensor, a tuple of arguments or a mapping of keyword arguments.
        Raises:
            JacobianError: if `x` has fewer samples than `spec.samples`.
        """
        self.spec = spec
        self.model = model
        self.fallback = Fallback()
        self.inputs = first_samples(x, spec.samples, who=f"JacobianSlice({spec.of!r}, {spec.wrt!r})")
        self.request = request_of(spec)

    def measure(self, step: int) -> JacobianBlock:
        """Measure the model as it is now. The same model, step and probe batch give the same numbers.

        Raises:
            JacobianError: as `gradlab.jacobian` does; for a wrong name or index, on the first call already.
        Cost: that of `gradlab.jacobian`; the engine is chosen on the first call.
        """
        self.inputs = on_device_of(self.model, self.inputs)
        seed = zlib.crc32(f"{self.spec.of} {self.spec.wrt} {self.request.label}".encode()) + step
        return measure(self.model, self.inputs, self.request, self.fallback, torch.Generator().manual_seed(seed))
