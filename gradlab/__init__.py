"""See what happens inside `backward()`: taps on any tensor of a training step, Jacobian slices, profiles, one tab.

Only names are here; each is imported when it is first used, so that `import gradlab` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlab import errors as errors
    from gradlab import frame as frame
    from gradlab import sinks as sinks
    from gradlab.diagnose.context import Abstain as Abstain
    from gradlab.diagnose.options import Diagnose as Diagnose
    from gradlab.diagnose.registry import Evidence as Evidence
    from gradlab.diagnose.registry import rule as rule
    from gradlab.errors import ArgumentError as ArgumentError
    from gradlab.errors import ConfigError as ConfigError
    from gradlab.errors import CopyError as CopyError
    from gradlab.errors import EventError as EventError
    from gradlab.errors import GradlabError as GradlabError
    from gradlab.errors import GradlabWarning as GradlabWarning
    from gradlab.errors import JacobianError as JacobianError
    from gradlab.errors import MachineError as MachineError
    from gradlab.errors import ProfileError as ProfileError
    from gradlab.errors import RanksError as RanksError
    from gradlab.errors import RunError as RunError
    from gradlab.errors import TapError as TapError
    from gradlab.errors import TrainingStopped as TrainingStopped
    from gradlab.errors import UnknownNameError as UnknownNameError
    from gradlab.errors import UnknownRunError as UnknownRunError
    from gradlab.errors import UsageError as UsageError
    from gradlab.finding import Finding as Finding
    from gradlab.frame import ABSENT as ABSENT
    from gradlab.frame import Frame as Frame
    from gradlab.frame import JacobianBlock as JacobianBlock
    from gradlab.frame import Schema as Schema
    from gradlab.frame import Series as Series
    from gradlab.frame import is_absent as is_absent
    from gradlab.jacobians.growth import depth_growth as depth_growth
    from gradlab.jacobians.jacobian import jacobian as jacobian
    from gradlab.jacobians.options import DepthGrowth as DepthGrowth
    from gradlab.jacobians.options import JacobianSlice as JacobianSlice
    from gradlab.jacobians.options import Sharpness as Sharpness
    from gradlab.jacobians.sharpness import loss_sharpness as loss_sharpness
    from gradlab.monitor.monitor import Monitor as Monitor
    from gradlab.monitor.watch import watch as watch
    from gradlab.nonfinite.guard import NonFinite as NonFinite
    from gradlab.profiling.options import Profile as Profile
    from gradlab.profiling.options import Trigger as Trigger
    from gradlab.profiling.profile import profile as profile
    from gradlab.sinks import CallbackSink as CallbackSink
    from gradlab.sinks import CsvSink as CsvSink
    from gradlab.sinks import JsonlSink as JsonlSink
    from gradlab.sinks import MemorySink as MemorySink
    from gradlab.sinks import Sink as Sink
    from gradlab.sinks import TensorBoardSink as TensorBoardSink
    from gradlab.sinks import sinks_of_trackers as sinks_of_trackers
    from gradlab.sites.forward import Site as Site
    from gradlab.sites.forward import sites_of as sites_of
    from gradlab.sites.named import tap as tap
    from gradlab.taps.rule import Tap as Tap

__version__ = "0.1.0"

_HOME = {
    "ABSENT": "gradlab.frame",
    "Abstain": "gradlab.diagnose.context",
    "ArgumentError": "gradlab.errors",
    "CallbackSink": "gradlab.sinks",
    "ConfigError": "gradlab.errors",
    "CopyError": "gradlab.errors",
    "CsvSink": "gradlab.sinks",
    "DepthGrowth": "gradlab.jacobians.options",
    "Diagnose": "gradlab.diagnose.options",
    "EventError": "gradlab.errors",
    "Evidence": "gradlab.diagnose.registry",
    "Finding": "gradlab.finding",
    "Frame": "gradlab.frame",
    "GradlabError": "gradlab.errors",
    "GradlabWarning": "gradlab.errors",
    "JacobianBlock": "gradlab.frame",
    "JacobianError": "gradlab.errors",
    "JacobianSlice": "gradlab.jacobians.options",
    "JsonlSink": "gradlab.sinks",
    "MachineError": "gradlab.errors",
    "MemorySink": "gradlab.sinks",
    "Monitor": "gradlab.monitor.monitor",
    "NonFinite": "gradlab.nonfinite.guard",
    "Profile": "gradlab.profiling.options",
    "ProfileError": "gradlab.errors",
    "RanksError": "gradlab.errors",
    "RunError": "gradlab.errors",
    "Schema": "gradlab.frame",
    "Series": "gradlab.frame",
    "Sharpness": "gradlab.jacobians.options",
    "Sink": "gradlab.sinks",
    "Site": "gradlab.sites.forward",
    "Tap": "gradlab.taps.rule",
    "TapError": "gradlab.errors",
    "TensorBoardSink": "gradlab.sinks",
    "TrainingStopped": "gradlab.errors",
    "Trigger": "gradlab.profiling.options",
    "UnknownNameError": "gradlab.errors",
    "UnknownRunError": "gradlab.errors",
    "UsageError": "gradlab.errors",
    "depth_growth": "gradlab.jacobians.growth",
    "is_absent": "gradlab.frame",
    "jacobian": "gradlab.jacobians.jacobian",
    "loss_sharpness": "gradlab.jacobians.sharpness",
    "profile": "gradlab.profiling.profile",
    "rule": "gradlab.diagnose.registry",
    "sinks_of_trackers": "gradlab.sinks",
    "sites_of": "gradlab.sites.forward",
    "tap": "gradlab.sites.named",
    "watch": "gradlab.monitor.watch",
}
_MODULES = ("errors", "frame", "sinks")

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"gradlab.{name}")
    if name not in _HOME:
        from gradlab.errors import did_you_mean

        raise AttributeError(f"module 'gradlab' has no attribute {name!r}.{did_you_mean(name, __all__, most=1)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
