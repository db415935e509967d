"""Budget: how much profiling a run has had, and whether there may be more."""

from __future__ import annotations

from time import monotonic

from gradlab.profiling.options import Profile, Reason

_MEGABYTE = 10**6


class Budget:
    """Counts windows, bytes and wall time against the limits of `options`."""

    def __init__(self, options: Profile) -> None:
        self._options = options
        self._began: float | None = None
        self._opened: float | None = None
        self._num_windows = 0
        self.num_bytes = 0
        self.seconds = 0.0
        """Wall time between the opening of windows and their end, with what writing them has taken."""

    def begin(self) -> None:
        """The run begins, or goes on."""
        if self._began is None:
            self._began = monotonic()

    def opened(self, reason: Reason) -> None:
        """A window is opened."""
        self._opened = monotonic()
        if reason.kind != "demand":
            self._num_windows += 1

    def closed(self) -> None:
        """It is closed, with a result or without."""
        if self._opened is not None:
            self.seconds += monotonic() - self._opened
            self._opened = None

    def given_back(self) -> None:
        """The window that was opened last had no recorded step: it does not count."""
        self._num_windows = max(0, self._num_windows - 1)

    def refusal(self, reason: Reason) -> str:
        """Why there is to be no window for `reason`: a sentence, or "" where there may be one."""
        options = self._options
        if self.num_bytes >= options.max_megabytes * _MEGABYTE:
            return f"the windows' files take {self.num_bytes // _MEGABYTE} MB (max_megabytes={options.max_megabytes})"
        if reason.kind == "demand":
            return ""
        if self._num_windows >= options.max_windows:
            return f"there have been {self._num_windows} windows (max_windows={options.max_windows})"
        if reason.kind == "schedule" and options.every is None:  # so many, and no more, are asked for by number
            return ""
        wall = monotonic() - self._began if self._began is not None else 0.0
        if wall > 0 and self.seconds > options.max_share * wall:
            share = self.seconds / wall
            return f"profiling has taken {share:.1%} of the run's time (max_share={options.max_share})"
        return ""
