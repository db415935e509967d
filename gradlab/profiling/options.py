"""Profile and Trigger: the options of profile windows, and the schedule that follows from them. Without torch.

Belongs here: what a user sets, and pure functions from a step's number to whether a scheduled window begins with it.
Does not: the reasons that come up during a run (triggers.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from gradlab.arguments import FLAG, check_fields, instance, named_fields, number, optional, whole
from gradlab.errors import ProfileError
from gradlab.values import Value


@named_fields
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trigger(Value):
    """What opens a window besides the schedule. The window holds the steps after the one that gave the reason."""

    slow_step: float | None = None
    """A step that takes so many times the median of the last 50; null or left out: never."""
    data_wait: float | None = None
    """Waiting for data takes more than this share of the last 20 steps (0 to 1); null or left out: never."""
    on_finding: bool = False
    """A finding above `info`."""

    def __post_init__(self) -> None:
        check_fields(self, "Trigger", _TRIGGER, ProfileError)


@named_fields
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Profile(Value):
    """Profile a few steps: skip `wait`, warm up for `warmup`, record `active`, and do so `repeat` times."""

    wait: int = 5
    """Steps before each window; with `every`, before the first."""
    warmup: int = 2
    """Steps recorded and thrown away, so that the profiler's own start is not measured."""
    active: int = 3
    """Steps recorded in each window."""
    repeat: int | None = None
    """How many scheduled windows; left out: one, or with `every` as many as the limits allow. 0: none."""
    every: int | None = None
    """A window every so many steps; null or left out: the next one `wait` steps after the last."""
    trigger: Trigger | None = None
    """What else opens a window; null or left out: only `gradlab profile RUN`."""
    memory: bool = True
    """Record allocations."""
    shapes: bool = False
    """Record the shapes of operands (costs more)."""
    stack: bool = False
    """Record Python call stacks (costs more)."""
    raw: bool = False
    """Keep the trace untouched as well, for Perfetto and HTA."""
    max_windows: int = 20
    """The most windows of a run, those asked for by hand not counted."""
    max_megabytes: int = 2000
    """No more windows once their files take so much."""
    max_share: float = 0.05
    """No window by `every` or `trigger` while profiling has taken more than this share of the run's time."""

    def __post_init__(self) -> None:
        check_fields(self, "Profile", _PROFILE, ProfileError)
        if self.every is not None and self.every < self.warmup + self.active:
            raise ProfileError(
                f"Profile: every={self.every} leaves no room for a window of {self.warmup} + {self.active} steps."
            )

    @property
    def period(self) -> int:
        """Steps from the beginning of one scheduled window to that of the next."""
        return self.every or self.wait + self.warmup + self.active

    @property
    def num_windows(self) -> float:
        """How many windows the schedule has; infinity where only the limits end it."""
        if self.repeat is None:
            return float("inf") if self.every else 1
        return self.repeat

    def starts(self, step: int) -> bool:
        """Whether a scheduled window begins, with its warm-up, at a step counted from 0."""
        number, within = divmod(step - self.wait, self.period)
        return within == 0 and 0 <= number < self.num_windows

    def after_window(self, step: int) -> int:
        """Where in the schedule training goes on after a window that was cut short at `step`: at the next turn."""
        return step if self.every else (step // self.period + 1) * self.period


_TRIGGER = {
    "slow_step": optional(number("a multiple of the median step, above 1", lambda times: times > 1)),
    "data_wait": optional(number("a share between 0 and 1", lambda share: 0 < share < 1)),
    "on_finding": FLAG,
}
_PROFILE = {
    "wait": whole(0),
    "warmup": whole(0),
    "active": whole(1),
    "repeat": optional(whole(0)),
    "every": optional(whole(1)),
    "trigger": optional(instance(Trigger, "a gradlab.Trigger", "Give Trigger(slow_step=2.0).")),
    **dict.fromkeys(("memory", "shapes", "stack", "raw"), FLAG),
    "max_windows": whole(1),
    "max_megabytes": whole(1),
    "max_share": number("a share above 0 and up to 1", lambda share: 0 < share <= 1),
}
ON_DEMAND = Profile(repeat=0)
"""No window but those asked for while the run goes on."""
