"""Loaders that are followed: where each is in its epoch, and how another process gets there without loading again.

A loader goes on in one of three ways, the first that it allows:

- `stateful`: the loader itself has `state_dict` and `load_state_dict`, as torchdata's StatefulDataLoader;
- `indices`: a data set with an index. The order of the epoch is drawn once more from the random numbers that it began
  with, no sample is loaded, and the indices that were drawn ahead for workers are used as they were;
- `items`: an iterable. One with a `state_dict` is put where it was; else its batches are read again up to there.

What the pipeline remembers besides (`data_state`), and what its workers do (`workers`), is put back as it was when the
checkpoint was written. All of it happens when the first batch is drawn, since what is drawn before that by hooks of the
user comes first in a run that was not stopped.
"""

from __future__ import annotations

import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from gradlab.errors import warn
from gradlab.launch.random_state import restore, snapshot
from gradlab.launch.resume.data_state import DataState, States, find, is_stateful
from gradlab.launch.resume.workers import Collate, Delivered, Start

Place = dict[str, Any]
"""Where a loader is, as a checkpoint holds it."""


class Course(Protocol):
    """What the loaders of a training share: its fetches, one after the other."""

    def before_epoch(self, followed: FollowedLoader) -> None:
        """A loader is about to be iterated over."""

    def iterated(self, batches: Batches) -> None:
        """An epoch of a loader was begun."""

    def before_fetch(self, batches: Batches) -> None:
        """The next batch is about to be drawn."""

    def is_prefetching(self) -> bool:
        """Whether a batch is drawn before the one before it is used."""

    def failed(self, error: RuntimeError) -> Exception:
        """What to raise for a worker that has ended."""


