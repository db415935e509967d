"""Reaching two sites of a forward with as few hooks as they need: on the model and on the modules that own them.

`gradlab.sites.forward` shows every tensor of a forward, which names near misses and finds functional ops, and costs
a hook on every module. Where the sites are known to exist, as in all measurements but the first, this does the same
for less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.identity import IdentityDict
from gradlab.sites.forward import Visitor, listeners
from gradlab.sites.names import CallNumbers, leaves, replace_leaves, unwrapped, without_call_number


def is_simple(site: str) -> bool:
    """Whether a site can be reached without watching functional ops."""
    return "/" not in site


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


@contextmanager
def reaching(core: nn.Module, visitor: Visitor, sites: Iterable[str]) -> Iterator[None]:
    """While open, a forward shows the tensors at `sites` to `visitor`, which may replace them.

    The visitor is called for other tensors of the same modules too, and for those that `gradlab.tap` names.

    Args:
        core: the model, inside any wrappers.
        visitor: as in `gradlab.sites.forward.visiting`.
        sites: names without functional ops.
    Cost: two hooks a module that owns a site.
    """
    owners = {_owner(site) for site in sites}
    names = IdentityDict((module, name) for name in sorted(owners) if (module := module_at(core, name)) is not None)
    watch = _Watch(visitor)
    handles = []
    for module, name in names.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        before, after = watch.hooks_of(name, is_root=module is core)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, always_call=True))
    listeners.append(watch)
    try:
        yield
    finally:
        listeners.remove(watch)
        for handle in handles:
            handle.remove()


def _owner(site: str) -> str:
    """The qualified name of the module at whose border a site lies; "" of the model."""
    base = without_call_number(site.split("[")[0])
    return "" if base in ("input", "output") else base.removesuffix(":in")


class _Watch:
    """Counts calls and shows tensors."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor = visitor
        self.calls = CallNumbers()
        self.open: dict[str, list[str]] = {}

    def hooks_of(self, name: str, *, is_root: bool) -> tuple[Callable[..., Any], ...]:
        entered = self.open.setdefault(name, [])

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            called = self.calls.next(name)
            entered.append(called)
            inputs = args[0] if len(args) == 1 and not kwargs else (*args, *kwargs.values())
            new = self.see(f"input{called}" if is_root else f"{called}:in", inputs)
            if not new:
                return None
            if len(args) == 1 and not kwargs:
                return (replace_leaves(args[0], new),), kwargs
            values = replace_leaves((*args, *kwargs.values()), new)
            return values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            called = entered.pop()  # Called after an exception too, with nothing to see.
            new = self.see(f"output{called}" if is_root else called, output)
            return replace_leaves(output, new) if new else None

        return before, after

    def named(self, name: str, value: Tensor) -> Tensor:
        """Hear `gradlab.tap`; the zero keeps these counts apart from those of modules."""
        new = self.visitor(self.calls.next(f"\0{name}")[1:], value)
        return value if new is None else new

    def see(self, name: str, value: Any) -> dict[str, Tensor]:
        """Show every tensor of a value; the replacements, by suffix."""
        if isinstance(value, Tensor):
            answer = self.visitor(name, value)
            return {} if answer is None else {"": answer}
        new = {}
        for suffix, tensor in leaves(value):
            answer = self.visitor(name + suffix, tensor)
            if answer is not None:
                new[suffix] = answer
        return new
