"""Visiting: every tensor of a forward pass, by site name and in forward order, with the right to replace it.

This is the plain way to reach tensors, used to list sites, to replay a forward for Jacobians, and by `gradlab.tap`.
The training step itself goes through the leaner path of `modules` and `monitor`, with the same names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradlab.arguments import NAME, check, take
from gradlab.errors import TapError
from gradlab.hooks.call_hooks import ModuleHook
from gradlab.hooks.interpreter import in_functorch
from gradlab.identity import IdentitySet
from gradlab.sites.names import (
    CallNumbers,
    leaves,
    module_names,
    op_site,
    parameter_names,
    replace_leaves,
    unwrapped,
    without_call_number,
)
from gradlab.sites.ops import OpWatcher, call_place
from gradlab.torch_arguments import MODEL, TENSOR

Visitor = Callable[[str, Tensor], Tensor | None]
"""Called with a site name and its tensor; a returned tensor takes its place in the rest of the forward."""


class NamedTensorListener(Protocol):
    """Something that wants to know of tensors named by hand."""

    def named(self, name: str, value: Tensor) -> Tensor:
        """Take note of a tensor named with `gradlab.tap`; the returned tensor goes on in its place."""


listeners: list[NamedTensorListener] = []
"""Who hears `gradlab.tap`: the one piece of global state, appended to by what watches and emptied when it closes."""


def tap(name: str, value: Tensor) -> Tensor:
    """Name a tensor by hand; it becomes the site `name`. The identity when nobody watches (about 0.1 microseconds).

    Args:
        name: the site's name, unique in one forward; a second use in the same forward is `name#2`.
        value: any tensor.
    Returns:
        `value` itself.
    """
    if not torch.compiler.is_compiling():
        if type(name) is not str or not isinstance(value, Tensor):
            take("tap()", {"name": NAME, "value": TENSOR}, {"name": name, "value": value}, TapError)
        for listener in listeners:
            value = listener.named(name, value)
    return value


class CallNames:
    """Names of the calls of one forward pass: the module stack, repeated calls, numbered ops."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.calls = CallNumbers()
        self.ops: list[Counter[str]] = []

    def enter(self, name: str) -> str:
        """A module is entered; its name in this pass."""
        name = self.calls.next(name)
        self.stack.append(name)
        self.ops.append(Counter())
        return name

    def leave(self) -> str:
        """The innermost module is left; its name in this pass."""
        self.ops.pop()
        return self.stack.pop()

    def op(self, op: str) -> str:
        """The site of an op called in the innermost module: `encoder/relu`, then `encoder/relu_1`."""
        number = self.ops[-1][op]
        self.ops[-1][op] += 1
        return op_site(self.stack[-1], op, number)


def root_site(end: str, name: str) -> str:
    """The site of the model's own input or output: `output`, or `output#2` where the model calls itself."""
    return end + name


