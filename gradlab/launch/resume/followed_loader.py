"""One loader of a training through all of its epochs: what it was given, how its iterators and workers are started.

Where it is within an epoch is not known here but by the epoch (`epoch`), which the loader is given when one is begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypedDict

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from gradlab.launch.random_state import restore, snapshot
from gradlab.launch.resume.data_state import DataState, States
from gradlab.launch.resume.loader_kinds import is_torchdata, kind_of, roots_of
from gradlab.launch.resume.pipeline_search import search_pipeline
from gradlab.launch.resume.workers import Collate, Delivered, Start


class LoaderPlace(TypedDict):
    """Where a loader is between two epochs, as a checkpoint holds it."""

    name: str
    """What the loader is called in messages."""
    kind: str
    """`stateful`, `indices` or `items`."""
    ended: bool
    """Whether its epoch is over, and the next batch is the first of another one."""
    now: States
    """What the pipeline remembers."""
    loader: Any
    """What a stateful loader says of itself."""
    created: States | None
    """The state in which its workers were started."""
    workers: dict[int, States]
    """The state of each worker after the last of its batches that was used."""
    next_worker: int
    """Whose turn it is."""


class Place(LoaderPlace, total=False):
    """Where a loader is in an epoch of training, as a checkpoint holds it."""

    taken: int
    """How many batches were used."""
    drawn: int
    """How many batches of indices were drawn, some of them ahead."""
    checksum: int
    """Of the indices that were drawn."""
    pending: list[Any]
    """The indices that were drawn and whose batch was not used."""
    at_order: States | None
    """The state in which the order of indices was begun."""
    at_first: States | None
    """The state in which the first indices, or the first batch of an iterable, were drawn."""
    before: States | None
    """The state before a batch that was drawn ahead."""
    before_last: States | None
    """The state before the last batch that was used."""
    fingerprint: int
    """Of the last batch that was used."""
    workers_at_start: dict[int, States]
    """The state of each worker when the epoch began."""


class Epoch(Protocol):
    """What a loader needs of the epoch that is begun."""

    place: Place | None
    """Where it goes on; None for its start."""

    def order_of(self, sampler: Any) -> Iterator[Any]:
        """The indices of the epoch, drawn from `sampler`."""


class FollowedLoader:
    """One loader of a training, through all of its epochs."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        is_dataset = isinstance(loader, DataLoader)
        self.num_workers: int = loader.num_workers if is_dataset else 0
        self.keeps_workers = self.num_workers > 0 and bool(loader.persistent_workers)
        self.data = DataState(roots_of(loader))
        self.kind = kind_of(loader)
        self.has_position = bool(search_pipeline(self.data.roots).stateful)
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
        """Where the next epoch goes on."""
        self._recreate: States | None = None
        """The state in which workers that are kept have to be started."""
        self.opening: Epoch | None = None
        """The epoch whose iteration is being begun."""
        self._creating = False
        """Whether the loader's iterator is being made."""
        self._current: States | None = None
        """The state from before workers were started with that of then, to go on with."""

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

    def take_place(self) -> Place | None:
        """Where the epoch that is begun now goes on; None for its start."""
        place, self._to_resume = self._to_resume, None
        return place

    def open(self, epoch: Epoch, iterate: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Begin the loader's own iteration."""
        if not self.keeps_workers and epoch.place is None:
            self.workers, self.last_worker = {}, -1
        if epoch.place is None:
            self.workers_at_start = {worker: states for worker, (_, states) in self.workers.items()}
        if not isinstance(self.loader, DataLoader):
            if epoch.place is not None and epoch.place["created"] is not None:
                self.put(epoch.place["created"])
            self.created = self.take()
        self.opening = epoch
        try:
            return iterate()
        finally:
            self.opening = None

    def create(self, make: Callable[[], Any]) -> Any:
        """The loader's own iterator, whose workers begin where they were."""
        place = self.opening.place if self.opening is not None else None
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
        return _IndexSampler(self, sampler) if self.opening is not None and is_noted else sampler

    def begin_order(self, place: Place | None, number: int) -> States:
        """Put back what the order of indices that begins now depends on, and return it.

        Args:
            place: where the epoch goes on.
            number: how many orders the epoch has begun, this one included. Where workers are started, the iterator of
                the loader begins one in vain before the one that it draws from.
        """
        if number == (2 if self._creating and self.num_workers > 0 else 1):
            if place is not None and place["at_order"] is not None:
                self.put(place["at_order"])
            else:
                self._put_current()
        return self.take()

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

    def between_epochs(self, *, now: States, at_start: bool) -> Place:
        """The place of a loader that is at the end of an epoch, or at its start."""
        states = self.loader.state_dict() if self.kind == "stateful" and is_torchdata(self.loader) is False else None
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


class _IndexSampler:
    """The sampler of a loader, followed."""

    def __init__(self, followed: FollowedLoader, sampler: Any) -> None:
        self._followed = followed
        self._sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        epoch = self._followed.opening
        return iter(self._sampler) if epoch is None else epoch.order_of(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._sampler, name)


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
