"""Loaders that are followed: where each is in its epoch, and how another process gets there without loading again.

A loader goes on in one of three ways, the first that it allows:

- `stateful`: the loader itself has `state_dict` and `load_state_dict`, as torchdata's StatefulDataLoader;
- `indices`: a data set with an index. The order of the epoch is drawn once more from the random numbers that it began
  with, no sample is loaded, and the indices that were drawn ahead for workers are used as they were;
- `items`: an iterable. One with a `state_dict` is put where it was; else its batches are read again up to there.

A FollowedLoader (`followed_loader`) knows a loader through all of its epochs, an EpochBatches (`epoch`) where it is in
one. What the pipeline remembers besides (`data_state`), and what its workers do (`workers`), is put back as it was when
the checkpoint was written. All of it happens when the first batch is drawn, since what is drawn before that by hooks of
the user comes first in a run that was not stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from gradlab.launch.resume.epoch import Coordinator, begin_epoch
from gradlab.launch.resume.followed_loader import FollowedLoader


def follow(loader: Any, coordinator: Coordinator) -> tuple[Any, FollowedLoader]:
    """Follow `loader`; what takes its place, itself where it is a DataLoader."""
    if not isinstance(loader, DataLoader):
        outer = FollowedIterable(loader, coordinator)
        return outer, outer.follower
    cls = type(loader)
    known: FollowedLoader | None = getattr(cls, "follower", None)
    if known is not None and known.loader is loader and getattr(cls, "coordinator", None) is coordinator:
        return loader, known
    follower = FollowedLoader(loader)
    loader.__class__ = _followed_class(getattr(cls, "followed_class", cls), follower, coordinator)
    return loader, follower


class FollowedIterable:
    """A loader that is no DataLoader: any object that can be iterated over."""

    def __init__(self, iterable: Any, coordinator: Coordinator) -> None:
        self.iterable = iterable
        self.coordinator = coordinator
        self.follower = FollowedLoader(iterable)

    def __iter__(self) -> Iterator[Any]:
        return begin_epoch(self.follower, self.coordinator, lambda: iter(self.iterable))

    def __len__(self) -> int:
        return len(self.iterable)

    def __getattr__(self, name: str) -> Any:
        if name in ("iterable", "coordinator", "follower") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.iterable, name)


def _followed_class(
    cls: type[DataLoader[Any]], follower: FollowedLoader, coordinator: Coordinator
) -> type[DataLoader[Any]]:
    """A class like `cls` whose iteration goes by way of `follower`.

    The loader stays the object that the user made: Lightning and users ask for its type, make it anew with another
    sampler (`overfit_batches`) and set attributes on it (`worker_init_fn`). A copy or a pickle is a plain loader again.
    """

    def __iter__(self: DataLoader[Any]) -> Iterator[Any]:
        if follower.loader is not self:
            return cls.__iter__(self)
        return begin_epoch(follower, coordinator, lambda: cls.__iter__(self))

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
        "coordinator": coordinator,
        "makes_plain_iterators": cls._get_iterator is DataLoader._get_iterator,
    }
    return type(cls.__name__, (cls,), {**names, **members})


def _itself(value: Any) -> Any:
    """What an object that is copied or pickled as another one is made by."""
    return value
