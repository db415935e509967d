"""Forward walk: while a model runs, a visitor is shown the tensors of its forward by site name, and may replace them.

For whatever runs the model on its own behalf: listing sites, Jacobians, depth growth. Taps follow a training step by
hooks of their own that cost less (`taps.forward`); names of sites are the same.

Belongs here: which hooks a walk needs, and in what order tensors are shown. Does not: what the visitor does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.arguments import check_argument
from gradlab.hooks.call_hooks import OwnThreadHook
from gradlab.hooks.interpreter import in_functorch
from gradlab.identity import IdentitySet
from gradlab.sites.leaves import leaves, replace_leaves
from gradlab.sites.named import listeners
from gradlab.sites.names import (
    CallNumbers,
    input_site,
    is_op,
    module_at,
    module_names,
    op_site,
    output_site,
    owner,
    parameter_names,
    unwrapped,
    without_call_number,
)
from gradlab.sites.ops import OpWatcher, hides_its_ops
from gradlab.sites.user_code import call_place
from gradlab.torch_arguments import MODEL

Visitor = Callable[[str, Tensor], Tensor | None]
"""Called with a site's name and its tensor; a tensor that it returns takes its place in the rest of the forward."""


def forward_walk(model: nn.Module, visitor: Visitor, *, functional: bool = True) -> AbstractContextManager[None]:
    """While open, each forward of `model` shows every tensor to `visitor`, by site name and in forward order.

    Args:
        model: the model, wrapped (DDP, compile) or not; only eager calls on the calling thread are seen.
        visitor: called with the site's name and its tensor. A tensor that it returns is used instead in the rest of the
            forward; None leaves all as it is.
        functional: also show what functional ops return.
    Cost: about 10 microseconds a site; nothing stays installed afterwards.
    """
    return _opened(_FullWalk(model, visitor, functional))


def forward_walk_at(sites: Iterable[str], core: nn.Module, visitor: Visitor) -> AbstractContextManager[None]:
    """A forward walk with hooks on those modules alone that own some sites, for sites that are known to exist.

    The visitor is called for other tensors of the same modules too, and for those that `gradlab.tap` names.

    Args:
        sites: names without functional ops.
        core: the model, inside any wrappers. One forward of it is shown, on any thread.
        visitor: as in `forward_walk`.
    Cost: two hooks a module that owns a site, where `forward_walk` has four on every module.
    """
    return _opened(_OwnersWalk(sites, core, visitor))


class _Walk:
    """What both kinds of walk do with a value: name its tensors, show them, and put in what the visitor returns."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor = visitor
        self.calls = CallNumbers()
        self.names_by_hand = CallNumbers()

    def install(self, stack: ExitStack) -> None:
        """Put hooks in until the stack closes."""
        raise NotImplementedError

    def show_inputs(self, site: str, args: Any, kwargs: Any) -> Any:
        """Show what a module is given; (args, kwargs) for it to be called with instead, or None to change nothing."""
        is_single = len(args) == 1 and not kwargs
        new = self.show(site, args[0] if is_single else (*args, *kwargs.values()))
        if not new:
            return None
        if is_single:
            return (replace_leaves(args[0], new),), kwargs
        values = replace_leaves((*args, *kwargs.values()), new)
        return values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))

    def show_output(self, site: str, output: Any) -> Any:
        """Show what a module returns; what it is to return instead, or None to change nothing."""
        new = self.show(site, output)
        return replace_leaves(output, new) if new else None

    def named(self, name: str, value: Tensor) -> Tensor:
        """Show a tensor named with `gradlab.tap`."""
        new = self.visitor(self.names_by_hand.next(name), value)
        return value if new is None else new

    def show(self, site: str, value: Any) -> dict[str, Tensor]:
        """Show every tensor of a value; the replacements, by suffix."""
        if isinstance(value, Tensor):
            answer = self.visitor(site, value)
            return {} if answer is None else {"": answer}
        new = {}
        for suffix, tensor in leaves(value):
            answer = self.visitor(site + suffix, tensor)
            if answer is not None:
                new[suffix] = answer
        return new


@contextmanager
def _opened(walk: _Walk) -> Iterator[None]:
    with ExitStack() as stack:
        walk.install(stack)
        listeners.append(walk)
        stack.callback(listeners.remove, walk)
        yield


class _OwnersWalk(_Walk):
    """Shows what the owners of some sites are given and return."""

    def __init__(self, sites: Iterable[str], core: nn.Module, visitor: Visitor) -> None:
        super().__init__(visitor)
        self.core = core
        self.owners = sorted({owner(site) for site in sites})

    def install(self, stack: ExitStack) -> None:
        for name in self.owners:
            module = module_at(self.core, name)
            if module is not None and not isinstance(module, torch.jit.ScriptModule):
                before, after = self.hooks_of(name, is_root=module is self.core)
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after, always_call=True).remove)

    def hooks_of(self, name: str, *, is_root: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The hooks before and after a call of a module. Calls under way are a stack: a module may call itself."""
        under_way: list[str] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            call = self.calls.next(name)
            under_way.append(call)
            return self.show_inputs(input_site(call, is_root=is_root), args, kwargs)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            call = under_way.pop()  # Called after an exception too, with nothing to see.
            return self.show_output(output_site(call, is_root=is_root), output)

        return before, after