class FollowedLoader:
    """One loader of a training, through all of its epochs."""

    def __init__(self, loader: Any, course: Course) -> None:
        self.loader = loader
        self.course = course
        is_dataset = isinstance(loader, DataLoader)
        self.num_workers: int = loader.num_workers if is_dataset else 0
        self.keeps_workers = self.num_workers > 0 and bool(loader.persistent_workers)
        self.data = DataState(roots_of(loader))
        self.kind = _kind(loader)
        self.has_position = bool(find(self.data.roots).stateful)
        """Whether a data set says where it is."""
        self.created: States | None = None
        """The state in which the workers were started."""
        self.workers: dict[int, tuple[States | None, States]] = {}
        """The last two states of each worker, the newer one last."""
        self.workers_at_start: dict[int, States] = {}
        self.last_worker = -1
        self.is_begun = False
        """Whether it was iterated over."""
        self._to_resume: Place | None = None
        self._recreate: States | None = None
        self._opening: Batches | None = None
        self._creating = False
        self._current: States | None = None
        if is_dataset:
            loader.__class__ = _followed(getattr(type(loader), "followed_class", type(loader)), self)

    @property
    def name(self) -> str:
        """What the loader is called in messages."""
        dataset = getattr(self.loader, "dataset", None)
        own = getattr(type(self.loader), "followed_class", type(self.loader)).__name__
        return own if dataset is None else f"{own} of {type(dataset).__name__}"

    def resume(self, place: Place, *, in_training: bool) -> None:
        """Let the next epoch that is begun go on from `place`; a validation always begins at its start."""
        if in_training:
            self._to_resume = place
        elif place["loader"] is not None:
            self.loader.load_state_dict(place["loader"])
        self.workers = {worker: (None, states) for worker, states in place["workers"].items()}
        self.last_worker = place["next_worker"] - 1
        if self.keeps_workers:
            self._recreate = place["created"]

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers the epoch, as Lightning has done before they were put back where they were."""
        samplers: list[Any] = [getattr(self.loader, "sampler", None)]
        samplers.append(getattr(getattr(self.loader, "batch_sampler", None), "sampler", None))
        for sampler in samplers:
            if callable(getattr(sampler, "set_epoch", None)):
                sampler.set_epoch(epoch)

    def batches(self, iterate: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """The batches of one epoch, which `iterate` gives."""
        self.course.before_epoch(self)
        place, self._to_resume = self._to_resume, None
        return Batches(self, iterate, place)

    def open(self, batches: Batches, iterate: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Begin the loader's own iteration."""
        if not self.keeps_workers and batches.place is None:
            self.workers, self.last_worker = {}, -1
        if batches.place is None:
            self.workers_at_start = {worker: states for worker, (_, states) in self.workers.items()}
        if not isinstance(self.loader, DataLoader):
            if batches.place is not None:
                self.put(batches.place["created"])
            self.created = self.take()
        self._opening = batches
        try:
            return iterate()
        finally:
            self._opening = None

    def create(self, make: Callable[[], Any]) -> Any:
        """The loader's own iterator, whose workers begin where they were."""
        place = self._opening.place if self._opening is not None else None
        created, self._recreate = (place["created"] if place else None) or self._recreate, None
        if created is not None:
            self._current = None if place else self.take()
            self.put(created)
        self.created = created or self.take()
        self._creating = True
        try:
            return make() if self.num_workers == 0 else self._with_workers(make, place)
        finally:
            self._creating = False
            self._put_current()

    def _with_workers(self, make: Callable[[], Any], place: Place | None) -> Any:
        """Make the iterator with what gradlab adds to workers, and leave the loader as it was."""
        loader = self.loader
        users = loader.collate_fn, loader.worker_init_fn
        collate = Collate(loader.collate_fn, stateful=self.kind != "stateful")
        loader.collate_fn = collate
        loader.worker_init_fn = Start(loader.worker_init_fn, collate, self._worker_states(place))
        first = place["next_worker"] if place is not None and not self._reads_again() else 0
        try:
            if first and self.kind != "stateful" and getattr(type(loader), "makes_plain_iterators", False):
                return _FromWorker(loader, first)
            return make()
        finally:
            loader.collate_fn, loader.worker_init_fn = users

    def _worker_states(self, place: Place | None) -> dict[int, States]:
        """The states that workers begin with."""
        if place is not None and self._reads_again():
            return dict(place["workers_at_start"])
        return {worker: states for worker, (_, states) in self.workers.items()}

    def _reads_again(self) -> bool:
        """Whether the place in an epoch is found by reading up to there."""
        is_iterable = isinstance(getattr(self.loader, "dataset", None), IterableDataset) or self.kind == "items"
        return is_iterable and not self.has_position

    def index_sampler(self, sampler: Any) -> Any:
        """What the loader's iterator draws indices from."""
        is_noted = self.kind == "indices" or (self.kind == "stateful" and self._current is not None)
        return _Indices(self, sampler) if self._opening is not None and is_noted else sampler

    def draws(self, batches: Batches | None) -> None:
        """An order of indices is about to be begun."""
        if batches is None:
            return
        batches.orders += 1
        place = batches.place
        if batches.orders == (2 if self._creating and self.num_workers > 0 else 1):
            if place is not None and place["at_order"] is not None:
                self.put(place["at_order"])
            else:
                self._put_current()
        batches.at_order = self.take()

    def _put_current(self) -> None:
        """Go on with the random numbers of now, after workers were started with those of then."""
        current, self._current = self._current, None
        if current is not None:
            self.put(current)

    def take(self) -> States:
        """What an order of indices depends on."""
        return {"process": snapshot(), "pipeline": self.data.take(stateful=False)}

    def put(self, states: States) -> None:
        """Put it back."""
        restore(states["process"])
        self.data.put(states["pipeline"], stateful=False)

    def came(self, item: Any) -> Any:
        """The batch of what the loader gave."""
        if not isinstance(item, Delivered):
            return item
        _, before = self.workers.get(item.worker, (None, None))
        self.workers[item.worker] = (before, {**(before or {}), **item.states})
        self.last_worker = item.worker
        return item.batch

    def whole(self, *, now: States, at_start: bool) -> Place:
        """The place of a loader that is at the end of an epoch, or at its start."""
        states = self.loader.state_dict() if self.kind == "stateful" and _is_torchdata(self.loader) is False else None
        return {
            "name": self.name,
            "kind": self.kind,
            "ended": True,
            "now": now,
            "loader": states,
            "created": self.created,
            "workers": self.worker_places(back=False, at_start=at_start),
            "next_worker": 0,
        }

    def worker_places(self, *, back: bool, at_start: bool) -> dict[int, States]:
        """The state of each worker after the last batch that was used."""
        if at_start:
            return dict(self.workers_at_start)
        places = {}
        for worker, (before, latest) in self.workers.items():
            states = before if back and worker == self.last_worker else latest
            if states is not None:
                places[worker] = states
        return places


