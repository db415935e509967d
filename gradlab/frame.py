"""What one logged step holds: named vectors of numbers, and the schema that names them.

Belongs here: the host-side values that sinks and diagnosis see. Does not: tensors of the training step (`taps`),
files (`events`), or anything that needs torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

ABSENT = np.uint32(0x7FC0_0ABE).view(np.float32)
"""Stands for "no value on this step" in a series: a NaN by its own bit pattern, so that a NaN that was really seen
differs from a site that did not run. (R tells its missing numbers from NaN in the same way.)"""


def is_absent(values: np.ndarray) -> np.ndarray:
    """[n] bool: where a float32 array holds `ABSENT`."""
    return np.asarray(np.ascontiguousarray(values, np.float32).view(np.uint32) == ABSENT.view(np.uint32))


@dataclass(frozen=True)
class Schema:
    """The names of a metric's values, in forward order. Two schemas with the same names have the same hash."""

    metric: str
    """`of.stat`, with the stage appended where it is not `final`: `weight_grad.norm@clipped`."""
    sites: tuple[str, ...]
    """One site name a value."""
    unit: str = ""
    """The unit of the values, empty for a pure number."""
    edges: tuple[float, ...] = ()
    """Of a histogram: the [bins + 1] edges in log2 of the magnitude. Its values are then [sites, bins] counts."""

    @cached_property
    def hash(self) -> str:
        """Eight hexadecimal digits of the site names."""
        return hashlib.sha256("\n".join(self.sites).encode()).hexdigest()[:8]

    @cached_property
    def tag(self) -> str:
        """The TensorBoard tag: `gradlab/<metric>/<hash>`."""
        return f"gradlab/{self.metric}/{self.hash}"


@dataclass(frozen=True)
class Series:
    """One metric of one step: float32 values, one a site; `ABSENT` where a site has no value on this step."""

    schema: Schema
    values: np.ndarray
    """[sites] float32; [sites, bins] of a histogram."""

    def __getitem__(self, site: str) -> Any:
        """The value of a site: a float, or the [bins] counts of a histogram."""
        try:
            value = self.values[self.schema.sites.index(site)]
        except ValueError:
            raise KeyError(site) from None
        return value if self.schema.edges else float(value)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Pairs of site and value, in forward order."""
        return zip(self.schema.sites, self.values if self.schema.edges else map(float, self.values), strict=True)

    def __len__(self) -> int:
        return len(self.schema.sites)


@dataclass(frozen=True)
class Frame(Mapping[str, Series]):
    """All values of one logged step: metric -> series. `frame["weight_grad.norm"]["fc1.weight"]` is a float."""

    step: int
    """The optimizer step that these values belong to, counted from 0."""
    wall_time: float
    """Seconds since the epoch when the step ended."""
    series: Mapping[str, Series] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> Series:
        return self.series[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.series)

    def __len__(self) -> int:
        return len(self.series)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A diagnosis in one sentence, with what it rests on."""

    step: int
    """The optimizer step at which it was seen."""
    kind: str
    """A short stable name of the rule: `nonfinite`, `zero_gradient`, ..."""
    site: str
    """The site it is about, or "" for the whole run."""
    message: str
    """One sentence for a person."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """The numbers that the sentence rests on, by metric."""
    advice: str = ""
    """What to try."""
    severity: str = "warning"
    """`info`, `warning` or `error`."""


@dataclass(frozen=True, kw_only=True)
class JacobianBlock:
    """A slice of d(of)/d(wrt) on the host, with the names of its axes and what is known of its quality."""

    of: str
    """The site that is differentiated."""
    wrt: str
    """The site that it is differentiated by."""
    values: np.ndarray
    """[rows, cols] float32 or float64; [samples, rows, cols] where the samples were not reduced; [0, 0] where only the
    spectrum was asked for."""
    row_names: tuple[str, ...]
    """One name a row: the index into `of`, or a given label."""
    col_names: tuple[str, ...]
    """One name a column: the index into `wrt`."""
    engine: str = ""
    """How it was computed: `vmap`, `loop`, ..."""
    audit_error: float = float("nan")
    """Relative error of vᵀJ against one plain backward."""
    summaries: Mapping[str, float] = field(default_factory=dict)
    """Scalars of the block: `fro`, `sigma_1`, ..."""
    singular_values: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Singular values, largest first: all of them where the block is small enough, else the leading ones."""
    complete: bool = True
    """Whether these are all."""
    kind: str = "block"
    """What the rows and columns are: a `block` of a Jacobian, `depth_growth` or `sharpness` (docs/jacobians.md)."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know: engines that were refused and why, samples that are coupled."""
    label: str = ""
    """Tells apart two blocks of the same sites: a probe set, or a set of rows."""

    @property
    def name(self) -> str:
        """`<of>__wrt__<wrt>`, then `@<label>` where there is one: the middle of the TensorBoard tags."""
        between = {"depth_growth": "growth", "sharpness": "sharpness"}.get(self.kind, "wrt")
        return f"{self.of}__{between}__{self.wrt}" + (f"@{self.label}" if self.label else "")
