"""The options of `watch` and of the callbacks, and what value each accepts.

Belongs here: the table. Does not: the messages about wrong arguments (`arguments`), or what the options do (`monitor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradlab.arguments import FLAG, PATH, Kind, Table, check_arguments, either, instance, listed, optional, whole
from gradlab.diagnose.options import Diagnose
from gradlab.jacobians.options import DepthGrowth, JacobianSlice, Sharpness
from gradlab.nonfinite.guard import NonFinite
from gradlab.profiling.options import Profile
from gradlab.sinks import Sink
from gradlab.taps.rule import Tap
from gradlab.torch_arguments import MODEL, OPTIMIZERS, SCALER


def _sink(value: Any) -> Any:
    """The value itself, where it has every method of a sink and a name."""
    if isinstance(value, type) or _missing(value):
        raise TypeError
    return value


def _missing(value: Any) -> list[str]:
    methods = [name for name, member in vars(Sink).items() if callable(member) and not name.startswith("_")]
    return [name for name in methods if not callable(getattr(value, name, None))] + (
        [] if isinstance(getattr(value, "name", None), str) else ["name"]
    )


def _fix_sink(value: Any) -> str:
    if isinstance(value, str | Path):
        return "A folder for an event file is logdir=."
    if callable(value) and not isinstance(value, type):
        return "Wrap a function: gradlab.sinks.CallbackSink(function)."
    if isinstance(value, type):
        return f"Make one of it first: {value.__name__}(...)."
    return f"It lacks {', '.join(_missing(value))}."


def _sinks(value: Any) -> tuple[Sink, ...]:
    return () if value is None else _SINKS.accept(value)


_TAPS = "Give taps=[gradlab.Tap('*', of='output_grad')]."
_SINKS = listed(Kind("a sink", _sink, _fix_sink), "a list of sinks", alone=True, fix="Give a list of sinks.")
_OPTIONS: Table = {
    "model": MODEL,
    "optimizer": optional(OPTIMIZERS),
    "taps": optional(listed(instance(Tap, "a gradlab.Tap", _TAPS), "a list of gradlab.Tap", alone=True, fix=_TAPS)),
    "jacobians": listed(
        instance((JacobianSlice, DepthGrowth, Sharpness), "a JacobianSlice, DepthGrowth or Sharpness"),
        "a list of JacobianSlice, DepthGrowth or Sharpness",
        alone=True,
    ),
    "profile": optional(instance(Profile, "a gradlab.Profile", "Give gradlab.Profile(wait=5, active=3).")),
    "profile_dir": optional(PATH),
    "performance": optional(FLAG),
    "nonfinite": optional(instance(NonFinite, "a gradlab.NonFinite", "Give gradlab.NonFinite(skip=True).")),
    "scaler": optional(SCALER),
    "sinks": Kind("a list of sinks", _sinks, _fix_sink),
    "logdir": optional(PATH),
    "across_ranks": optional(FLAG),
    "diagnose": either(FLAG, instance(Diagnose, "a gradlab.Diagnose", "Give gradlab.Diagnose(ignore=['GL301']).")),
    "strict": FLAG,
    "history": whole(0),
    "first_step": whole(0),
    "closes_sinks": FLAG,
}
"""What the options of `watch` may be, those of the callbacks included."""


def check_options(who: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they are kept.

    Raises:
        ArgumentError: an option is of a wrong type; names it, what it may be and what was given.
    """
    return check_arguments(who, _OPTIONS, given)
