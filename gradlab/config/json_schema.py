"""The experiment file as JSON Schema, for editors: completion, and the sentence of each key while typing.

The documentation of a field is the string under it in the source, so that there is one sentence for the schema, the
docs and `--help`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gradlab.config.schema import Experiment
from gradlab.config.validation.annotations import keys_of
from gradlab.config.validation.records import Record, shorthand
from gradlab.config.validation.rules import Rule

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of experiment.yaml. Its descriptions are the sentences under the fields in the source."""
    definitions: dict[str, Any] = {}
    root = _record(Record(Experiment, keys_of), definitions)
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
        "required": list(record.required),
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


def documentation(cls: type) -> Mapping[str, str]:
    """The sentence under each field in the source of a class and its bases; empty where there is no source.

    Cost: reads and parses the source files, milliseconds.
    """
    sentences: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            sentences |= _sentences(base)
    return sentences


def _sentences(cls: type) -> dict[str, str]:
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    found = {}
    for line, below in pairwise(body):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                found[line.target.id] = inspect.cleandoc(text)
    return found
