"""A model whose parameters FSDP2 has spread over ranks, whole for as long as a replay takes.

Every rank has to take part: gathering is a collective. FSDP's own forward hooks, which would gather and scatter layer
by layer and run into a forward that is cut short, are set aside meanwhile.
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


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules inside that FSDP2 has taken over."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in all_modules(unwrapped(model)) if isinstance(module, FSDPModule)]


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """While open, every parameter of the model is whole on this rank.

    Raises:
        JacobianError: where a policy keeps parameters in another dtype than what flows between modules.
    """
    modules = sharded_modules(model)
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
