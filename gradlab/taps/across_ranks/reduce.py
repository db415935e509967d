"""Ranks: what each rank of a distributed run saw, made into the numbers of the whole by one collective a logged step.

A tensor of the forward is a piece of the global batch, and its gradient is of the local loss, of which the global one
is the mean. A parameter that every rank has as a whole (DDP) is the same everywhere; of one that is sharded (DTensor:
FSDP2, HSDP, tensor parallelism) each rank holds a piece, some of them more than once. With these weights squares, sums
and counts add up over ranks in float64. Each rank's own numbers, where asked for (`per_rank`), and smallest and largest
values travel in the same sum: a table with a row a rank, of which each rank fills in its own.

Every rank has to watch the same model with the same rules. Which slots are combined is agreed upon in the first logged
step, and again two logged steps after a rank has met a site that is new to it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from gradlab.errors import RanksError, TapError
from gradlab.taps.across_ranks.bucket import Key, Packing, Whole
from gradlab.taps.across_ranks.group import Exchange
from gradlab.taps.buffer.transfer import HostCopy
from gradlab.taps.plan import Plan


class Ranks:
    """Combines the rows of one plan over all ranks of the default process group."""

    def __init__(self, plan: Plan, parameters: Callable[[], Mapping[str, nn.Parameter]], exchange: Exchange) -> None:
        """Combine the rows of a plan; `parameters` tells which there are, sharded or whole."""
        self.plan = plan
        self.parameters = parameters
        self.exchange = exchange
        self._packing: Packing | None = None
        self._has_grown = False

    def copy(self, host: HostCopy, step: int) -> RankCopy:
        """Combine this rank's values of a step with those of the others. All ranks call this on the same steps.

        Raises:
            TapError: the ranks watch different models.
            RanksError: a rank is gone, or counts its steps differently.
        """
        self.exchange.look_back()
        if self._packing is None or self._has_grown:
            self._packing, self._has_grown = self._agree(step), False
        grown = len(self.plan.rows.layout.entries) > self._packing.num_entries
        copy = RankCopy(self, self._packing, host, grown=grown)
        self.exchange.send(copy)
        return copy

    def heard(self, packing: Packing, *, grown: bool) -> None:
        """A sum has arrived that all ranks know of before the next step sets out."""
        self._has_grown = self._has_grown or (grown and packing is self._packing)

    def _agree(self, step: int) -> Packing:
        """Exchange the names of all entries; those of other ranks get slots here too."""
        mine = [(entry.quantity, entry.site) for entry in self.plan.rows.layout.entries]
        parameters = self.parameters()
        watched = {site for _, site in mine}
        shapes = {name: tuple(p.shape) for name, p in parameters.items() if name in watched}
        told: list[tuple[int, list[Key], dict[str, tuple[int, ...]]]] = self.exchange.gather((step, mine, shapes))
        steps, everybody = [one for one, _, _ in told], [keys for _, keys, _ in told]
        if len(set(steps)) > 1:
            raise RanksError(f"the ranks count steps differently: by rank, this is step {', '.join(map(str, steps))}")
        union = list(dict.fromkeys(key for keys in everybody for key in keys))
        for quantity, site in union:
            if (quantity, site) not in mine and quantity in ("output", "output_grad"):
                self.plan.target(site)
        have = {(entry.quantity, entry.site) for entry in self.plan.rows.layout.entries}
        for rank, keys in enumerate(everybody):
            for key in keys:
                if key not in have:
                    raise TapError(
                        f"rank {self.exchange.rank} has no {key[0]} of {key[1]!r}, which rank {rank} watches: all "
                        f"ranks have to watch the same model with the same taps."
                    )
        for rank, (_, _, theirs) in enumerate(told):
            for name, shape in shapes.items():
                if theirs.get(name, shape) != shape:
                    raise TapError(
                        f"{name!r} is {list(shape)} on rank {self.exchange.rank} and {list(theirs[name])} on rank "
                        f"{rank}: all ranks have to train the same model."
                    )
        weights = {name: weight for name, p in parameters.items() if (weight := replica_weight(p)) is not None}
        return Packing(union, self.plan, weights, rank=self.exchange.rank, size=self.exchange.size)


class RankCopy:
    """Combined values on their way: one row, as a `HostCopy` of one pass of a single process gives it."""

    def __init__(self, ranks: Ranks, packing: Packing, host: HostCopy, *, grown: bool) -> None:
        self.world_size = packing.size
        self._ranks = ranks
        self._packing = packing
        self._host = host
        self._grown = grown
        self._has_set_out = threading.Event()
        self._packed = np.empty(0)
        self._extremes: np.ndarray | None = None
        self._works: list[Any] = []
        self._grew: bool | None = None
        self._error: RanksError | None = None
        self._whole: Whole | None = None

    def on_host(self) -> bool:
        """Whether the values of this rank are there."""
        return self._host.done()

    def set_out(self) -> None:
        """Begin to add up the values of all ranks."""
        try:
            packing, add = self._packing, self._ranks.exchange.add
            rows, numel = self._host.rows(), self._host.numel
            self._packed, self._extremes = packing.pack(rows, numel, grown=self._grown, finished=self._host.merged)
            self._works.append(add(torch.from_numpy(self._packed)))
            if self._extremes is not None:
                self._works.append(add(torch.from_numpy(self._extremes), dist.ReduceOp.MAX))
        finally:
            self._has_set_out.set()

    def has_arrived(self) -> bool:
        """Whether the sum is there, or can never be."""
        return self._has_set_out.is_set() and all(work.is_completed() for work in self._works)

    done = has_arrived

    def accept(self) -> None:
        """Wait for the sum, and note what other ranks have said with it."""
        self._wait()
        self._ranks.heard(self._packing, grown=bool(self._grew))

    def settle(self) -> None:
        """Keep what has arrived, and let go of the way that it comes."""
        if not self.has_arrived():
            self._error = RanksError("other ranks have not taken part in the last logged step")
        with contextlib.suppress(RanksError):
            self._wait()

    def _wait(self) -> None:
        """Wait until what all ranks have packed is added up.

        Raises:
            RanksError: a rank is gone.
        """
        if self._grew is None and self._error is None:
            try:
                self._grew = self._said()
            except RanksError as error:
                self._error = error
        self._works = []  # they hold on to the group, by whose end other ranks are told
        if self._error is not None:
            raise self._error

    def _said(self) -> bool:
        self._has_set_out.wait()
        if not self._works:
            raise RanksError("the numbers of a step could not be sent to the other ranks")
        try:
            for work in self._works:
                work.wait()
        except RuntimeError as error:
            raise RanksError("another rank has ended, or has switched its watching off") from error
        return self._packing.has_grown(self._packed)

    def _sum(self) -> Whole:
        if self._whole is None:
            self._wait()
            self._whole = self._packing.unpack(self._packed, self._extremes)
        return self._whole

    def rows(self) -> list[np.ndarray]:
        """[slots] float32 of the whole run.

        Raises:
            RanksError: a rank is gone.
        """
        return [self._sum().row]

    @property
    def numel(self) -> list[list[float]]:
        """How many elements each entry was computed from, on all ranks together."""
        return [self._sum().numel]

    def micro(self) -> tuple[np.ndarray, np.ndarray]:
        """[parameters] float64: the squared norms of all backwards of all ranks, added up, and how many these are."""
        return self._sum().micro

    def local(self) -> np.ndarray:
        """[ranks, sites] float64: each rank's own norms where a rule has `per_rank`; negative where it has none."""
        return self._sum().local


def replica_weight(parameter: Any) -> float | None:
    """What a rank's piece of a sharded parameter counts for; None where each rank has all of it."""
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return None
    sizes = [size for size, p in zip(parameter.device_mesh.shape, placements, strict=True) if p.is_replicate()]
    outside = dist.get_world_size() / parameter.device_mesh.size()
    return 1.0 / (float(np.prod(sizes)) * outside)
