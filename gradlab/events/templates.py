"""Templates: the fixed bytes of a step that comes again and again, with slots for what changes.

A run logs the same metrics of the same sites on every step: all but the numbers, the step and the time is encoded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gradlab.errors import EventError
from gradlab.events.encode import delimiter, event_head, scalar_value_head, tensor_value_head
from gradlab.frame import Schema


class VectorTemplate:
    """An Event with one float32 vector a schema. It holds the schemas, so the ids of their parts stay theirs."""

    def __init__(self, schemas: Sequence[Schema], metadata: Mapping[str, bytes]) -> None:
        """Encode all but the numbers of `schemas`; a tag that has metadata in `metadata` gets it."""
        self.schemas = tuple(schemas)
        self.tags = tuple(schema.tag for schema in schemas)
        self.pooled = tuple(schema.tag for schema in schemas if not schema.edges)
        """The tags that have a pyramid: all but histograms."""
        shapes = [_shape(schema) for schema in schemas]
        self._content_bytes = [4 * math.prod(shape) for shape in shapes]
        heads = [
            tensor_value_head(tag, "float32", shape, metadata.get(tag, b""))
            for tag, shape in zip(self.tags, shapes, strict=True)
        ]
        self._pieces = [b""] * (2 * len(heads) + 1)
        self._pieces[1::2] = heads
        self._pieces[1] = delimiter(5, sum(map(len, heads)) + sum(self._content_bytes)) + heads[0]

    def contents(self, arrays: Sequence[np.ndarray]) -> list[bytes]:
        """What the slots hold on one step.

        Args:
            arrays: [sites] float32 each ([sites, bins] of a histogram), in the order of the schemas.
        Raises:
            EventError: if an array has not one value a site.
        """
        contents = [np.asarray(array, "<f4").tobytes() for array in arrays]
        if [len(content) for content in contents] != self._content_bytes:
            raise self._mismatch(arrays)
        return contents

    def encode(self, contents: Sequence[bytes], step: int, wall_time: float) -> bytes:
        """The Event of one step, of what `contents` gave."""
        pieces = self._pieces.copy()
        pieces[0] = event_head(step, wall_time)
        pieces[2::2] = contents
        return b"".join(pieces)

    def _mismatch(self, arrays: Sequence[np.ndarray]) -> EventError:
        for schema, array in zip(self.schemas, arrays, strict=True):
            if np.size(array) != math.prod(_shape(schema)):
                break
        bins = f" of {len(schema.edges) - 1} bins" if schema.edges else ""
        sites = f"{len(schema.sites)} sites{bins}"
        return EventError(f"{schema.metric} has {sites} but {np.size(array)} values were given.")


def _shape(schema: Schema) -> list[int]:
    """[sites], or [sites, bins] of a histogram."""
    return [len(schema.sites), len(schema.edges) - 1] if schema.edges else [len(schema.sites)]


class ScalarTemplate:
    """An Event with one native scalar a tag."""

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = tuple(tags)
        heads = [scalar_value_head(tag) for tag in tags]
        ends = np.cumsum([len(head) + 4 for head in heads])
        summary = b"".join(head + bytes(4) for head in heads)
        opening = delimiter(5, len(summary))
        self._template = np.frombuffer(opening + summary, np.uint8)
        self._slots = (len(opening) + ends - 4)[:, None] + np.arange(4)

    def encode(self, values: Sequence[float], step: int, wall_time: float) -> bytes:
        """The Event of one step. A value beyond float32 becomes infinite."""
        with np.errstate(over="ignore"):
            numbers = np.array(values, np.float64).astype("<f4")
        filled = self._template.copy()
        filled[self._slots] = numbers.view(np.uint8).reshape(-1, 4)
        return event_head(step, wall_time) + filled.tobytes()
