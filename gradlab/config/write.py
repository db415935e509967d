"""An experiment written back as YAML: every value, nothing that needs a second look."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from gradlab.config.schema import Experiment
from gradlab.config.yaml.scalars import resolve


def to_yaml(experiment: Experiment) -> str:
    """YAML that loads back equal. Text that YAML 1.2 would take for something else, such as `1e-3`, is quoted."""
    return yaml.dump(
        _plain(experiment),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=float("inf"),
    )


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


class _Dumper(yaml.SafeDumper):
    """Writes scalars so that `scalars.resolve` reads them back, and never an alias."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  those of YAML 1.1

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        """Text, in quotes wherever it would otherwise be read as another type."""
        try:
            bare = resolve(text) == text and text != "<<"
        except ValueError:
            bare = False
        style = '"' if not text.isprintable() else None if bare else "'"  # the other styles fold line separators
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def represent_number(self, number: float | int) -> yaml.Node:
        """A number as YAML 1.2 writes it."""
        text = repr(number)
        special = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}
        return self.represent_scalar("tag:yaml.org,2002:str", special.get(text, text))

    def represent_word(self, value: bool | None) -> yaml.Node:
        """`true`, `false` or `null`."""
        return self.represent_scalar("tag:yaml.org,2002:str", "null" if value is None else str(value).lower())


_Dumper.add_representer(bool, _Dumper.represent_word)
_Dumper.add_representer(type(None), _Dumper.represent_word)
_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(int, _Dumper.represent_number)
_Dumper.add_representer(float, _Dumper.represent_number)
