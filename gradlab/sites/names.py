"""Names: of a model's modules and parameters, and of the sites in a forward, which are made of these.

Belongs here: how a name is made, and what is read off it. Does not: patterns that choose among names (`patterns`), the
tensors of a value that a module returns (`leaves`), or which ops are sites (`ops`).

    encoder.0           what a module returns               encoder.0:in     what it is given
    output, input       the same of the model itself        encoder.0#2      of its second call in one forward
    encoder.0/relu      of a functional op inside           encoder.0/relu_1 of the second relu inside
    encoder.0[logits]   of one tensor among several
"""

from __future__ import annotations

import re

import torch
from torch import nn

from gradlab.identity import IdentityDict, IdentitySet

# Modules and parameters.

# A wrapper owns one module under this attribute and has no name of its own.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "_FabricModule": "_original_module",
}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside any wrappers of DDP, FSDP, compile, checkpoint or Fabric."""
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps. FSDP2 gives each module that it shards a class of its own, derived from the one before."""
    names = (_WRAPPERS.get(cls.__name__) for cls in type(module).__mro__)
    found = (getattr(module, name, None) for name in names if name is not None)
    return next((one for one in found if isinstance(one, nn.Module)), None)


def all_modules(model: nn.Module) -> IdentitySet[nn.Module]:
    """Every module inside, wrappers of parts included: what `modules()` gives, without asking any for its hash."""
    found = IdentitySet([model])
    queue = [model]
    for module in queue:
        for child in module._modules.values():
            if child is not None and child not in found:
                found.add(child)
                queue.append(child)
    return found


def module_names(model: nn.Module) -> IdentityDict[nn.Module, str]:
    """Every module of `model` with its qualified name ("" is the model), in definition order, without wrappers.

    A module reachable under two names has the first.
    """
    names: IdentityDict[nn.Module, str] = IdentityDict()

    def walk(module: nn.Module, name: str) -> None:
        module = unwrapped(module)
        if module in names:
            return
        names[module] = name
        for child_name, child in module._modules.items():
            if child is not None:
                walk(child, f"{name}.{child_name}" if name else child_name)

    walk(model, "")
    return names


def module_at(model: nn.Module, name: str) -> nn.Module | None:
    """The module of that qualified name, inside any wrappers on the way, or None."""
    module = unwrapped(model)
    for part in name.split(".") if name else ():
        is_script = isinstance(module, torch.jit.ScriptModule)
        child = dict(module.named_children()).get(part) if is_script else module._modules.get(part)
        if child is None:
            return None
        module = unwrapped(child)
    return module


def parameter_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter under its first qualified name, in definition order, without wrappers."""
    seen: set[int] = set()
    names: dict[str, nn.Parameter] = {}
    for module, path in module_names(model).items():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                names[f"{path}.{name}" if path else name] = parameter
    return names


# Sites.


def numbered(name: str, number: int) -> str:
    """The name of the first, second, ... call of one name in a forward: `encoder`, then `encoder#2`."""
    return name if number == 1 else f"{name}#{number}"


class CallNumbers:
    """Numbers the calls of one forward, each name for itself."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}

    def next(self, name: str) -> str:
        """The name of its next call: `encoder`, then `encoder#2`."""
        number = self._calls[name] = self._calls.get(name, 0) + 1
        return numbered(name, number)

    def clear(self) -> None:
        """Another forward begins."""
        self._calls.clear()


def input_site(call: str, *, is_root: bool) -> str:
    """The site of what a module is given in a call of that name; `is_root`: of the model itself."""
    return f"input{call}" if is_root else f"{call}:in"


def output_site(call: str, *, is_root: bool) -> str:
    """The site of what a module returns from a call of that name; `is_root`: of the model itself."""
    return f"output{call}" if is_root else call


def op_site(module_site: str, op: str, number: int) -> str:
    """The site of a functional op; `number` others of its name came before: `encoder/relu`, then `encoder/relu_1`."""
    return f"{module_site}/{op}_{number}" if number else f"{module_site}/{op}"


def is_input(site: str) -> bool:
    """Whether a site is the input of a module or of the model."""
    return ":in" in site or site == "input" or site.startswith(("input[", "input#"))


def is_op(site: str) -> bool:
    """Whether a site is what a functional op returns."""
    return "/" in site


def owner(site: str) -> str:
    """The name of the module that is given or returns the tensor of a site (no functional op's); "" of the model."""
    base = without_call_number(site.split("[")[0])
    return "" if base in ("input", "output") else base.removesuffix(":in")


_CALL_NUMBER = re.compile(r"#\d+")


def without_call_number(name: str) -> str:
    """`encoder#2/relu` as `encoder/relu`."""
    return _CALL_NUMBER.sub("", name)
