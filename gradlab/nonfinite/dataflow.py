"""The dataflow of one step: what each op read and wrote, and the way back from a bad result to where it began.

Belongs here: readings of tensors (left on the device until `to_host`), which op wrote which memory, and the walk back.
Does not: how ops are seen (`dispatch`), or how an origin is put into words (`search`).

Values are followed through memory, not through Python objects: a view, a saved tensor that autograd hands back and
`.grad` share the storage of the value that they show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

StepPhase = Literal["forward", "backward", "update"]
Kind = Literal["nan", "inf"]

_CHUNK = 1 << 22
"""Elements that are counted at once: bounds the temporary memory of a reading."""


@dataclass(frozen=True, kw_only=True)
class TensorStats:
    """What a tensor held when an op read or wrote it."""

    shape: tuple[int, ...]
    """Its shape."""
    dtype: str
    """Its dtype, as `float32`."""
    min: float
    """The smallest value; NaN if any is NaN."""
    max: float
    """The largest value; NaN if any is NaN."""
    zeros: int
    """How many values are exactly zero."""
    nonfinite: int
    """How many values are NaN or infinite."""
    name: str = ""
    """The parameter or buffer (`fc1.weight`), or the input of the model (`input`), whose memory it is."""

    @property
    def numel(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def kind(self) -> Kind | None:
        """`nan` if any value is NaN, `inf` if any is infinite, None if all are finite."""
        if math.isnan(self.min) or math.isnan(self.max):
            return "nan"
        return "inf" if math.isinf(self.min) or math.isinf(self.max) else None

    @property
    def looks_like_a_mask(self) -> bool:
        """Whether all that is not finite is -inf, and all else at most zero: an additive attention mask."""
        return self.kind == "inf" and self.min == -math.inf and self.max in (0.0, -math.inf)


@dataclass(eq=False)
class Place:
    """Where an op stands."""

    phase: StepPhase
    node: str = ""
    """In the backward, the autograd node that ran it."""
    module: str = ""
    line: str = ""
    """`file:line` of the user's call."""


@dataclass(eq=False)
class Memory:
    """A storage: what was read of it since it was last written, and which events wrote it."""

    alive: StorageWeakRef  # Holds the address, not the bytes: it is not given to another storage during the step.
    name: str = ""
    readings: dict[object, int | None] = field(default_factory=dict)
    writers: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Read:
    """A tensor read by an event: the reading, and who had written its memory by then."""

    reading: int
    memory: Memory
    writers: list[int]
    num_writers: int


@dataclass(eq=False)
class Event:
    """An op that wrote floating-point memory."""

    op: str
    place: Place
    inputs: list[Read]
    deliberate: bool
    """Whether an infinite number was among its arguments: `masked_fill(mask, -inf)`."""
    outputs: list[int | None] = field(default_factory=list)
    """A reading for each output; None for fresh memory (`empty`), which is read by whoever uses it first."""


@dataclass(eq=False)
class Root:
    """Where non-finite values begin: an event, or a tensor that was non-finite when it was first read."""

    event: int
    """Its number; of a tensor from outside, that of its first reader."""
    source: Read | None = None
    """The tensor from outside."""
    deliberate: bool = False
    """Whether all of it is infinity that was asked for."""
    kind: Kind = "nan"


