"""The experiment file as JSON Schema, for editors: completion, and the sentence of each key while typing."""

from __future__ import annotations

import inspect
from typing import Any

from gradlab.config.schema import Experiment
from gradlab.config.validation.records import Record, documentation, required, shorthand
from gradlab.config.validation.types import Rule

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of experiment.yaml. Its descriptions are the sentences under the fields in the source."""
    definitions: dict[str, Any] = {}
    root = _record(Record(Experiment), definitions)
    return {"$schema": _DRAFT, "title": "gradlab experiment", **root, "$defs": dict(sorted(definitions.items()))}


def _record(record: Record, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a dataclass; those that it refers to are added to `definitions`."""
    properties = {}
    sentences = documentation(record.cls)
    for name, key in record.keys.items():
        for inner in _records_in(key.rule):
            if inner.cls.__name__ not in definitions:
                definitions[inner.cls.__name__] = {}
                definitions[inner.cls.__name__] = _record(inner, definitions)
        properties[name] = key.rule.schema() | ({"description": sentences[name]} if name in sentences else {})
        if key.default is None or isinstance(key.default, bool | int | float | str):
            properties[name]["default"] = key.default
    schema = {
        "type": "object",
        "description": (inspect.getdoc(record.cls) or "").split("\n")[0],
        "properties": properties,
        "required": list(required(record.cls)),
        "additionalProperties": False,
    }
    return {"anyOf": [{"type": "string"}, schema]} if shorthand(record.cls) else schema


def _records_in(rule: Rule) -> list[Record]:
    """The dataclasses that a rule leads to."""
    found = [rule] if isinstance(rule, Record) else []
    inner = [getattr(rule, name) for name in ("rule", "value") if hasattr(rule, name)]
    for part in [*inner, *getattr(rule, "options", ()), *getattr(rule, "items", ())]:
        found += _records_in(part)
    return found
