"""The options of Jacobians: what a slice is, and what is logged of Jacobians while a model trains. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gradlab.arguments import (
    FLAG,
    FUNCTION,
    NAME,
    PATTERNS,
    TEXT,
    check_fields,
    either,
    listed,
    mapping,
    named_fields,
    number,
    one_of,
    optional,
    whole,
)
from gradlab.errors import JacobianError
from gradlab.values import Value

Reduce = Literal["mean", "rms", "none"]
"""How the blocks of several samples become one: entrywise mean or root mean square, or not at all."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Slice(Value):
    """What is measured: these rows and columns of d(of)/d(wrt). Not when, nor on which samples.

    `gradlab.jacobian` makes one of its arguments (its `weights` are a tensor), a `Request` holds one, and a
    `JacobianSlice` is one with a schedule.
    """

    of: str
    """The site that is differentiated: `output`, a module, a functional op or a `gradlab.tap` name."""
    wrt: str
    """The site that it is differentiated by: `input` or any other site, or a parameter."""
    rows: int | Sequence[int] | None = None
    """Which entries of `of`: the first so many, or a list of flat indices; all where left out."""
    cols: int | Sequence[int] | None = None
    """Which entries of `wrt` are kept: the first so many, or a list of flat indices; all where left out."""
    groups: Mapping[str, Sequence[int]] | None = None
    """In place of `rows`, named groups of entries of `of`, as of classes; a row is the derivative of a group's mean."""
    weights: Sequence[Sequence[float]] | None = None
    """In place of `rows`, vectors with a weight for each entry of `of`; the rows are `weights @ J`."""
    reduce: Reduce = "mean"
    """How the blocks of several samples become one: by `mean`, root mean square (`rms`), or not at all (`none`)."""
    of_map: Literal["softmax"] | None = None
    """A function put on `of` first: `softmax` over its last axis turns logits into probabilities."""
    block: bool = True
    """Whether the block is computed and stored; without, only its norm and leading singular values are estimated."""

    def __post_init__(self) -> None:
        self.check_rows()

    def check_rows(self, prefix: str = "") -> None:
        """Refuse more than one of `rows`, `groups` and `weights`, in a message that begins with the prefix."""
        given = [name for name in ("rows", "groups", "weights") if getattr(self, name) is not None]
        if len(given) > 1:
            raise JacobianError(f"{prefix}{' and '.join(given)} both say what the rows are; give one of them.")

    @property
    def rows_are_entries(self) -> bool:
        """Whether each row belongs to one entry of `of`."""
        return self.weights is None and self.groups is None


@named_fields
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class JacobianSlice(Slice):
    """Log rows of d(of)/d(wrt) every so many steps: `JacobianSlice(of="output", wrt="input", rows=10, every=50)`."""

    every: int = 100
    """Compute on every so many optimizer steps, the first one included."""
    samples: int = 1
    """How many samples of the probe batch."""
    mode: Literal["replay", "live"] = "replay"
    """On a forward of its own over fixed samples (`replay`), or on the training step's graph and batch (`live`)."""
    train: bool = False
    """Whether a replay runs modules in the modes that they are in, with dropout; without, in eval mode."""
    probe: str = "train"
    """Which probe batch: `train`, `validation` (where there is one), or a name given to `watch(probe={...})`."""
    label: str = ""
    """Put behind the name, to tell apart slices of the same sites."""

    def __post_init__(self) -> None:
        who = f"JacobianSlice({self.of!r}, {self.wrt!r})"
        check_fields(self, "JacobianSlice", _ENDS, JacobianError)
        check_fields(self, who, _SLICE, JacobianError)
        self.check_rows(f"{who}: ")
        if self.mode == "live" and not self.block:
            raise JacobianError(f"{who}: block=False needs mode='replay'; a live graph is read in rows.")
        if self.mode == "live" and (self.train or self.probe != "train"):
            raise JacobianError(f"{who}: train and probe are for mode='replay'; a live graph is the training step's.")

    @property
    def full_label(self) -> str:
        """The label, with the probe batch where that is not the training one."""
        return _with_probe(self.label, self.probe)


@named_fields
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DepthGrowth(Value):
    """Log how directions grow from site to site on the way back: `DepthGrowth(at="layers.*", every=50)`."""

    at: str | Sequence[str]
    """Patterns of the sites between which growth is measured; every path must lead through each of them."""
    of: str = "output"
    """Where the way back begins."""
    wrt: str = "input"
    """Where it ends."""
    directions: int = 8
    """How many random orthonormal directions."""
    every: int = 100
    """Compute on every so many optimizer steps, the first one included."""
    samples: int = 1
    """How many samples of the probe batch; the growth is their mean."""
    probe: str = "train"
    """Which probe batch: `train`, `validation` (where there is one), or a name given to `watch(probe={...})`."""
    label: str = ""
    """Put behind the name, to tell apart several of the same sites."""

    def __post_init__(self) -> None:
        check_fields(self, "DepthGrowth", {"at": PATTERNS}, JacobianError)
        check_fields(self, f"DepthGrowth({self.at!r})", _GROWTH, JacobianError)

    @property
    def full_label(self) -> str:
        """The label, with the probe batch where that is not the training one."""
        return _with_probe(self.label, self.probe)


@named_fields
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sharpness(Value):
    """Log the largest eigenvalues of the loss Hessian: `Sharpness(every=100, loss=lambda model: ...)`."""

    every: int = 100
    """Compute on every so many optimizer steps, the first one included."""
    top: int = 1
    """How many eigenvalues."""
    samples: int = 64
    """How many samples of the first training batch the loss is taken on, where `loss` is left out (Lightning)."""
    products: int = 30
    """Hessian-vector products at most."""
    label: str = ""
    """Put behind the name, to tell apart several losses."""
    loss: Callable[[Any], Any] | None = field(default=None, metadata={"python_only": True})
    """From the model to a scalar loss on a fixed batch; under Lightning, the training step's where left out."""

    def __post_init__(self) -> None:
        check_fields(self, "Sharpness", _SHARPNESS, JacobianError)


Measurement = JacobianSlice | DepthGrowth | Sharpness
"""What a schedule measures."""


def _with_probe(label: str, probe: str) -> str:
    return "-".join(part for part in (label, "" if probe == "train" else probe) if part)


_INDICES = listed(whole(), "a list of indices")
_PICKS = optional(either(whole(1), _INDICES))
_NUMBER = number("a number", lambda value: True)
_WEIGHTS = listed(listed(_NUMBER, "a list of numbers"), "a list of vectors")
_ENDS = {"of": NAME, "wrt": NAME}
_COUNTS = {"every": whole(1), "samples": whole(1), "label": TEXT}
_SLICE = {
    "rows": _PICKS,
    "cols": _PICKS,
    "groups": optional(mapping(_INDICES, "a mapping from names to lists of indices")),
    "weights": optional(_WEIGHTS),
    **_COUNTS,
    "reduce": one_of("mean", "rms", "none"),
    "of_map": one_of("softmax", None),
    "mode": one_of("replay", "live"),
    "train": FLAG,
    "probe": NAME,
    "block": FLAG,
}
_GROWTH = {**_ENDS, "directions": whole(1), **_COUNTS, "probe": NAME}
_SHARPNESS = {**_COUNTS, "top": whole(1), "products": whole(1), "loss": optional(FUNCTION)}
