"""gradlab's own process group: all ranks, on the host, apart from the collectives of the training.

Values go to the host first, as they do in a single process, and are added up by gloo's threads while the next step
runs, so that collectives of the training are never waited for, delayed or mixed with these. A rank that fails, leaves
early or dies leaves the group; the others notice by its closed connection, go on without watching, and say so once.

Belongs here: the group, the order in which the reductions of steps are started on all ranks, and the end. Does not:
what is added up (`reduce`).
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
from typing import Any, NamedTuple, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from gradlab.errors import RanksError

_JOIN_TIMEOUT = timedelta(seconds=30)
"""So long the first logged step waits for ranks that have not called `watch`."""
_MOST_UNFINISHED = 1
"""So many earlier steps may still be under way when a step is started; all ranks know what came of those before."""
_num_made = 0


class Reduction(Protocol):
    """The values of a step, which are added up over all ranks: they come to the host, are sent, and arrive as a sum."""

    def is_on_host(self) -> bool:
        """Whether `start` need not wait for the device."""

    def start(self) -> None:
        """Begin the collective, which goes on by itself."""

    def done(self) -> bool:
        """Whether the sum is there, or can never be."""

    def finish(self) -> None:
        """Wait for the sum, and take note of what other ranks have said with it.

        Raises:
            RanksError: a rank is gone.
        """

    def stop_waiting(self) -> None:
        """Keep the sum if it is there, and expect none otherwise: the group is about to be destroyed."""


class _UnderWay(NamedTuple):
    """A reduction that is not finished."""

    reduction: Reduction
    starting: Future[None] | None
    """Where its values were not on the host at once: what starts it when they are."""


class RankGroup:
    """Runs reductions in the same order on every rank of the default process group."""

    def __init__(self) -> None:
        self.size, self.rank = dist.get_world_size(), dist.get_rank()
        self._key = ""
        self._group: list[dist.ProcessGroup] = []
        self._under_way: deque[_UnderWay] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._is_over = False
        self._process = os.getpid()
        self._at_exit = weakref.finalize(self, _destroy, self._group, self._under_way, self._process, 1.0)

    def announce(self) -> None:
        """Tell the other ranks that this one watches, without waiting for them."""
        global _num_made
        self._key = f"gradlab/watches/{_num_made}/"
        _num_made += 1
        _store().set(f"{self._key}{self.rank}", "1")

    @property
    def process_group(self) -> dist.ProcessGroup:
        """gradlab's own group; the first use waits for all ranks.

        Raises:
            RanksError: a rank does not watch.
        """
        if not self._group:
            keys = [f"{self._key}{rank}" for rank in range(self.size)]
            try:
                _store().wait(keys, _JOIN_TIMEOUT)
            except (RuntimeError, ValueError) as error:
                missing = [rank for rank, key in enumerate(keys) if not _store().check([key])]
                raise RanksError(
                    f"rank {missing[0] if missing else '?'} does not watch: across_ranks=True is for all ranks, each "
                    f"of which has to call watch() before its first step."
                ) from error
            self._group.append(dist.new_group(backend="gloo"))
        return self._group[0]

    def refuse_join(self, model: nn.Module) -> None:
        """Make sure that ranks can be expected to take the same number of steps.

        Raises:
            RanksError: they train within `join()`, in which some take fewer.
        """
        if getattr(getattr(model, "_join_config", None), "enable", False):
            raise RanksError(
                "within join() ranks take different numbers of steps, which across_ranks=True cannot follow"
            )

    def gather_objects(self, mine: Any) -> list[Any]:
        """Everybody's object, by rank. Waits for all ranks."""
        for one in self._under_way:
            if one.starting is not None:
                one.starting.result()
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine, group=self.process_group)
        return everybody

    def finish_earlier(self) -> None:
        """Finish the reductions of all steps but the newest: what every rank knows before the next step is started."""
        while len(self._under_way) > _MOST_UNFINISHED:
            reduction, starting = self._under_way.popleft()
            if starting is not None:
                starting.result()
            reduction.finish()

    def start(self, reduction: Reduction) -> None:
        """Start the reduction of a step, at once where its values are on the host, else when they have come there."""
        starting = None
        if reduction.is_on_host() and all(one.starting is None or one.starting.done() for one in self._under_way):
            reduction.start()
        else:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "gradlab-ranks")
            starting = self._thread.submit(reduction.start)
        self._under_way.append(_UnderWay(reduction, starting))

    def all_reduce(self, values: Tensor, operation: Any = dist.ReduceOp.SUM) -> Any:
        """Begin to add up values of all ranks in place, or to do another operation; gives what can be waited for."""
        return dist.all_reduce(values, operation, group=self.process_group, async_op=True)

    def leave(self, seconds: float = 10.0) -> None:
        """Wait so long at most for what is under way, and leave the group, which tells the other ranks."""
        if self._is_over:
            return
        self._is_over = True
        self._at_exit.detach()
        if self._thread is not None and os.getpid() == self._process:
            self._thread.shutdown(wait=False)
        _destroy(self._group, self._under_way, self._process, seconds)


def _destroy(group: list[dist.ProcessGroup], under_way: deque[_UnderWay], process: int, seconds: float) -> None:
    """Wait for the reductions of a group and destroy it, in the process that made it."""
    if os.getpid() != process:
        return  # a fork has the group's sockets, which are not its to close, and none of its threads
    until = time.monotonic() + seconds
    while not all(one.reduction.done() for one in under_way) and time.monotonic() < until:
        time.sleep(0.001)
    if group and not all(one.reduction.done() for one in under_way):
        # A group with a collective under way waits for the other ranks where it is freed, and they may be waiting for
        # this one: let it live until the process ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group[0]))
    for one in under_way:
        one.reduction.stop_waiting()
    under_way.clear()
    while group:
        with contextlib.suppress(Exception):  # the script may have destroyed all groups already
            dist.destroy_process_group(group.pop())


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