class Batches(Iterator[Any]):
    """The batches of one epoch of a followed loader.

    In no cycle of references, so that workers end when Lightning lets go of it, and not when garbage is collected.
    """

    def __init__(self, followed: FollowedLoader, iterate: Callable[[], Iterator[Any]], place: Place | None) -> None:
        self.followed = followed
        self.place = None if place is None or place["ended"] else place
        self.taken = self.place["taken"] if self.place else 0
        """How many were handed out."""
        self.drawn = 0
        """How many batches of indices were drawn, some of them ahead."""
        self.checksum = 0
        self.pending: deque[Any] = deque()
        """The indices that were drawn and whose batch was not handed out yet."""
        self.exhausted = False
        self.orders = 0
        self.at_order: States | None = None
        self.at_first: States | None = None
        self.before: States | None = None
        """The state before the last batch was drawn, where that is drawn ahead or may have to be read again."""
        self.before_that: States | None = None
        """The same of the batch before it."""
        self.to_draw_ahead: States | None = None
        """The state in which the first batch has to be drawn, where it had been drawn ahead."""
        self.indices: _IndexIterator | None = None
        self._fingerprints: deque[int] = deque([0, 0], maxlen=2)
        self._last: Any = None
        self._position: States | None = place["now"] if place else None
        self._loader_state: Any = place["loader"] if place else None
        self._at_first_try: States | None = None
        self._iterate = iterate
        self._source: Iterator[Any] | None = None
        self.waits = place is not None
        """Whether the loader's own iteration has yet to begin."""
        if not self.waits:
            self._open()
        followed.course.iterated(self)

    def __next__(self) -> Any:
        followed = self.followed
        followed.course.before_fetch(self)
        is_ahead = followed.course.is_prefetching()
        if is_ahead or (followed.kind == "items" and not followed.has_position):
            self.look_back()
        batch = self._fetch()
        self.taken += 1
        if self.pending:
            self._last = self.pending.popleft()
        return batch

    def _open(self) -> None:
        self._source = self.followed.open(self, self._iterate)
        self.waits = False

    def _fetch(self) -> Any:
        assert self._source is not None
        try:
            batch = self.followed.came(next(self._source))
        except StopIteration:
            if self._at_first_try is None:
                self.exhausted = True
                raise
            self.followed.data.put(self._at_first_try)  # what was put back was the very end of an epoch
            self._at_first_try = None
            self._open()
            return self._fetch()
        except RuntimeError as error:
            raise self.followed.course.failed(error) from error
        self._at_first_try = None
        if self.followed.kind == "items" and not self.followed.has_position:
            self._fingerprints.append(fingerprint(batch))
        return batch

    def go_on(self) -> None:
        """Begin where the checkpoint says; the process's random numbers are put back by others."""
        followed, place = self.followed, self.place
        if place is None:
            self._begin_anew()
        else:
            if followed.kind == "stateful":
                followed.loader.load_state_dict(self._loader_state)
            elif followed.kind == "items" and followed.has_position and followed.num_workers == 0:
                followed.data.put(place["before"]["pipeline"] if place["before"] else place["now"])
            self._open()
            if self.indices is not None:
                self.indices.begin()
            elif followed.kind == "items" and not followed.has_position:
                self._read_again(place)
        self.place = self._position = self._loader_state = None

    def draw_ahead(self) -> None:
        """Get ready to draw a batch once more that had been drawn ahead."""
        states, self.to_draw_ahead = self.to_draw_ahead, None
        if states is not None:
            restore(states["process"])
            self.followed.data.put(states["pipeline"], stateful=self.followed.kind == "indices")

    def _begin_anew(self) -> None:
        """Begin the first epoch after the one that the checkpoint was written at the end of."""
        followed = self.followed
        if followed.kind == "stateful" and not _is_torchdata(followed.loader) and self._loader_state is not None:
            followed.loader.load_state_dict(self._loader_state)
        if followed.kind == "items" and followed.has_position and followed.num_workers == 0 and self._position:
            self._at_first_try = followed.data.take()
            followed.data.put(self._position)
        self._open()

    def _read_again(self, place: Place) -> None:
        """Read and drop the batches that were used, the last one with the random numbers that it was read with."""
        if place["at_first"] is not None:
            self.followed.put(place["at_first"])
        self.at_first = place["at_first"]
        for count in range(place["taken"]):
            if count + 1 == place["taken"] and self.followed.num_workers == 0:
                self.followed.put(place["before_last"])
            try:
                self._fetch()
            except StopIteration:
                warn(
                    f"{self.followed.name} ended after {count} batches when it was read again, of which the run had "
                    f"used {place['taken']}: it does not go on exactly. Give its data set state_dict() and "
                    "load_state_dict()."
                )
                return
        if place["taken"] and self._fingerprints[-1] != place["fingerprint"]:
            warn(
                f"{self.followed.name} gave other batches when it was read again, so the run does not go on exactly. "
                "Give its data set state_dict() and load_state_dict(), or let it draw from generators that it holds."
            )

    def look_back(self) -> None:
        """Note the state before a batch."""
        followed = self.followed
        self.before_that = self.before
        self.before = {"process": snapshot(), "pipeline": followed.data.take()}
        if followed.kind == "items" and self.taken == 0:
            self.at_first = self.before
        if followed.kind == "stateful":
            self.before["loader"] = followed.loader.state_dict()

    def where(self, *, ahead: bool, ended: bool, now: States, at_start: bool = False) -> Place:
        """Where this epoch is.

        Args:
            ahead: whether the last batch was drawn and is not used yet.
            ended: whether the epoch is over, and the next batch is the first of another one.
            now: the state of the pipeline.
            at_start: whether its workers count as they were when the epoch began.
        """
        if self.place is not None:
            return {**self.place, "ended": ended, "now": now}
        followed = self.followed
        back = ahead and not self.exhausted
        return {
            "name": followed.name,
            "kind": followed.kind,
            "ended": ended,
            "now": now,
            "taken": self.taken - back,
            "drawn": self.drawn,
            "checksum": self.checksum,
            "pending": [*([self._last] if back else []), *self.pending] if followed.kind == "indices" else [],
            "created": followed.created,
            "at_order": self.at_order,
            "at_first": self.at_first,
            "before": self.before if ahead else None,
            "before_last": self.before_that if ahead and not self.exhausted else self.before,
            "fingerprint": self._fingerprints[0 if back else -1],
            "loader": self._state_of_loader(back),
            "workers": followed.worker_places(back=back, at_start=at_start),
            "workers_at_start": dict(followed.workers_at_start),
            "next_worker": followed.last_worker + (not back),
        }

    def _state_of_loader(self, back: bool) -> Any:
        if self.followed.kind != "stateful" or self.waits:
            return self._loader_state
        return self.before["loader"] if back and self.before else self.followed.loader.state_dict()


