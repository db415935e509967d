"""A request: one measurement of a slice, with all that `measure` needs to know. Settings, nothing is computed here.

Belongs here: which samples, which modes of the modules, and what is to be found out besides the block. Does not: what a
slice is (`options.Slice`), or how it is measured.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradlab.jacobians.entries import Picks
from gradlab.jacobians.isolation.modules import ModuleMode
from gradlab.jacobians.options import JacobianSlice, Slice
from gradlab.values import equality_key


@dataclass(frozen=True, kw_only=True)
class Request:
    """A slice to measure. The fields mean what they mean in `gradlab.jacobian`."""

    slice: Slice
    """What is measured."""
    samples: Picks = None
    module_mode: ModuleMode = "eval"
    """The `mode` of `gradlab.jacobian`; that of a `JacobianSlice` is another matter, on which forward."""
    batched: bool | None = None
    chunk: int | None = None
    audit: bool = True
    spectrum: bool = True
    top: int = 8
    label: str = ""

    @cached_property
    def weights(self) -> Tensor | None:
        """The slice's `weights` as a tensor; float64 where they are lists of numbers."""
        weights = self.slice.weights
        if weights is None or isinstance(weights, Tensor):
            return weights
        return torch.as_tensor(weights, dtype=torch.float64)

    def key(self) -> Hashable | None:
        """Equal for two requests that the same engine serves; None where that is not known."""
        what = self.slice
        if self.module_mode != "eval" or not what.rows_are_entries:
            return None
        picks = what.rows, what.cols, self.samples
        return equality_key((what.of, what.wrt, what.of_map, what.block, self.batched, self.chunk, *picks))


def request_of(spec: JacobianSlice) -> Request:
    """The request of a slice that is logged while a model trains, on all samples of the batch that it is given."""
    return Request(slice=spec, module_mode="as_is" if spec.train else "eval", label=spec.full_label)
