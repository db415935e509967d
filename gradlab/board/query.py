"""The query of a request, read with sentences for what is wrong in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradlab.errors import UsageError


class Query:
    """Names to values, as an address has them; a name may have several."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        """A value that must be there."""
        found = self.optional_text(name)
        if found is None:
            raise UsageError(f"the address lacks {name!r}.")
        return found

    def optional_text(self, name: str) -> str | None:
        """A value, or None."""
        return self._values[name][0] if self._values.get(name) else None

    def texts(self, name: str) -> list[str]:
        """All values of a name."""
        return list(self._values.get(name, ()))

    def number(self, name: str, default: int, *, low: int, high: int) -> int:
        """An integer, brought into its range."""
        found = self.optional_number(name)
        return default if found is None else min(max(found, low), high)

    def optional_number(self, name: str) -> int | None:
        """An integer, or None."""
        text = self.optional_text(name)
        if text is None or text == "":
            return None
        try:
            return int(float(text))
        except (ValueError, OverflowError):
            raise UsageError(f"{name} in the address has to be a number, not {text!r}.") from None