class Dataflow:
    """Readings and events of one step."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stats: list[TensorStats] = []
        """One a reading, after `to_host`."""
        self._memories: dict[int, Memory] = {}
        self._numbers: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._facts: list[tuple[tuple[int, ...], str, str]] = []

    def memory(self, tensor: Tensor) -> Memory:
        """The memory that a strided tensor lives in."""
        storage = tensor.untyped_storage()
        memory = self._memories.get(storage._cdata)
        if memory is None:
            memory = self._memories[storage._cdata] = Memory(StorageWeakRef(storage))
        return memory

    def name(self, tensor: Tensor, name: str) -> None:
        """Name the memory of a tensor from outside the step, unless it has a name."""
        for plain in plain_tensors((tensor,)):
            memory = self.memory(plain)
            if not memory.writers:
                memory.name = memory.name or name

    def read(self, tensor: Tensor) -> Read | None:
        """The reading of a tensor as it is now; None where it has no values. Known memory is not read again."""
        memory = self.memory(tensor)
        key = _region(tensor)
        if key not in memory.readings:
            memory.readings[key] = self._measure(tensor, memory.name)
        reading = memory.readings[key]
        return None if reading is None else Read(reading, memory, memory.writers, len(memory.writers))

    def _measure(self, tensor: Tensor, name: str) -> int | None:
        if tensor.numel() == 0 or tensor.device.type == "meta":
            return None
        x = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        x = x.float() if x.dtype.itemsize == 1 else x
        low, high = torch.aminmax(x)
        self._numbers.append((low, high, *_counts(x)))
        self._facts.append((tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), name))
        return len(self._facts) - 1

    def wrote(self, event: Event, outputs: Iterable[Tensor], *, over: bool, fresh: bool) -> None:
        """Note an event and what it wrote.

        Args:
            event: the op.
            outputs: the tensors that it wrote.
            over: whether nothing of what they held before is left in them.
            fresh: whether they hold nothing yet.
        """
        number = len(self.events)
        self.events.append(event)
        for tensor in outputs:
            memory = self.memory(tensor)
            memory.readings.clear()
            if not memory.writers or (over and tensor.numel() * tensor.element_size() == _bytes(tensor)):
                memory.writers = []  # A new list: readers before this point keep the old one.
            memory.writers.append(number)
            read = None if fresh else self.read(tensor)
            event.outputs.append(None if read is None else read.reading)

    def to_host(self) -> None:
        """Bring all readings to the host: one copy a device, the only one of the step."""
        groups: dict[tuple[torch.device, torch.dtype], list[tuple[int, int, Tensor]]] = {}
        for reading, numbers in enumerate(self._numbers):
            for column, number in enumerate(numbers):
                groups.setdefault((number.device, number.dtype), []).append((reading, column, number))
        table = [[0.0] * 4 for _ in self._numbers]
        for device in {device for device, _ in groups}:
            mine = [group for (where, _), group in groups.items() if where == device]
            stacked = torch.cat([torch.stack([number for _, _, number in group]).double() for group in mine])
            for (reading, column, _), value in zip(chain(*mine), stacked.tolist(), strict=True):
                table[reading][column] = value
        self.stats = [
            TensorStats(shape=shape, dtype=dtype, name=name, min=a, max=b, zeros=int(c), nonfinite=int(d))
            for (shape, dtype, name), (a, b, c, d) in zip(self._facts, table, strict=True)
        ]
        self._numbers.clear()

    # After `to_host`.

    def is_bad(self, reading: int | None) -> bool:
        """Whether a reading saw NaN or infinity."""
        return reading is not None and self.stats[reading].kind is not None

    def worst(self, event: Event) -> TensorStats | None:
        """An output of an event that is not finite, one with NaN first."""
        bad = [self.stats[r] for r in event.outputs if r is not None and self.stats[r].kind]
        return min(bad, key=lambda stats: stats.kind != "nan", default=None)

    def reached(self, results: Sequence[Read]) -> tuple[set[int], list[Root]]:
        """The events whose non-finite values reached the results, and the roots among them."""
        events: set[int] = set()
        roots: list[Root] = []
        sources: set[int] = set()
        waiting = [(len(self.events), read) for read in results if self.is_bad(read.reading)]
        while waiting:
            reader, read = waiting.pop()
            writer = self._bad_writer(read)
            if writer is None:
                if read.reading not in sources:
                    sources.add(read.reading)
                    roots.append(self._source(read, self._first_reader(read, reader)))
            elif writer not in events:
                events.add(writer)
                bad = self._bad_inputs(writer)
                waiting += [(writer, one) for one in bad]
                if not bad:
                    roots.append(self.root(writer, self.stats[read.reading].kind))
        return events, roots

    def roots(self) -> list[Root]:
        """Every root of the step, in the order of execution."""
        found: list[Root] = []
        sources: set[int] = set()
        for number, event in enumerate(self.events):
            bad = self._bad_inputs(number)
            for read in bad:
                if self._bad_writer(read) is None and read.reading not in sources:
                    sources.add(read.reading)
                    found.append(self._source(read, number))
            if not bad and self.worst(event) is not None:
                found.append(self.root(number))
        return found

    def root(self, number: int, seen: Kind | None = None) -> Root:
        """An event as a root: deliberate if it wrote the infinity that it was given, and nothing worse.

        Args:
            number: of the event.
            seen: what its reader found, for fresh memory, which has no reading of its own.
        """
        worst = self.worst(self.events[number])
        kind = (worst.kind if worst else seen) or "nan"
        return Root(number, deliberate=self.events[number].deliberate and kind == "inf", kind=kind)

    def _source(self, read: Read, reader: int) -> Root:
        held = self.stats[read.reading]
        return Root(reader, read, held.looks_like_a_mask, held.kind or "nan")

    def makes_nan_of_infinities(self, number: int) -> bool:
        """Whether an event made NaN of infinities."""
        worst = self.worst(self.events[number])
        inputs = self._bad_inputs(number)
        return worst is not None and worst.kind == "nan" and all(self.stats[r.reading].kind == "inf" for r in inputs)

    def _bad_inputs(self, number: int) -> list[Read]:
        return [read for read in self.events[number].inputs if self.is_bad(read.reading)]

    def _bad_writer(self, read: Read) -> int | None:
        """The last event that can have put the non-finite values there; None if they came from outside."""
        for writer in reversed(read.writers[: read.num_writers]):
            outputs = self.events[writer].outputs
            if None in outputs or any(map(self.is_bad, outputs)):
                return writer
        return None

    def _first_reader(self, read: Read, before: int) -> int:
        readers = (n for n in range(before) if any(one.reading == read.reading for one in self.events[n].inputs))
        return next(readers, before)


def plain_tensors(values: Iterable[object]) -> list[Tensor]:
    """The floating-point tensors in lists of arguments; of a subclass (DTensor) or a sparse tensor, those inside."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, list | tuple):
            found += plain_tensors(value)
        elif not isinstance(value, Tensor):
            continue
        elif is_traceable_wrapper_subclass(value):
            found += plain_tensors([getattr(value, name) for name in value.__tensor_flatten__()[0]])
        elif value.layout == torch.sparse_coo:
            found += plain_tensors([value._values()])
        elif value.layout in _COMPRESSED:
            found += plain_tensors([value.values()])
        elif value.layout == torch.strided and value.dtype in _READABLE and not value.is_nested:
            found.append(value)
    return found


_COMPRESSED = {torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
_READABLE = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
}  # fmt: skip


def _counts(x: Tensor) -> tuple[Tensor, Tensor]:
    """How many values are zero, and how many are not finite: two 0-d integers on the device."""
    rows = max(1, _CHUNK * x.shape[0] // x.numel()) if x.ndim else 0
    parts = x.split(rows) if x.ndim and rows < x.shape[0] else (x,)
    # x - x is 0 where x is finite, and NaN elsewhere.
    counts = [(torch.count_nonzero(part), torch.count_nonzero(part - part)) for part in parts]
    nonzero, nonfinite = (
        torch.stack(column).sum() if len(parts) > 1 else column[0] for column in zip(*counts, strict=True)
    )
    return x.numel() - nonzero, nonfinite


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _region(tensor: Tensor) -> object:
    """Which values of its storage a tensor shows, the same for a matrix and its transpose."""
    sizes, strides = tensor.shape, tensor.stride()
    span = 1 + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
    if span == tensor.numel() and 0 not in strides:
        return tensor.storage_offset(), span, tensor.dtype
    return tensor.storage_offset(), sizes, strides, tensor.dtype
