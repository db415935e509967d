"""The exchange: gradlab's own group of all ranks, on the host, through which the values of a step are added up.

The training's own collectives are never waited for, delayed or mixed with these: values go to the host first, as they
do in a single process, and are summed by gloo's threads while the next step runs. A rank that fails, leaves early or
dies leaves the group; the others notice by its closed connection, go on without watching, and say so once.

Belongs here: the group, the order in which steps set out on all ranks, and the end. Does not: what is summed (`ranks`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from gradlab.errors import RanksError

_PATIENCE = timedelta(seconds=30)
"""So long the first logged step waits for ranks that have not called `watch`."""
_AHEAD = 1
"""So many earlier steps may still be under way when a step sets out; all ranks know what came of those before."""
_made = 0


class Parcel(Protocol):
    """The values of a step: they come to the host, set out to the other ranks, and arrive as a sum."""

    def on_host(self) -> bool:
        """Whether they can set out without waiting."""

    def set_out(self) -> None:
        """Begin the collective, which goes on by itself."""

    def has_arrived(self) -> bool:
        """Whether the sum is there, or can never be."""

    def accept(self) -> None:
        """Wait for the sum, and take note of what other ranks have said with it.

        Raises:
            RanksError: a rank is gone.
        """

    def settle(self) -> None:
        """Keep what has arrived, and expect nothing more: the way that it comes is about to be closed."""


class Exchange:
    """Sends parcels in the same order on every rank of the default process group."""

    def __init__(self) -> None:
        self.size, self.rank = dist.get_world_size(), dist.get_rank()
        self._mark = ""
        self._group: list[dist.ProcessGroup] = []
        self._under_way: deque[Parcel] = deque()
        self._setting_out: deque[Future[None] | None] = deque()
        """Of each parcel under way, what waits for it to come to the host, where it was not there at once."""
        self._thread: ThreadPoolExecutor | None = None
        self._is_over = False
        self._process = os.getpid()
        self._at_exit = weakref.finalize(self, _let_go, self._group, self._under_way, self._process, 1.0)

    def announce(self) -> None:
        """Tell the other ranks that this one watches, without waiting for them."""
        global _made
        self._mark = f"gradlab/watches/{_made}/"
        _made += 1
        _store().set(f"{self._mark}{self.rank}", "1")

    @property
    def group(self) -> dist.ProcessGroup:
        """gradlab's own group; the first use waits for all ranks.

        Raises:
            RanksError: a rank does not watch.
        """
        if not self._group:
            marks = [f"{self._mark}{rank}" for rank in range(self.size)]
            try:
                _store().wait(marks, _PATIENCE)
            except (RuntimeError, ValueError) as error:
                missing = [rank for rank, mark in enumerate(marks) if not _store().check([mark])]
                raise RanksError(
                    f"rank {missing[0] if missing else '?'} does not watch: across_ranks=True is for all ranks, each "
                    f"of which has to call watch() before its first step."
                ) from error
            self._group.append(dist.new_group(backend="gloo"))
        return self._group[0]

    def check(self, model: nn.Module) -> None:
        """Whether ranks can be expected to take the same number of steps.

        Raises:
            RanksError: they train within `join()`, in which some take fewer.
        """
        if getattr(getattr(model, "_join_config", None), "enable", False):
            raise RanksError(
                "within join() ranks take different numbers of steps, which across_ranks=True cannot follow"
            )

    def gather(self, mine: Any) -> list[Any]:
        """Everybody's object, by rank. Waits for all ranks."""
        for waiting in self._setting_out:
            if waiting is not None:
                waiting.result()
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine, group=self.group)
        return everybody

    def look_back(self) -> None:
        """Take note of all steps but the newest one: what every rank knows before the next step sets out."""
        while len(self._under_way) > _AHEAD:
            parcel, waiting = self._under_way.popleft(), self._setting_out.popleft()
            if waiting is not None:
                waiting.result()
            parcel.accept()

    def send(self, parcel: Parcel) -> None:
        """Send a step's values, at once where they are on the host, else when they have come there."""
        waiting = None
        if parcel.on_host() and all(one is None or one.done() for one in self._setting_out):
            parcel.set_out()
        else:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "gradlab-ranks")
            waiting = self._thread.submit(parcel.set_out)
        self._under_way.append(parcel)
        self._setting_out.append(waiting)

    def add(self, values: Tensor, operation: Any = dist.ReduceOp.SUM) -> Any:
        """Begin to add up values of all ranks in place, or to do another operation; gives what can be waited for."""
        return dist.all_reduce(values, operation, group=self.group, async_op=True)

    def leave(self, seconds: float = 10.0) -> None:
        """Wait so long at most for what is under way, and leave the group; the other ranks are told by it."""
        if self._is_over:
            return
        self._is_over = True
        self._at_exit.detach()
        if self._thread is not None and os.getpid() == self._process:
            self._thread.shutdown(wait=False)
        _let_go(self._group, self._under_way, self._process, seconds)


def _let_go(group: list[dist.ProcessGroup], under_way: deque[Parcel], process: int, seconds: float) -> None:
    if os.getpid() != process:
        return  # a fork has the group's sockets, which are not its to close, and none of its threads
    until = time.monotonic() + seconds
    while not all(one.has_arrived() for one in under_way) and time.monotonic() < until:
        time.sleep(0.001)
    if group and not all(one.has_arrived() for one in under_way):
        # A group with a collective under way waits for the other ranks where it is freed, and they may be waiting for
        # this one: let it live until the process ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group[0]))
    for one in under_way:
        one.settle()
    under_way.clear()
    while group:
        with contextlib.suppress(Exception):  # the script may have destroyed all groups already
            dist.destroy_process_group(group.pop())


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