def hides_its_ops(module: nn.Module) -> bool:
    """Whether the ops inside are the module's own business: a forward of torch.nn's, without children, or a script."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    # A forward that was generated, as that of torch.fx's GraphModule, is in no file: its `__module__` is None.
    place = getattr(type(module).forward, "__module__", None) or ""
    return place.startswith("torch.nn.") and not any(child is not None for child in module._modules.values())


def has_floating(value: Any) -> bool:
    """Whether there is a tensor in a value that may have a gradient."""
    with torch._C.DisableTorchFunction():  # these questions are no ops of the user's
        return any(t.is_floating_point() or t.is_complex() for _, t in leaves(value))


class VisitHook(ModuleHook):
    """A hook of a visit: it sees eager calls of the thread that began the visit; others may be calling the model."""

    __slots__ = ("thread",)

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__(module, function)
        self.thread = get_ident()

    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or get_ident() != self.thread:
            return None
        return super().__call__(module, *arguments)


class _Visit:
    """The hooks of one `visiting` block."""

    def __init__(self, model: nn.Module, visitor: Visitor, functional: bool) -> None:
        self.visitor = visitor
        self.root = unwrapped(model)
        self.names = module_names(model)
        self.opaque = IdentitySet(module for module in self.names if hides_its_ops(module))
        self.functional = functional
        self.calls = CallNames()
        self.hidden = 0
        self.pass_stack: ExitStack | None = None

    def install(self, hooks: ExitStack) -> None:
        for module in self.names:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            # What the user's own hooks compute belongs to the module; the input is what they have made of it.
            hooks.callback(module.register_forward_pre_hook(VisitHook(module, self.enter), prepend=True).remove)
            hooks.callback(module.register_forward_pre_hook(VisitHook(module, self.before), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(VisitHook(module, self.after)).remove)
            hooks.callback(module.register_forward_hook(VisitHook(module, self.left), always_call=True).remove)
        listeners.append(self)
        hooks.callback(listeners.remove, self)
        hooks.callback(self.end_pass)

    def end_pass(self) -> None:
        self.calls, self.hidden = CallNames(), 0
        if self.pass_stack is not None:
            self.pass_stack.close()
            self.pass_stack = None

    def enter(self, module: nn.Module, args: Any) -> None:
        if not self.calls.stack:
            self.end_pass()
            if self.functional:
                self.pass_stack = ExitStack()
                self.pass_stack.enter_context(OpWatcher(self.op))
        self.calls.enter(self.names[module])
        self.hidden += module in self.opaque

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        name = self.calls.stack[-1]
        named = root_site("input", name) if module is self.root else f"{name}:in"
        inputs = args[0] if len(args) == 1 and not kwargs else (*args, *kwargs.values())
        new = self.see(named, inputs)
        if not new:
            return None
        if len(args) == 1 and not kwargs:
            return (replace_leaves(args[0], new),), kwargs
        values = replace_leaves((*args, *kwargs.values()), new)
        return values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        name = self.calls.stack[-1]
        new = self.see(root_site("output", name) if module is self.root else name, output)
        return replace_leaves(output, new) if new else None

    def left(self, module: nn.Module, args: Any, output: Any) -> None:
        self.hidden -= module in self.opaque
        self.calls.leave()
        if not self.calls.stack:
            self.end_pass()

    def op(self, op: str, result: Any) -> Any:
        if self.hidden or not self.calls.stack or not has_floating(result):
            return result
        return replace_leaves(result, self.see(self.calls.op(op), result))

    def named(self, name: str, value: Tensor) -> Tensor:
        # The zero keeps the count of hand-given names apart from that of a module with the same name.
        new = self.visitor(self.calls.calls.next(f"\0{name}")[1:], value)
        return value if new is None else new

    def see(self, name: str, value: Any) -> dict[str, Tensor]:
        """Show every tensor of a value to the visitor; the replacements, by suffix."""
        new = {}
        for suffix, tensor in leaves(value):
            answer = self.visitor(name + suffix, tensor)
            if answer is not None:
                new[suffix] = answer
        return new


@contextmanager
def visiting(model: nn.Module, visitor: Visitor, *, functional: bool = True) -> Iterator[None]:
    """While open, each forward of `model` shows every tensor to `visitor`, by site name and in forward order.

    Args:
        model: the model, wrapped (DDP, compile) or not; only eager calls are seen.
        visitor: called with the site's name and its tensor. A tensor that it returns is used instead in the rest of the
            forward; None leaves all as it is.
        functional: also visit functional ops.
    Cost: about 10 microseconds a site; nothing stays installed afterwards.
    """
    with ExitStack() as hooks:
        _Visit(model, visitor, functional).install(hooks)
        yield


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
    check("sites_of()", "model", MODEL, model)
    found: dict[str, Site] = {}
    module_kinds = {name or "output" for name in module_names(model).values()}

    def see(name: str, value: Tensor) -> None:
        if in_functorch():  # a tensor inside a transform stands for many, and no tap sees it
            return
        base = without_call_number(name.split("[")[0])
        kind = (
            "op" if "/" in base else
            "input" if base == "input" or base.endswith(":in") else
            "module" if base in module_kinds else
            "named"
        )  # fmt: skip
        place = call_place() if kind == "op" else ""
        found[name] = Site(name, kind, tuple(value.shape), str(value.dtype).removeprefix("torch."), place)

    with torch.no_grad(), visiting(model, see):
        model(*args, **kwargs)
    for name, parameter in parameter_names(model).items():
        found[name] = Site(name, "parameter", tuple(parameter.shape), str(parameter.dtype).removeprefix("torch."), "")
    return list(found.values())
