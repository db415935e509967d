"""The Tap: a rule that says which sites are watched, which of their tensors, by which statistics and how often.

Belongs here: the options and their checks, without torch. Does not: names of real tensors (`sites`) or hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

from gradlab.arguments import (
    FLAG,
    FUNCTION,
    NAME,
    PATTERNS,
    check_fields,
    either,
    listed,
    named_fields,
    one_or_several,
    whole,
)
from gradlab.errors import TapError, did_you_mean
from gradlab.values import Value

Quantity = Literal["output", "output_grad", "weight", "weight_grad", "update"]
Stat = Literal["norm", "rms", "mean", "std", "max_abs", "zeros", "nonfinite", "underflow", "hist", "cosine"]
OwnStat = Callable[[Any], Any]
"""A user's own stat: a function from a tensor to a 0-d tensor on the same device, named as the function is."""
RESERVED = frozenset(
    (*get_args(Stat), "sum", "spread", "min", "max", "nonzero", "subnormal", "loss_scale")  # the parts of `stats`
)
Stage = Literal["final", "clipped", "micro"]


@named_fields
@dataclass(frozen=True, eq=False, repr=False)
class Tap(Value):
    """Watch the tensors at some sites: `Tap("encoder.*", of="output_grad", every=10)`.

    A list of one pattern or word is kept as that one, a longer list as a tuple: both spellings make equal taps.
    """

    at: str | Sequence[str]
    """A glob over site names, or a list of them; a leading `!` excludes. `*` crosses dots and slashes."""
    _: KW_ONLY
    of: Quantity | Sequence[Quantity]
    """What is watched there: `output`, `output_grad`, `weight`, `weight_grad` or `update`."""
    stats: Stat | OwnStat | Sequence[Stat | OwnStat] = ("norm",)
    """`norm`, `rms`, `mean`, `std`, `max_abs`, `zeros`, `nonfinite`, `underflow`, `hist`, `cosine`, or functions."""
    every: int = 1
    """Look on every so many optimizer steps, the first one included."""
    first: int = 0
    """Look on each of the first so many steps of the training, too."""
    stage: Stage | Sequence[Stage] = "final"
    """Which gradient of a weight: `final` (accumulated, before clipping), `clipped`, or `micro` (the last backward)."""
    keep: bool = False
    """Also keep the tensor and its gradient until the next step (`retain_grad`), for `monitor.grad(site)`."""
    per_rank: bool = False
    """In a run over ranks, also log each rank's own norm (`output.norm@ranks`): of `output`, `output_grad`, and of
    `weight_grad` at stage `micro`, before ranks are reduced. Adds 8 bytes a site and rank to the collective."""

    def __post_init__(self) -> None:
        check_fields(self, "Tap", {"at": PATTERNS}, TapError)
        who = f"Tap({self.at!r})"
        check_fields(self, who, _FIELDS, TapError)
        for name, choices in (("of", Quantity), ("stats", Stat), ("stage", Stage)):
            for word in as_tuple(getattr(self, name)):
                if isinstance(word, str) and word not in get_args(choices):
                    near = did_you_mean(word, get_args(choices))
                    raise TapError(f"{who}: {name} has no {word!r}.{near} It may be {', '.join(get_args(choices))}.")
        self._check_stat_names()
        if "final" not in self.stages and set(self.quantities) != {"weight_grad"}:
            raise TapError(f"{who}: stage {' and '.join(self.stages)} is of weight_grad only.")
        if self.per_rank:
            self._check_per_rank()

    def _check_stat_names(self) -> None:
        """Each stat is logged under its name, which must be one, its own, and given once."""
        seen: dict[str, Any] = {}
        for stat in as_tuple(self.stats):
            name = stat if isinstance(stat, str) else getattr(stat, "__name__", None)
            if not isinstance(name, str):
                raise TapError(
                    f"Tap({self.at!r}): the stat {stat!r} has no __name__ to be logged under; wrap it in a function "
                    f"with a def of its own, or set its __name__."
                )
            if not isinstance(stat, str) and name in RESERVED:
                raise TapError(
                    f"Tap({self.at!r}): a stat of your own cannot be called {name!r}, which is a name of gradlab's; "
                    f"call it my_{name}."
                )
            if name in seen:
                what = "is given twice" if seen[name] == stat else "is the name of two functions"
                raise TapError(
                    f"Tap({self.at!r}): the stat {name!r} {what}, and a name is logged once. Write functions with a "
                    f"def and a name of their own."
                )
            seen[name] = stat

    def _check_per_rank(self) -> None:
        same = [q for q in self.quantities if q in ("weight", "update")]
        if "weight_grad" in self.quantities and "micro" not in self.stages:
            raise TapError(
                f"Tap({self.at!r}): per_rank of weight_grad needs stage='micro'; at stage {' and '.join(self.stages)} "
                f"ranks have been reduced, and all have the same gradient."
            )
        if same:
            raise TapError(f"Tap({self.at!r}): per_rank is not for {same[0]}, which is the same on every rank.")
        if "norm" not in self.statistics:
            raise TapError(f"Tap({self.at!r}): per_rank logs norms; add 'norm' to its stats.")

    def is_due(self, step: int) -> bool:
        """Whether to look on a step."""
        return step % self.every == 0 or step < self.first

    @property
    def patterns(self) -> tuple[str, ...]:
        """`at` as a tuple."""
        return as_tuple(self.at)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """`of` as a tuple."""
        return as_tuple(self.of)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of `stats` as a tuple."""
        return tuple(stat if isinstance(stat, str) else stat.__name__ for stat in as_tuple(self.stats))

    @property
    def own_stats(self) -> dict[str, OwnStat]:
        """The user's own stats by name."""
        return {stat.__name__: stat for stat in as_tuple(self.stats) if not isinstance(stat, str)}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """`stage` as a tuple."""
        return as_tuple(self.stage)


def check_own_stats(taps: Sequence[Tap]) -> None:
    """Refuse two stats of the user's with one name: their numbers would be mixed in one series.

    Raises:
        TapError: so it is.
    """
    known: dict[str, OwnStat] = {}
    for rule in taps:
        for name, function in rule.own_stats.items():
            if known.setdefault(name, function) != function:
                raise TapError(
                    f"Tap({rule.at!r}): the stat {name!r} is another function than the {name!r} of another tap, and "
                    f"both would be logged under that name. Give them names of their own, or use one function in both."
                )


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One word or several, as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def _words(choices: Any) -> str:
    return f"{', '.join(get_args(choices))}, or a list of these"


_FIELDS = {
    "of": one_or_several(NAME, _words(Quantity)),
    "stats": listed(either(NAME, FUNCTION), f"functions, or {_words(Stat)}", alone=True, least=1),
    "every": whole(1),
    "first": whole(0),
    "stage": one_or_several(NAME, _words(Stage)),
    "keep": FLAG,
    "per_rank": FLAG,
}

DEFAULT_TAPS = (Tap("*", of="weight_grad", every=10, first=100),)
"""What is watched where nobody says it: the gradient norm of every parameter, on each step of a short training and a
tenth of those of a long one. The diagnosis reads what it needs by itself, so that this is what people look at. On every
step it was measured to take 6 to 9 % of a step that is bound by dispatch."""
