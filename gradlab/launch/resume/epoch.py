"""One epoch of a loader: its batches, where it is among them, and how another process gets there.

Indices that were drawn are noted as they are drawn, batches of an iterable are read again: `loaders` says when.
"""

from __future__ import annotations

import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from gradlab.errors import warn
from gradlab.launch.random_state import restore, snapshot
from gradlab.launch.resume.data_state import States
from gradlab.launch.resume.fingerprint import fingerprint
from gradlab.launch.resume.followed_loader import FollowedLoader, Place
from gradlab.launch.resume.loader_kinds import is_torchdata


class Coordinator(Protocol):
    """What puts all loaders of a training where they were, in the order in which that has to happen."""

    def before_epoch(self, followed: FollowedLoader) -> None:
        """A loader is about to be iterated over."""

    def iterated(self, batches: EpochBatches) -> None:
        """An epoch of a loader was begun."""

    def before_fetch(self, batches: EpochBatches) -> None:
        """The next batch is about to be drawn."""

    def is_prefetching(self) -> bool:
        """Whether a batch is drawn before the one before it is used."""

    def failed(self, error: RuntimeError) -> Exception:
        """What to raise for a worker that has ended."""


def begin_epoch(
    followed: FollowedLoader, coordinator: Coordinator, iterate: Callable[[], Iterator[Any]]
) -> EpochBatches:
    """The batches of one epoch, which `iterate` gives."""
    coordinator.before_epoch(followed)
    return EpochBatches(followed, coordinator, iterate, followed.take_place())


class EpochBatches(Iterator[Any]):
    """The batches of one epoch of a followed loader.

    In no cycle of references, so that workers end when Lightning lets go of it, and not when garbage is collected.
    """

    def __init__(
        self,
        followed: FollowedLoader,
        coordinator: Coordinator,
        iterate: Callable[[], Iterator[Any]],
        place: Place | None,
    ) -> None:
        self.followed = followed
        self._coordinator = coordinator
        self.place = None if place is None or place["ended"] else place
        self.taken = self.place["taken"] if self.place else 0
        """How many were handed out."""
        self.drawn = 0
        """How many batches of indices were drawn, some of them ahead."""
        self.checksum = 0
        """Of the indices that were drawn."""
        self.pending: deque[Any] = deque()
        """The indices that were drawn and whose batch was not handed out yet."""
        self.exhausted = False
        """Whether the last batch was handed out."""
        self.orders = 0
        """How many orders of indices were begun: two where workers were started."""
        self.at_order: States | None = None
        """The state in which the last of them was begun."""
        self.at_first: States | None = None
        """The state in which the first indices, or the first batch of an iterable, were drawn."""
        self.before: States | None = None
        """The state before the last batch was drawn, where that is drawn ahead or may have to be read again."""
        self.before_that: States | None = None
        """The same of the batch before it."""
        self.to_draw_ahead: States | None = None
        """The state in which the first batch has to be drawn, where it had been drawn ahead."""
        self.indices: FollowedIndices | None = None
        self._fingerprints: deque[int] = deque([0, 0], maxlen=2)
        self._last: Any = None
        """The indices of the last batch that was handed out."""
        self._position: States | None = place["now"] if place else None
        self._loader_state: Any = place["loader"] if place else None
        self._at_first_try: States | None = None
        """The state before a position was put back that may be the very end of an epoch."""
        self._iterate = iterate
        self._source: Iterator[Any] | None = None
        self.waits = place is not None
        """Whether the loader's own iteration has yet to begin."""
        if not self.waits:
            self._open()
        coordinator.iterated(self)

    def __next__(self) -> Any:
        followed = self.followed
        self._coordinator.before_fetch(self)
        is_ahead = self._coordinator.is_prefetching()
        if is_ahead or (followed.kind == "items" and not followed.has_position):
            self.look_back()
        batch = self._fetch()
        self.taken += 1
        if self.pending:
            self._last = self.pending.popleft()
        return batch

    def order_of(self, sampler: Any) -> Iterator[Any]:
        """The indices of this epoch, drawn from `sampler`; noted as they are drawn, unless the loader does that."""
        self.orders += 1
        self.at_order = self.followed.begin_order(self.place, self.orders)
        indices = iter(sampler)
        if self.followed.kind == "stateful":
            return indices
        self.indices = FollowedIndices(self, indices)
        return self.indices

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
            raise self._coordinator.failed(error) from error
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
        if followed.kind == "stateful" and not is_torchdata(followed.loader) and self._loader_state is not None:
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
        before_last = place["before_last"] if self.followed.num_workers == 0 else None
        for count in range(place["taken"]):
            if count + 1 == place["taken"] and before_last is not None:
                self.followed.put(before_last)
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


class FollowedIndices(Iterator[Any]):
    """Batches of indices, each noted as it is drawn."""

    def __init__(self, batches: EpochBatches, inner: Iterator[Any]) -> None:
        self._owner = weakref.ref(batches)  # which holds the loader's iterator, which holds this
        self._inner = inner
        self._again: deque[Any] = deque()
        self._begun = False

    @property
    def _batches(self) -> EpochBatches:
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
