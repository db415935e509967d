"""The reduction of a step over ranks: what each rank saw becomes the values of the whole run, by one collective.

A tensor of the forward is a piece of the global batch, and its gradient is of the local loss, of which the global one
is the mean. A parameter that every rank has as a whole (DDP) is the same everywhere; of one that is sharded (DTensor:
FSDP2, HSDP, tensor parallelism) each rank holds a piece, some of them more than once. With these weights squares, sums
and counts add up over ranks (`bucket`).

Every rank has to watch the same model with the same rules. Which entries are combined is agreed upon in the first
logged step, and again two logged steps after a rank has met a site that is new to it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from gradlab.errors import RanksError, TapError
from gradlab.taps.across_ranks.bucket import NO_NORM, Bucket, Key, Reduced
from gradlab.taps.across_ranks.group import RankGroup
from gradlab.taps.buffer.layout import padded
from gradlab.taps.buffer.transfer import HostCopy
from gradlab.taps.plan import TENSOR_QUANTITIES, Plan


class _Watched(NamedTuple):
    """What a rank watches, as it is sent to the others."""

    step: int
    keys: list[Key]
    shapes: dict[str, tuple[int, ...]]
    """Of the watched parameters, as a whole."""


class RankReducer:
    """Combines the values of one plan over all ranks of a group."""

    def __init__(self, plan: Plan, parameters: Callable[[], Mapping[str, nn.Parameter]], group: RankGroup) -> None:
        """Combine the values of a plan; `parameters` gives those of the model as it is, sharded or whole."""
        self.plan = plan
        self.parameters = parameters
        self.group = group
        self._bucket: Bucket | None = None
        self._has_grown = False
        """Whether a rank has met a site that is not in the bucket."""

    def reduce(self, host: HostCopy, step: int) -> ReducedCopy:
        """Combine this rank's values of a step with those of the others. All ranks call this on the same steps.

        Raises:
            TapError: the ranks watch different models.
            RanksError: a rank is gone, or counts its steps differently.
        """
        self.group.finish_earlier()
        if self._bucket is None or self._has_grown:
            self._bucket, self._has_grown = self._agree(step), False
        has_grown = len(self.plan.layout.entries) > self._bucket.num_entries
        copy = ReducedCopy(self, self._bucket, host, has_grown=has_grown)
        self.group.start(copy)
        return copy

    def note_growth(self, bucket: Bucket) -> None:
        """A rank had met a site that is not in this bucket: all ranks learn of it before the same step is started."""
        self._has_grown = self._has_grown or bucket is self._bucket

    def _agree(self, step: int) -> Bucket:
        """Exchange the names of all entries; those of other ranks get slots here too."""
        keys, parameters = self._own_keys(), self.parameters()
        sites = {site for _, site in keys}
        shapes = {name: tuple(p.shape) for name, p in parameters.items() if name in sites}
        watched: list[_Watched] = self.group.gather_objects(_Watched(step, keys, shapes))
        steps = [one.step for one in watched]
        if len(set(steps)) > 1:
            raise RanksError(f"the ranks count steps differently: by rank, this is step {', '.join(map(str, steps))}")
        union = list(dict.fromkeys(key for one in watched for key in one.keys))
        for label, site in union:
            if (label, site) not in keys and label in TENSOR_QUANTITIES:
                self.plan.target(site)
        self._require_keys(watched)
        self._require_shapes(shapes, watched)
        weights = {name: weight for name, p in parameters.items() if (weight := replica_weight(p)) is not None}
        return Bucket(union, self.plan, weights, rank=self.group.rank, size=self.group.size)

    def _own_keys(self) -> list[Key]:
        return [(entry.label, entry.site) for entry in self.plan.layout.entries]

    def _require_keys(self, watched: Sequence[_Watched]) -> None:
        have = set(self._own_keys())
        for rank, theirs in enumerate(watched):
            for label, site in theirs.keys:
                if (label, site) not in have:
                    raise TapError(
                        f"rank {self.group.rank} has no {label} of {site!r}, which rank {rank} watches: all "
                        f"ranks have to watch the same model with the same taps."
                    )

    def _require_shapes(self, shapes: Mapping[str, tuple[int, ...]], watched: Sequence[_Watched]) -> None:
        for rank, theirs in enumerate(watched):
            for name, shape in shapes.items():
                if theirs.shapes.get(name, shape) != shape:
                    raise TapError(
                        f"{name!r} is {list(shape)} on rank {self.group.rank} and {list(theirs.shapes[name])} on rank "
                        f"{rank}: all ranks have to train the same model."
                    )


class ReducedCopy:
    """The values of a step on their way from all ranks: a `series.Copy` of one row, and a `group.Reduction`."""

    def __init__(self, reducer: RankReducer, bucket: Bucket, host: HostCopy, *, has_grown: bool) -> None:
        self.world_size = bucket.size
        self._reducer = reducer
        self._bucket = bucket
        self._host = host
        self._has_grown = has_grown
        """Whether this rank has met a site that is not in the bucket."""
        self._has_started = threading.Event()
        self._array = np.empty(0)
        self._extremes: np.ndarray | None = None
        self._works: list[Any] = []
        """The collectives under way."""
        self._has_anyone_grown: bool | None = None
        """The same of any rank; None until the sum is there."""
        self._error: RanksError | None = None
        self._reduced: Reduced | None = None

    # The reduction.

    def is_on_host(self) -> bool:
        """Whether the values of this rank are there."""
        return self._host.done()

    def start(self) -> None:
        """Begin to add up the values of all ranks."""
        try:
            all_reduce, rows = self._reducer.group.all_reduce, self._host.rows()
            self._array, self._extremes = self._bucket.fill(
                rows, self._host.numel, has_grown=self._has_grown, finished=self._host.merged
            )
            self._works.append(all_reduce(torch.from_numpy(self._array)))
            if self._extremes is not None:
                self._works.append(all_reduce(torch.from_numpy(self._extremes), dist.ReduceOp.MAX))
        finally:
            self._has_started.set()

    def done(self) -> bool:
        """Whether the sum is there, or can never be."""
        return self._has_started.is_set() and all(work.is_completed() for work in self._works)

    def finish(self) -> None:
        """Wait for the sum, and note what other ranks have said with it."""
        self._wait()
        if self._has_anyone_grown:
            self._reducer.note_growth(self._bucket)

    def stop_waiting(self) -> None:
        """Keep the sum if it is there, and expect none otherwise."""
        if not self.done():
            self._error = RanksError("other ranks have not taken part in the last logged step")
        with contextlib.suppress(RanksError):
            self._wait()

    def _wait(self) -> None:
        """Wait until the arrays of all ranks are added up.

        Raises:
            RanksError: a rank is gone.
        """
        if self._has_anyone_grown is None and self._error is None:
            try:
                self._wait_for_works()
                self._has_anyone_grown = self._bucket.has_grown(self._array)
            except RanksError as error:
                self._error = error
        self._works = []  # they keep the group alive, by whose end other ranks are told
        if self._error is not None:
            raise self._error

    def _wait_for_works(self) -> None:
        self._has_started.wait()
        if not self._works:
            raise RanksError("the numbers of a step could not be sent to the other ranks")
        try:
            for work in self._works:
                work.wait()
        except RuntimeError as error:
            raise RanksError("another rank has ended, or has switched its watching off") from error

    # The values. All of these wait, and raise RanksError where a rank is gone.

    def _values(self) -> Reduced:
        if self._reduced is None:
            self._wait()
            self._reduced = self._bucket.read(self._array, self._extremes)
        return self._reduced

    def rows(self) -> list[np.ndarray]:
        """[slots] float32 of the whole run."""
        return [self._values().row]

    @property
    def numel(self) -> list[list[float]]:
        """How many elements each entry was computed from, on all ranks together."""
        return [self._values().numel]

    def micro_squares(self, indices: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The squared norms of single backwards of all ranks added up, and how many these are (`series.Copy`)."""
        values = self._values()
        return padded(values.squares, slots.max() + 1)[slots], padded(values.times, indices.max() + 1)[indices]

    def norms_by_rank(self, indices: np.ndarray) -> np.ndarray:
        """[ranks, n] float64, each rank's own norms at some entries, negative where it has none."""
        values = self._values()
        norms = np.full((self.world_size, max(self._bucket.num_entries, indices.max() + 1)), NO_NORM)
        norms[:, values.own_indices] = values.own_norms
        return norms[:, indices]


def replica_weight(parameter: Any) -> float | None:
    """What a rank's piece of a sharded parameter counts for; None where each rank has all of it."""
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return None
    sizes = [size for size, p in zip(parameter.device_mesh.shape, placements, strict=True) if p.is_replicate()]
    outside = dist.get_world_size() / parameter.device_mesh.size()
    return 1.0 / (float(np.prod(sizes)) * outside)
