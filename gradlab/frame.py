"""What is logged, on the host: the `Frame` of a step with its `Series`, a `Finding`, a `JacobianBlock`.

A series is one number a site, and its `Schema` names the sites. Belongs here: what sinks and diagnosis are given, as
objects that people hold. Does not: tensors of the training step (`taps`), files (`events`), how values and arrays
compare and print (`values`, `arrays`), or anything that needs torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import FrozenInstanceError, dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from gradlab.arrays import ABSENT as ABSENT  # public as gradlab.frame.ABSENT
from gradlab.arrays import is_absent as is_absent
from gradlab.arrays import protect_fields, read_only
from gradlab.errors import ArgumentError, UnknownNameError, did_you_mean
from gradlab.values import ReadOnlyDict, Value, abridged, equality_key, few, short


@dataclass(frozen=True, repr=False)
class Schema:
    """The names of a metric's values, in forward order. Two schemas with the same names have the same hash."""

    metric: str
    """`of.stat`, with the stage appended where it is not `final`: `weight_grad.norm@clipped`."""
    sites: tuple[str, ...]
    """One site name a value."""
    unit: str = ""
    """The unit of the values, empty for a pure number."""
    edges: tuple[float, ...] = ()
    """Of a histogram: the [bins + 1] edges in log2 of the magnitude. Its values are then [sites, bins] counts."""

    @cached_property
    def hash(self) -> str:
        """Eight hexadecimal digits of the site names."""
        return hashlib.sha256("\n".join(self.sites).encode()).hexdigest()[:8]

    @cached_property
    def tag(self) -> str:
        """The TensorBoard tag: `gradlab/<metric>/<hash>`."""
        return f"gradlab/{self.metric}/{self.hash}"

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Site -> its place among the values. Made once for all steps, which share their schema."""
        return MappingProxyType({site: place for place, site in enumerate(self.sites)})

    @property
    def size(self) -> str:
        """How many values, in words: `12 sites`, `12 sites x 48 bins`."""
        bins = f" x {len(self.edges) - 1} bins" if self.edges else ""
        return f"{len(self.sites)} site{'' if len(self.sites) == 1 else 's'}{bins}"

    def __repr__(self) -> str:
        unit = f" in {self.unit}" if self.unit else ""
        return f"Schema({self.metric}{unit}, {self.size}: {few(map(short, self.sites))})"

    def __reduce__(self) -> tuple[type[Schema], tuple[Any, ...]]:
        return Schema, (self.metric, self.sites, self.unit, self.edges)


class Series(Mapping[str, Any]):
    """One metric of one step: a mapping from site to float, in forward order; from site to [bins] of a histogram.

    A site that has no value on this step is there as NaN; `present()` leaves such sites out.

        norms = monitor.latest()["weight_grad.norm"]
        norms["fc1.weight"], norms.get("fc9.weight"), "fc1.weight" in norms, dict(norms)

    Equal to another series of the same schema and values, and to any mapping with the same items; NaN equals NaN.
    """

    __slots__ = ("array", "schema")
    schema: Schema
    array: np.ndarray
    """[sites] float32, [sites, bins] of a histogram; `ABSENT` where a site has no value. Read-only: `.copy()` it."""

    def __init__(self, schema: Schema, array: np.ndarray) -> None:
        # A step makes dozens of these, in the training thread: an array that is read-only already is taken as it is.
        if type(array) is not np.ndarray or array.flags.writeable:
            array = _float32(schema, array)
        _set_schema(self, schema)
        _set_array(self, array)

    def __getitem__(self, site: str) -> Any:
        try:
            value = self.array[self.schema.places[site]]
        except (KeyError, TypeError):
            raise unknown(site, self.schema.sites, f"{self.schema.metric} has no site") from None
        return value if self.schema.edges else float(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.schema.places)

    def __len__(self) -> int:
        return len(self.schema.places)

    def __contains__(self, site: object) -> bool:
        return isinstance(site, str) and site in self.schema.places

    def get(self, site: str, default: Any = None) -> Any:
        """The value of a site, or `default` where there is no such site."""
        return self[site] if site in self else default  # noqa: SIM401 - no near misses are looked for

    def values(self) -> ValuesView[Any]:
        """The values in forward order, floats or [bins] arrays; `array` has them as one array."""
        return _Values(self)

    def items(self) -> ItemsView[str, Any]:
        """Pairs of site and value, in forward order."""
        return _Items(self)

    def present(self) -> dict[str, Any]:
        """The sites that have a value on this step, with it."""
        absent = is_absent(self.array)
        there: Any = ~(absent.any(1) if self.schema.edges else absent)
        return {site: value for (site, value), is_there in zip(self.items(), there, strict=True) if is_there}

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, Series):
            return self.schema == other.schema and equality_key(self.array) == equality_key(other.array)
        return same_items(self, other) if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.schema, equality_key(self.array)))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"a Series cannot be changed: {name} is what it was when it was logged.")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"a Series cannot be changed: {name} stays.")

    def __copy__(self) -> Series:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Series:
        return self

    def __reduce__(self) -> tuple[type[Series], tuple[Schema, np.ndarray]]:
        return Series, (self.schema, self.array)

    def __repr__(self) -> str:
        first = zip(self.schema.sites[:4], self.array, strict=False)
        shown = (f"{short(site)}={abridged(list(value) if self.schema.edges else value)}" for site, value in first)
        return f"Series({self.schema.metric}, {self.schema.size}: {few(shown)})"


_set_schema, _set_array = Series.schema.__set__, Series.array.__set__  # type: ignore[attr-defined]


class Metrics(dict[str, Series]):
    """Metric -> series, in a dict of the caller's own, with near misses in its KeyError."""

    def __missing__(self, metric: str) -> Series:
        raise unknown(metric, self, "nothing is logged as")


