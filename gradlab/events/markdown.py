"""Texts of others inside Markdown, as TensorBoard's Text tab renders it.

Belongs here: what has to be escaped so that a text is shown as it is. Does not: what the cards say (`launch.outputs`).
"""

from __future__ import annotations

import html

_LONGEST = 1000
_MARKUP = "\\`*_|[]~"
_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_ESCAPES = str.maketrans({sign: f"&#{ord(sign)};" for sign in _MARKUP} | dict.fromkeys(_BREAKS, "&#8629;"))


def cell(value: object) -> str:
    """A value inside a row of a table, shown as it is: what would end the row, the cell or the text is escaped.

    A line break is shown as an arrow; of a very long value there is the beginning.
    """
    text = str(value).encode("utf-8", "backslashreplace").decode()
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text):,} characters)"
    return html.escape(text, quote=False).translate(_ESCAPES)


def code_cell(value: object) -> str:
    """As `cell`, in the letters of code where nothing has to be escaped."""
    text = str(value)
    plain = text.isprintable() and text.strip() == text != "" and len(text) <= _LONGEST and not set(text) & set("`|\\")
    return f"`{text}`" if plain else cell(value)