class _Indices:
    """The sampler of a loader, followed."""

    def __init__(self, followed: FollowedLoader, sampler: Any) -> None:
        self._followed = followed
        self._sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        batches = self._followed._opening
        self._followed.draws(batches)
        inner = iter(self._sampler)
        if batches is None or self._followed.kind == "stateful":
            return inner
        batches.indices = _IndexIterator(batches, inner)
        return batches.indices

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._sampler, name)


class _IndexIterator(Iterator[Any]):
    """Batches of indices, each noted as it is drawn."""

    def __init__(self, batches: Batches, inner: Iterator[Any]) -> None:
        self._owner = weakref.ref(batches)  # which holds the loader's iterator, which holds this
        self._inner = inner
        self._again: deque[Any] = deque()
        self._begun = False

    @property
    def _batches(self) -> Batches:
        batches = self._owner()
        assert batches is not None
        return batches

    def __next__(self) -> Any:
        self.begin()
        if self._again:
            return self._again.popleft()
        index, batches = self._draw(), self._batches
        batches.pending.append(index)
        if batches.before is not None and batches.followed.num_workers == 0:
            batches.look_back()  # where the batch is drawn once more, its indices are not
        return index

    def _draw(self) -> Any:
        index = next(self._inner)
        self._batches.drawn += 1
        self._batches.checksum = zlib.crc32(repr(index).encode(), self._batches.checksum)
        return index

    def begin(self) -> None:
        """Get where the checkpoint says, if there is one; else note the state in which the order is begun."""
        if self._begun:
            return
        self._begun = True
        batches, followed = self._batches, self._batches.followed
        place = batches.place
        if place is None or place["at_first"] is None:
            batches.at_first = followed.take()
            return
        followed.put(place["at_first"])
        batches.at_first = place["at_first"]
        try:
            while batches.drawn < place["drawn"]:
                self._draw()
        except StopIteration:
            pass
        if batches.checksum != place["checksum"]:
            warn(
                f"the sampler of {followed.name} draws other samples when its epoch is begun again, so the run may not "
                "go on exactly. Let it draw from a generator that it or the loader holds, or from the global ones, and "
                "from no other state than its attributes."
            )
        batches.pending = deque(place["pending"])
        self._again = deque(place["pending"])


class _FromWorker(_MultiProcessingDataLoaderIter):
    """An iterator whose first batch is loaded by another worker than the first, the one whose turn it was."""

    def __init__(self, loader: DataLoader[Any], first: int) -> None:
        self._to_pass = first % loader.num_workers
        super().__init__(loader)

    def _try_put_index(self) -> None:
        for _ in range(self._to_pass):
            next(self._worker_queue_idx_cycle)
        self._to_pass = 0
        super()._try_put_index()