class _Items(ItemsView[str, Any]):
    """The items of a series. All floats are made at once: a lookup for each would take five times as long."""

    _mapping: Series

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return zip(self._mapping.schema.sites, self._mapping.values(), strict=True)

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2 and item[0] in self._mapping):
            return False
        return _item_key(self._mapping[item[0]]) == _item_key(item[1])


class _Values(ValuesView[Any]):
    """The values of a series."""

    _mapping: Series

    def __iter__(self) -> Iterator[Any]:
        array = self._mapping.array
        return iter(array if self._mapping.schema.edges else array.tolist())

    def __contains__(self, value: object) -> bool:
        return any(_item_key(one) == _item_key(value) for one in self)


@dataclass(frozen=True, eq=False, repr=False)
class Frame(Value, Mapping[str, Series]):
    """All values of one logged step: metric -> series. `frame["weight_grad.norm"]["fc1.weight"]` is a float."""

    step: int
    """The optimizer step that these values belong to, counted from 0."""
    wall_time: float
    """Seconds since the epoch when the step ended."""
    series: Mapping[str, Series] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.series, Mapping):
            raise ArgumentError(f"Frame(series=...) is a mapping from metric to Series; got {abridged(self.series)}.")
        object.__setattr__(self, "series", ReadOnlyDict(self.series))

    def __getitem__(self, metric: str) -> Series:
        try:
            return self.series[metric]
        except (KeyError, TypeError):
            raise unknown(metric, self.series, f"step {self.step} has no metric") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.series)

    def __len__(self) -> int:
        return len(self.series)

    def __contains__(self, metric: object) -> bool:
        return isinstance(metric, str) and metric in self.series

    def get(self, metric: str, default: Any = None) -> Any:
        """The series of a metric, or `default` where there is none on this step."""
        return self.series[metric] if metric in self else default

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Mapping) and not isinstance(other, Frame):
            return same_items(self, other)
        return Value.__eq__(self, other)

    __hash__ = Value.__hash__

    def __repr__(self) -> str:
        metrics = few(f"{short(metric)} [{series.schema.size}]" for metric, series in self.series.items())
        count = f"{len(self)} metric{'' if len(self) == 1 else 's'}"
        return f"Frame(step {self.step}, {count}{': ' if metrics else ''}{metrics})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class JacobianBlock(Value):
    """A slice of d(of)/d(wrt) on the host, with the names of its axes and what is known of its quality."""

    of: str
    """The site that is differentiated."""
    wrt: str
    """The site that it is differentiated by."""
    values: np.ndarray
    """[rows, cols] float32 or float64; [samples, rows, cols] where the samples were not reduced; [0, 0] where only the
    spectrum was asked for."""
    row_names: tuple[str, ...]
    """One name a row: the index into `of`, or a given label."""
    col_names: tuple[str, ...]
    """One name a column: the index into `wrt`."""
    engine: str = ""
    """How it was computed: `vmap`, `loop`, ..."""
    audit_error: float = float("nan")
    """Relative error of vᵀJ against one plain backward."""
    summaries: Mapping[str, float] = field(default_factory=dict)
    """Scalars of the block: `fro`, `sigma_1`, ..."""
    singular_values: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Singular values, largest first: all of them where the block is small enough, else the leading ones."""
    complete: bool = True
    """Whether these are all."""
    kind: str = "block"
    """What the rows and columns are: a `block` of a Jacobian, `depth_growth` or `sharpness` (docs/jacobians.md)."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know: engines that were refused and why, samples that are coupled."""
    label: str = ""
    """Tells apart two blocks of the same sites: a probe set, or a set of rows."""

    def __post_init__(self) -> None:
        protect_fields(self)

    def __repr__(self) -> str:
        said = [f"{name}={abridged(self.summaries[name])}" for name in list(self.summaries)[:3]]
        return f"JacobianBlock({', '.join([short(self.name), abridged(self.values), *said])})"

    @property
    def name(self) -> str:
        """`<of>__wrt__<wrt>`, then `@<label>` where there is one: the middle of the TensorBoard tags."""
        between = {"depth_growth": "growth", "sharpness": "sharpness"}.get(self.kind, "wrt")
        return f"{self.of}__{between}__{self.wrt}" + (f"@{self.label}" if self.label else "")


