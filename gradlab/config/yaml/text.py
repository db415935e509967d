"""From a path to checked text: everything that can be wrong with a file before it is YAML."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from gradlab.config.problems import Position, Problem, Source, refusal
from gradlab.errors import ConfigError, did_you_mean

LARGEST_BYTES = 1_000_000
"""The largest experiment file; a real one has a few thousand bytes."""

_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what YAML parsers count as the end of a line
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read(path: Path) -> bytes:
    """The bytes of an experiment file.

    Raises:
        ConfigError: in one sentence, if it is no file, cannot be read, or is larger than `LARGEST_BYTES`.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _refused(path, f"is a folder, not an experiment file.{_inside(path)}")
        if not stat.S_ISREG(mode):
            raise _refused(path, "is not a regular file.")
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise _refused(path, f"there is no such file.{_neighbours(path)}") from None
    except PermissionError:
        raise _refused(path, "this file may not be read (permission denied).") from None
    except (OSError, ValueError) as error:
        raise _refused(path, f"this file cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if len(content) > LARGEST_BYTES:
        raise _refused(path, f"is larger than {LARGEST_BYTES:,} bytes, the most that an experiment file may have.")
    return content


def decode(path: Path, content: bytes) -> str:
    """The text of an experiment file, UTF-8 with or without a byte order mark.

    Raises:
        ConfigError: in one sentence, if it is not UTF-8, or nothing but blanks.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{content[error.start]:02x} on line {line}"
        raise _refused(path, f"is not UTF-8 text ({byte} fits no character).") from None
    if not text.strip():
        raise _refused(path, "is empty. An experiment needs at least `name:` and `model:`.")
    return text


def source_of(name: str, text: str, argument: int = 0) -> Source:
    """The source for messages about a text."""
    return Source(name, tuple(_BREAK.split(text)), argument)


def control_character(source: Source, text: str) -> Problem | None:
    """The problem of a character that no text file holds, if there is one."""
    found = _CONTROL.search(text)
    if found is None:
        return None
    before = _BREAK.split(text[: found.start()])
    position = Position(source, len(before), len(before[-1]) + 1)
    return Problem(
        position, f"a control character, U+{ord(found[0]):04X}, is not allowed in YAML. Is this a text file?"
    )


def _refused(path: Path, message: str) -> ConfigError:
    return refusal([Problem(Position(Source(str(path))), message)])


def _inside(folder: Path) -> str:
    """The experiment files in a folder that was given in place of one."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return ""
    return f" It holds {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}." if names else ""


def _neighbours(path: Path) -> str:
    """The files beside a missing one whose names are near."""
    try:
        return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_file()], most=1)
    except OSError:
        return ""
