"""What gradlab adds to the worker processes of a DataLoader: they say how far they are, and outlive a signal to all.

A worker's random numbers go on from batch to batch, so a run can only go on exactly if they are known: each batch
brings along the states of its worker as they were after it. And where a whole process group, a container or a SLURM
step is asked to stop, the workers hear it too; they must not die then, as the step that is under way needs its batch.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory

from gradlab.launch.resume.data_state import DataState, RandomState, States


class Delivered:
    """A batch, with the worker it came from and that worker's state after it, as far as it has changed."""

    def __init__(self, batch: Any, worker: int, states: States) -> None:
        self.batch, self.worker, self.states = batch, worker, states

    def pin_memory(self, device: str | None = None) -> Delivered:
        """Called by the loader, which knows this convention."""
        self.batch = pin_memory(self.batch, device)
        return self


class Collate:
    """A loader's `collate_fn` that packs what it returns as Delivered, inside workers."""

    def __init__(self, collate_fn: Callable[[Any], Any], *, stateful: bool) -> None:
        self.collate_fn = collate_fn
        self.stateful = stateful
        self._last: States = {}

    def __call__(self, samples: Any) -> Any:
        batch = self.collate_fn(samples)
        info = get_worker_info()
        if info is None:
            return batch
        states = worker_states(DataState(_roots(info.dataset, self.collate_fn)), stateful=self.stateful)
        changed = {path: state for path, state in states.items() if not same_state(state, self._last.get(path))}
        self._last = states
        return Delivered(batch, info.id, changed)


class Start:
    """A loader's `worker_init_fn` that puts a worker where it was, after the user's own."""

    def __init__(
        self, worker_init_fn: Callable[[int], None] | None, collate: Collate, states: dict[int, States]
    ) -> None:
        self.worker_init_fn = worker_init_fn
        self.collate = collate
        self.states = states

    def __call__(self, worker: int) -> None:
        keep_signals_away()
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker)
        info, states = get_worker_info(), self.states.get(worker)
        if info is not None and states:
            data = DataState(_roots(info.dataset, self.collate.collate_fn))
            put_worker_states(data, states, stateful=self.collate.stateful)


def worker_states(data: DataState, *, stateful: bool) -> States:
    """The random numbers of this process and the state of its copy of the data set."""
    process = {"python": random.getstate(), "numpy": np.random.get_state(legacy=True), "torch": torch.get_rng_state()}
    return {**{f"process {name}": state for name, state in process.items()}, **data.take(stateful=stateful)}


def put_worker_states(data: DataState, states: States, *, stateful: bool) -> None:
    """Put back what `worker_states` gave, in another process."""
    random.setstate(states["process python"])
    np.random.set_state(states["process numpy"])
    torch.set_rng_state(states["process torch"])
    data.put({path: state for path, state in states.items() if not path.startswith("process ")}, stateful=stateful)


def _roots(dataset: Any, collate_fn: Any) -> dict[str, Any]:
    return {"dataset": dataset, "collate_fn": collate_fn}


def same_state(state: Any, other: Any) -> bool:
    """Whether two states are equal, as far as that can be seen."""
    if isinstance(state, RandomState) and isinstance(other, RandomState):
        return state.kind == other.kind and same_state(state.state, other.state)
    if isinstance(state, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(state, other)
    if isinstance(state, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(state, other)
    if isinstance(state, tuple) and isinstance(other, tuple) and len(state) == len(other):
        return all(same_state(one, two) for one, two in zip(state, other, strict=True))
    try:
        return bool(state == other)
    except (RuntimeError, ValueError):  # what a data set's state is made of may have no one truth
        return False


def keep_signals_away() -> None:
    """Let SIGINT and SIGTERM not end this worker, unless its loader is being shut down.

    A handler does not see who has sent a signal. A loader that ends its workers sets their `done_event` first, so that
    event tells a loader's SIGTERM from one that was meant for the main process. Handlers and no mask, and none of them
    SIG_IGN: those would be inherited by the programs that a data set starts.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _do_nothing)
        signal.signal(signal.SIGTERM, _end_if_told)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """The main process answers the signal."""


def _end_if_told(number: int, frame: FrameType | None) -> None:
    while frame is not None and frame.f_code.co_name != "_worker_loop":
        frame = frame.f_back
    event = frame.f_locals.get("done_event") if frame is not None else None
    flag = getattr(event, "_flag", None)  # `is_set` takes a lock, which the code that was interrupted may hold
    if flag is None or flag.acquire(False):
        os._exit(0)