def _float32(schema: Schema, array: Any) -> np.ndarray:
    """What is given as the values of a schema, as series keep it; a view where it is float32 already."""
    if not isinstance(schema, Schema):
        raise ArgumentError(f"Series(schema=...) is a gradlab.frame.Schema; got {abridged(schema)}.")
    try:
        array = np.asarray(array, np.float32)
    except (TypeError, ValueError):
        raise ArgumentError(f"Series(array=...) is an array of numbers; got {abridged(array)}.") from None
    if array.shape != (len(schema.sites), len(schema.edges) - 1)[: 2 if schema.edges else 1]:
        raise ArgumentError(
            f"Series(array=...) has the shape {list(array.shape)}; {schema.metric} is of {schema.size}."
        )
    return read_only(array)


def unknown(name: object, known: Iterable[str], what: str) -> UnknownNameError:
    """The error for a name that a mapping does not have, with those nearest to it, or the first that there are."""
    known = list(known)
    has = f" It has: {few(known, 5)}." if known else " It has none."
    return UnknownNameError(f"{what} {name!r}.{did_you_mean(str(name), known) or has}")


def same_items(one: Mapping[str, Any], other: Mapping[Any, Any]) -> bool:
    """Whether two mappings have the same items, NaN equal to NaN."""
    return len(one) == len(other) and all(
        name in other and _item_key(other[name]) == _item_key(value) for name, value in one.items()
    )


def _item_key(value: Any) -> Hashable:
    """As `values.equality_key`; a float32 is a float, and `ABSENT` a NaN, as they are among the items of a series."""
    return equality_key(float(value)) if isinstance(value, float | int | np.floating) else equality_key(value)
