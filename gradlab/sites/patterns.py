"""Patterns that choose sites and parameters by name: `encoder.*`, `*:in`, `!*.bias`.

A pattern is a glob over whole names, in which only `*` and `?` are wild and case counts; one that begins with `!` takes
names away again. Belongs here: what a pattern chooses, and the error for one that chooses nothing. Does not: how names
are made (`names`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from gradlab.errors import TapError, did_you_mean, shortlist
from gradlab.sites.names import is_input

# One pattern and one name.


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)


def match(pattern: str, name: str) -> bool:
    """Whether a glob matches a whole site name. Only `*` and `?` are wild; case counts."""
    return _regex(pattern).fullmatch(name) is not None


def names_inputs(pattern: str) -> bool:
    """Whether a pattern speaks of inputs: only then does it choose any."""
    return ":in" in pattern or pattern.startswith("input")


def chooses(pattern: str, name: str) -> bool:
    """Whether a pattern chooses a name. An input is nearly always another's output, so `*` leaves inputs out."""
    return match(pattern, name) and (not is_input(name) or names_inputs(pattern))


def is_wild(pattern: str) -> bool:
    """Whether the pattern can match more than one name."""
    return "*" in pattern or "?" in pattern


# Several patterns.


def chooser(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that is true for a name that at least one pattern chooses and no `!` pattern excludes."""
    wanted = [p for p in patterns if not p.startswith("!")]
    unwanted = [p[1:] for p in patterns if p.startswith("!")]

    def chosen(name: str) -> bool:
        return any(chooses(p, name) for p in wanted) and not any(match(p, name) for p in unwanted)

    return chosen


def select(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that the patterns choose, in the order of `names`.

    Raises:
        TapError: if a pattern (an exclusion too) matches no name, or if nothing is left.
    """
    for pattern in patterns:
        require_match(pattern, names)
    chosen = chooser(patterns)
    found = [name for name in names if chosen(name)]
    if not found:
        raise TapError(f"the patterns {', '.join(map(repr, patterns))} together select nothing.")
    return found


def require_match(pattern: str, names: Sequence[str]) -> None:
    """Raise TapError with the near misses if a pattern, or what a `!` pattern excludes, matches no name."""
    bare = pattern.removeprefix("!")
    if not any(chooses(bare, name) for name in names):
        raise TapError(f"no tensor matches {pattern!r}.{did_you_mean(bare, names)} The model has: {shortlist(names)}.")


# Whether a module needs a hook at all.


def may_match(pattern: str, name: str) -> bool:
    """Whether a pattern can match the module's own site or anything after it: an item, a call, an input, an op."""
    literal = _literal(pattern)
    if literal == pattern:
        return pattern == name or (pattern.startswith(name) and pattern[len(name)] in "[#:/")
    return name.startswith(literal) or literal.startswith(name) or match(pattern, name)


def may_own_ops(name: str, patterns: Sequence[str]) -> bool:
    """Whether a functional op called in this module can be chosen."""
    for pattern in patterns:
        literal = _literal(pattern)
        if literal == pattern:
            if "/" in pattern and pattern.startswith((f"{name}/", f"{name}#")):
                return True
        elif f"{name}/".startswith(literal) or literal.startswith((f"{name}/", f"{name}#")):
            return True
    return False


def _literal(pattern: str) -> str:
    """What comes before the first wildcard."""
    return pattern.split("*")[0].split("?")[0]