class FollowedIterable:
    """A loader that is no DataLoader: any object that can be iterated over."""

    def __init__(self, iterable: Any, course: Course) -> None:
        self.iterable = iterable
        self.follower = FollowedLoader(iterable, course)

    def __iter__(self) -> Iterator[Any]:
        return self.follower.batches(lambda: iter(self.iterable))

    def __len__(self) -> int:
        return len(self.iterable)

    def __getattr__(self, name: str) -> Any:
        if name in ("iterable", "follower") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.iterable, name)


def follow(loader: Any, course: Course) -> tuple[Any, FollowedLoader]:
    """Follow `loader`; what takes its place, itself where it is a DataLoader."""
    if isinstance(loader, DataLoader):
        known: FollowedLoader | None = getattr(type(loader), "follower", None)
        is_ours = known is not None and known.loader is loader and known.course is course
        return loader, known if known is not None and is_ours else FollowedLoader(loader, course)
    outer = FollowedIterable(loader, course)
    return outer, outer.follower


def roots_of(loader: Any) -> dict[str, Any]:
    """The parts of a loader that may remember something."""
    if not isinstance(loader, DataLoader):
        return {"dataset": loader}
    names = ("sampler", "batch_sampler", "generator", "collate_fn", "worker_init_fn", "dataset")
    return {name: getattr(loader, name, None) for name in names}


def what_is_hidden(loader: Any) -> list[str]:
    """Sentences on what of a loader's state cannot be had, so that a run that is stopped may not go on exactly."""
    name = type(loader).__name__
    found = find(roots_of(loader))
    sentences = [f"{name}.{path} {why}" for path, why in found.hidden.items() if path != "dataset"]
    if "dataset" in found.hidden:
        sentences.append(f"{name} {found.hidden['dataset']}")
    if getattr(loader, "num_workers", 0) and not getattr(loader, "in_order", True):
        sentences.append(f"{name} has in_order=False, so batches come as workers finish them")
    return sentences


def fingerprint(batch: Any) -> int:
    """A number by which a batch is known again: its shapes and a few of its values."""
    code = 0
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            flat = leaf.detach().reshape(-1) if leaf.device.type == "cpu" else leaf.new_empty(0)
            few = torch.cat([flat[:8], flat[-8:]]).tolist()
            code = zlib.crc32(f"{tuple(leaf.shape)} {few}".encode(), code)
        elif isinstance(leaf, np.ndarray):
            code = zlib.crc32(f"{leaf.shape} {leaf.reshape(-1)[:8]} {leaf.reshape(-1)[-8:]}".encode(), code)
        elif isinstance(leaf, int | float | str | bytes):
            code = zlib.crc32(repr(leaf).encode(), code)
    return code


def _kind(loader: Any) -> str:
    if is_stateful(loader):
        return "stateful"
    is_indexed = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    return "indices" if is_indexed else "items"


def _is_torchdata(loader: Any) -> bool:
    return any(cls.__module__.startswith("torchdata.") for cls in type(loader).__mro__)


def _followed(cls: type[DataLoader[Any]], follower: FollowedLoader) -> type[DataLoader[Any]]:
    """A class like `cls` whose iteration goes by way of `follower`.

    The loader stays the object that the user made: Lightning and users ask for its type, make it anew with another
    sampler (`overfit_batches`) and set attributes on it (`worker_init_fn`). A copy or a pickle is a plain loader again.
    """

    def __iter__(self: DataLoader[Any]) -> Iterator[Any]:
        return follower.batches(lambda: cls.__iter__(self)) if follower.loader is self else cls.__iter__(self)

    def _get_iterator(self: DataLoader[Any]) -> Any:
        return follower.create(lambda: cls._get_iterator(self))

    def _index_sampler(self: DataLoader[Any]) -> Any:
        return follower.index_sampler(cls._index_sampler.fget(self))  # type: ignore[attr-defined]

    def __reduce_ex__(self: DataLoader[Any], protocol: Any) -> Any:
        plain = object.__new__(cls)
        plain.__dict__.update(vars(self))
        return _itself, (plain,)

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    members = {
        "__iter__": __iter__,
        "__reduce_ex__": __reduce_ex__,
        "_get_iterator": _get_iterator,
        "_index_sampler": property(_index_sampler),
        "followed_class": cls,
        "follower": follower,
        "makes_plain_iterators": cls._get_iterator is DataLoader._get_iterator,
    }
    return type(cls.__name__, (cls,), {**names, **members})


def _itself(value: Any) -> Any:
    """What an object that is copied or pickled as another one is made by."""
    return value
