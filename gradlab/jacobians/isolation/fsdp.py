"""Parameters that FSDP2 has sharded over ranks, gathered for as long as a replay takes.

Every rank has to take part: gathering is a collective. FSDP's own forward hooks are removed meanwhile: they gather and
reshard layer by layer, and would be left in the middle by a forward that is stopped at `of`.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from gradlab.errors import JacobianError
from gradlab.sites.names import all_modules, unwrapped


def _sharded_modules(model: nn.Module) -> list[Any]:
    """The modules inside whose parameters FSDP2 shards."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in all_modules(unwrapped(model)) if isinstance(module, FSDPModule)]


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """While open, every parameter of the model is whole on this rank; nothing to do where none is sharded.

    Raises:
        JacobianError: where a policy keeps parameters in another dtype than what flows between modules.
    """
    modules = _sharded_modules(model)
    for module in modules:
        policy = getattr(module._get_fsdp_state(), "_mp_policy", None)
        if getattr(policy, "param_dtype", None) is not None:
            raise JacobianError(
                "a replay of an FSDP2 model with MixedPrecisionPolicy(param_dtype=...) is not supported."
            )
    kept = [(module, module._forward_pre_hooks, module._forward_hooks) for module in modules]
    try:
        for module in modules:
            module.unshard()
            module._forward_pre_hooks = _without_fsdp(module._forward_pre_hooks)
            module._forward_hooks = _without_fsdp(module._forward_hooks)
        yield
    finally:
        for module, before, after in kept:
            module._forward_pre_hooks, module._forward_hooks = before, after
            module.reshard()


def _without_fsdp(hooks: Any) -> Any:
    return OrderedDict(
        (key, hook) for key, hook in hooks.items() if type(getattr(hook, "__self__", None)).__name__ != "FSDPState"
    )
