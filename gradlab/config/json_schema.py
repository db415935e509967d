"""The experiment file as JSON Schema, for editors: completion, and the sentence of each key while typing."""

from __future__ import annotations

import inspect
from typing import Any

from gradlab.config.records import keys_of, required, shorthand
from gradlab.config.rules import Rule
from gradlab.config.schema import Experiment

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of experiment.yaml. Its descriptions are the sentences under the fields in the source."""
    definitions: dict[str, Any] = {}
    root = _record(Experiment, definitions)
    return {"$schema": _DRAFT, "title": "gradlab experiment", **root, "$defs": dict(sorted(definitions.items()))}


def _record(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a dataclass; those that it refers to are added to `definitions`."""
    properties = {}
    for name, key in keys_of(cls).items():
        for inner in _records_in(key.rule):
            if inner.__name__ not in definitions:
                definitions[inner.__name__] = {}
                definitions[inner.__name__] = _record(inner, definitions)
        properties[name] = key.rule.schema() | ({"description": key.documentation} if key.documentation else {})
        if key.default is None or isinstance(key.default, bool | int | float | str):
            properties[name]["default"] = key.default
    schema = {
        "type": "object",
        "description": (inspect.getdoc(cls) or "").split("\n")[0],
        "properties": properties,
        "required": list(required(cls)),
        "additionalProperties": False,
    }
    return {"anyOf": [{"type": "string"}, schema]} if shorthand(cls) else schema


def _records_in(rule: Rule) -> list[type]:
    """The dataclasses that a rule leads to."""
    found = [rule.cls] if hasattr(rule, "cls") else []
    inner = [getattr(rule, name) for name in ("rule", "value") if hasattr(rule, name)]
    for part in [*inner, *getattr(rule, "options", ()), *getattr(rule, "items", ())]:
        found += _records_in(part)
    return found
