"""Places in a model: the modules that some parameters make up.

Belongs here: names of modules from names of parameters. Does not: what is said of them (`rules`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


def covering(names: Iterable[str], everything: Iterable[str]) -> tuple[str, ...]:
    """The fewest modules and parameters that hold some parameters and none of the others, the largest first.

        covering(["a.0.w", "a.1.w", "b.w"], ["a.0.w", "a.1.w", "b.w", "b.bias", "c.w"])  # ("a", "b.w")

    Where that is the whole model, its children, as it has no name itself.
    """
    wanted = set(names)
    found = _under("", 0, sorted({*everything, *wanted}), wanted)
    return tuple(place for place, _ in sorted(found, key=lambda one: -one[1]))


def _under(prefix: str, depth: int, names: list[str], wanted: set[str]) -> list[tuple[str, int]]:
    """(place, number of parameters) below a prefix of `depth` parts."""
    if prefix and all(one in wanted for one in names):
        return [(prefix, len(names))]
    if not any(one in wanted for one in names):
        return []
    children: dict[str, list[str]] = {}
    for one in names:
        children.setdefault(".".join(one.split(".")[: depth + 1]), []).append(one)
    return [place for child, inner in children.items() for place in _under(child, depth + 1, inner, wanted)]


def named(places: Collection[str], most: int = 3) -> str:
    """Places in words: `encoder, head and 4 more`."""
    shown = list(places)[:most]
    left = len(places) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")
