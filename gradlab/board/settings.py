"""The settings of runs, out of TensorBoard's hparams records, and what differs between them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from gradlab.events.decode import fields
from gradlab.tags import HPARAMS_SESSION_TAG


def settings_of(content: bytes) -> dict[str, Any]:
    """The settings that a session's first record holds; empty where it cannot be read."""
    try:
        (session,) = [part for number, part in fields(content) if number == 3]
        entries = [part for number, part in fields(session) if number == 1]  # type: ignore[arg-type]
        return dict(_entry(entry) for entry in entries)  # type: ignore[arg-type]
    except (ValueError, KeyError, struct.error):
        return {}


def _entry(message: bytes) -> tuple[str, Any]:
    parts = dict(fields(message))
    return parts[1].decode(), _leaf(parts.get(2, b""))  # type: ignore[union-attr,arg-type]


def _leaf(message: bytes) -> Any:
    """A google.protobuf.Value: number, text or truth value."""
    for number, content in fields(message):
        if number == 2:
            return struct.unpack("<d", content)[0]  # type: ignore[arg-type]
        if number == 3:
            return content.decode()  # type: ignore[union-attr]
        if number == 4:
            return bool(content)
    return None


def session_tag() -> str:
    """The tag of the record that `settings_of` reads."""
    return HPARAMS_SESSION_TAG


def differing(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of settings that are not the same in all runs."""
    names = dict.fromkeys(name for one in settings.values() for name in one)
    return [name for name in names if len({repr(one.get(name)) for one in settings.values()}) > 1]
