"""See what happens inside `backward()`: taps on any tensor of a training step, Jacobian slices, profiles, one tab.

Only names are here; each is imported when it is first used, so that `import gradlab` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlab.errors import GradlabError as GradlabError
    from gradlab.frame import Finding as Finding
    from gradlab.frame import Frame as Frame
    from gradlab.frame import JacobianBlock as JacobianBlock
    from gradlab.jacobians.compute import jacobian as jacobian
    from gradlab.jacobians.depth import depth_growth as depth_growth
    from gradlab.jacobians.sharpness import loss_sharpness as loss_sharpness
    from gradlab.jacobians.spec import DepthGrowth as DepthGrowth
    from gradlab.jacobians.spec import JacobianSlice as JacobianSlice
    from gradlab.jacobians.spec import Sharpness as Sharpness
    from gradlab.monitor import Monitor as Monitor
    from gradlab.monitor import watch as watch
    from gradlab.profiling.plain import profile as profile
    from gradlab.profiling.schedule import Profile as Profile
    from gradlab.profiling.schedule import Trigger as Trigger
    from gradlab.taps.rule import Tap as Tap
    from gradlab.taps.tripwire import NonFinite as NonFinite
    from gradlab.taps.visit import tap as tap

__version__ = "0.1.0"

_HOME = {
    "DepthGrowth": "gradlab.jacobians.spec",
    "Finding": "gradlab.frame",
    "Frame": "gradlab.frame",
    "GradlabError": "gradlab.errors",
    "JacobianBlock": "gradlab.frame",
    "JacobianSlice": "gradlab.jacobians.spec",
    "Monitor": "gradlab.monitor",
    "NonFinite": "gradlab.taps.tripwire",
    "Profile": "gradlab.profiling.schedule",
    "Sharpness": "gradlab.jacobians.spec",
    "Tap": "gradlab.taps.rule",
    "Trigger": "gradlab.profiling.schedule",
    "depth_growth": "gradlab.jacobians.depth",
    "jacobian": "gradlab.jacobians.compute",
    "loss_sharpness": "gradlab.jacobians.sharpness",
    "profile": "gradlab.profiling.plain",
    "tap": "gradlab.taps.visit",
    "watch": "gradlab.monitor",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gradlab' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
