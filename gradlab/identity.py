"""Tables whose keys are compared by identity: all of gradlab's that have objects of the user's as keys.

A module, an optimizer or a parameter may define `__eq__` and `__hash__` as it likes: by its state, which changes while
it is in a table (torchmetrics); by value, so that two layers are one; by comparing tensors, which has no single truth
value; or not at all. Where a table must not keep its keys alive, `WeakIdentityDict` is torch's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, MutableMapping
from typing import Any, TypeVar

from torch.utils.weak import WeakIdKeyDictionary as WeakIdentityDict

__all__ = ["IdentityDict", "IdentitySet", "WeakIdentityDict", "is_among"]

K = TypeVar("K")
V = TypeVar("V")


class IdentityDict(MutableMapping[K, V]):
    """A dict, in the order of insertion, that compares keys by identity and keeps them alive."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[tuple[K, V]] = ()) -> None:
        self._items: dict[int, tuple[K, V]] = {id(key): (key, value) for key, value in items}

    def __getitem__(self, key: K) -> V:
        return self._items[id(key)][1]

    def __setitem__(self, key: K, value: V) -> None:
        self._items[id(key)] = (key, value)

    def __delitem__(self, key: K) -> None:
        del self._items[id(key)]

    def __contains__(self, key: object) -> bool:
        return id(key) in self._items

    def __iter__(self) -> Iterator[K]:
        return iter([key for key, _ in self._items.values()])

    def __len__(self) -> int:
        return len(self._items)


class IdentitySet(Collection[K]):
    """A set, in the order of insertion, that compares members by identity and keeps them alive."""

    __slots__ = ("_members",)

    def __init__(self, members: Iterable[K] = ()) -> None:
        self._members: dict[int, K] = {id(one): one for one in members}

    def __contains__(self, one: object) -> bool:
        return id(one) in self._members

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def add(self, one: K) -> None:
        """Put an object in."""
        self._members[id(one)] = one


def is_among(one: Any, others: Iterable[Any]) -> bool:
    """Whether an object is one of some others, by identity: `in` would compare it by its `__eq__`."""
    return any(one is other for other in others)