@dataclass(slots=True)
class _Call:
    """A call of a module that is under way."""

    name: str
    """As sites have it: `encoder`, `encoder#2`."""
    num_ops: Counter[str] = field(default_factory=Counter)
    """How many functional ops of each name it has called."""


class _FullWalk(_Walk):
    """Shows what every module is given and returns, and what functional ops return."""

    def __init__(self, model: nn.Module, visitor: Visitor, functional: bool) -> None:
        super().__init__(visitor)
        self.root = unwrapped(model)
        self.names = module_names(model)
        self.opaque = IdentitySet(module for module in self.names if hides_its_ops(module))
        self.functional = functional
        self.under_way: list[_Call] = []
        """Calls of modules, innermost last."""
        self.num_opaque = 0
        """How many of them are of modules that hide their ops."""
        self.op_watcher = ExitStack()
        """Holds the function mode while a forward is under way."""

    def install(self, stack: ExitStack) -> None:
        for module in self.names:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            # What the user's own hooks compute belongs to the module; the input is what they have made of it.
            for handle in (
                module.register_forward_pre_hook(OwnThreadHook(module, self.enter), prepend=True),
                module.register_forward_pre_hook(OwnThreadHook(module, self.before), with_kwargs=True),
                module.register_forward_hook(OwnThreadHook(module, self.after)),
                module.register_forward_hook(OwnThreadHook(module, self.leave), always_call=True),
            ):
                stack.callback(handle.remove)
        stack.callback(self.end_forward)

    def end_forward(self) -> None:
        """Count from one again, and watch no ops between two forwards."""
        self.calls.clear()
        self.names_by_hand.clear()
        self.under_way, self.num_opaque = [], 0
        self.op_watcher.close()

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module is called; its own pre-hooks come next."""
        if not self.under_way:
            self.end_forward()
            if self.functional:
                self.op_watcher.enter_context(OpWatcher(self.op))
        self.under_way.append(_Call(self.calls.next(self.names[module])))
        self.num_opaque += module in self.opaque

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Its pre-hooks have run."""
        return self.show_inputs(input_site(self.under_way[-1].name, is_root=module is self.root), args, kwargs)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Its forward, and the user's hooks behind it, have run."""
        return self.show_output(output_site(self.under_way[-1].name, is_root=module is self.root), output)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """It returns or raises."""
        self.num_opaque -= module in self.opaque
        self.under_way.pop()
        if not self.under_way:
            self.end_forward()

    def op(self, op: str, result: Any) -> Any:
        """A functional op has run; what it is to return."""
        if self.num_opaque or not self.under_way:
            return result
        call = self.under_way[-1]
        site = op_site(call.name, op, call.num_ops[op])
        call.num_ops[op] += 1
        return replace_leaves(result, self.show(site, result))


@dataclass(frozen=True)
class Site:
    """One place where a tensor lives, as found in a real forward."""

    name: str
    """Its name, as patterns see it."""
    kind: str
    """`input`, `module`, `op`, `named` or `parameter`."""
    shape: tuple[int, ...]
    """The tensor's shape."""
    dtype: str
    """The tensor's dtype, as `float32`."""
    place: str = ""
    """`file:line` of a functional op's call."""


def sites_of(model: nn.Module, *args: Any, **kwargs: Any) -> list[Site]:
    """Every site of `model`, in forward order, parameters last, found by one forward on the given inputs.

    The forward runs without gradients on the model as it is: run it on a copy where that would disturb something.
    """
    check_argument("sites_of()", "model", MODEL, model)
    found: dict[str, Site] = {}
    module_kinds = {name or "output" for name in module_names(model).values()}

    def see(name: str, value: Tensor) -> None:
        if in_functorch():  # a tensor inside a transform is many, and no tap sees it
            return
        base = without_call_number(name.split("[")[0])
        kind = (
            "op" if is_op(base) else
            "input" if base == "input" or base.endswith(":in") else
            "module" if base in module_kinds else
            "named"
        )  # fmt: skip
        place = call_place() if kind == "op" else ""
        found[name] = Site(name, kind, tuple(value.shape), str(value.dtype).removeprefix("torch."), place)

    with torch.no_grad(), forward_walk(model, see):
        model(*args, **kwargs)
    for name, parameter in parameter_names(model).items():
        found[name] = Site(name, "parameter", tuple(parameter.shape), str(parameter.dtype).removeprefix("torch."), "")
    return list(found.values())
