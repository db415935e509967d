"""A quiet model: what happens inside leaves no trace in the training that goes on around it.

Random numbers, train and eval modes, buffers, attributes that a forward sets, `requires_grad` and `.grad` are
afterwards what they were before, bit for bit. gradlab's own hooks look away. Forward hooks of others run, since they
may be part of what the model computes; their module backward hooks do not, nor the gradient hooks of the parameters
that are differentiated by: the Jacobian is the derivative of the forward, not what hooks make of a gradient.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradlab.errors import JacobianError
from gradlab.hooks.mute import muting
from gradlab.jacobians.randomness import random_numbers_kept
from gradlab.jacobians.sharded import gathered, sharded_modules
from gradlab.sites.names import all_modules, unwrapped

Mode = Literal["eval", "as_is"]
"""`eval`: no dropout, running statistics. `as_is`: the modes that the modules are in, with fresh random numbers."""


@contextmanager
def quiet(
    model: nn.Module,
    *,
    mode: Mode = "eval",
    requires_grad: Callable[[nn.Module], Sequence[nn.Parameter | None]] = lambda core: (),
) -> Iterator[nn.Module]:
    """While open, the model inside any wrappers may be run and differentiated without a trace.

    Args:
        model: wrapped (DDP, compile) or not; compiled modules run eagerly.
        mode: the modes that modules run in.
        requires_grad: from the module to the parameters that are to require grad. All others are frozen, so nothing
            before the tensor that a Jacobian is taken by builds a graph, and nothing accumulates anywhere.
    Yields:
        The module to call.
    Raises:
        JacobianError: if the model still has parameters without a shape.
    Cost: one copy of the buffers, and about 3 microseconds a module.
    """
    core = unwrapped(model)
    if sharded_modules(core):
        with gathered(core), _quiet(core, mode, requires_grad):
            yield core
    else:
        with _quiet(core, mode, requires_grad):
            yield core


@contextmanager
def _quiet(
    core: nn.Module, mode: Mode, requires_grad: Callable[[nn.Module], Sequence[nn.Parameter | None]]
) -> Iterator[None]:
    modules = list(all_modules(core))
    parameters = list({id(p): p for module in modules for p in _own_parameters(module)}.values())
    if any(is_lazy(p) for p in parameters):
        raise JacobianError("the model has lazy parameters without a shape; run one forward before taking a Jacobian.")
    devices = {p.device for p in parameters}
    wanted = [p for p in requires_grad(core) if p is not None]
    with (
        muting(),
        _plain_checkpoints(),
        random_numbers_kept(devices),
        _plain_numbers(devices) if _are_special(devices) else nullcontext(),
        _eager(),
        _modules_kept(modules, mode),
        _only_these_require_grad(parameters, wanted),
    ):
        yield


@contextmanager
def _plain_checkpoints() -> Iterator[None]:
    """Selective checkpointing of this thread keeps nothing, so that its graph can be gone through more than once.

    What it keeps of a forward is handed out to one backward, and gone; computed again it is the same, however often.
    """
    module: Any = sys.modules.get("torch.utils.checkpoint")
    kinds = [getattr(module, name, None) for name in ("_CachingTorchDispatchMode", "_CachedTorchDispatchMode")]
    thread = get_ident()

    def plain(original: Callable[..., Any]) -> Callable[..., Any]:
        def dispatch(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if get_ident() == thread:
                return func(*args, **(kwargs or {}))
            return original(mode, func, types, args, kwargs)

        return dispatch

    originals = [(kind, kind.__torch_dispatch__) for kind in kinds if kind is not None]
    for kind, original in originals:
        kind.__torch_dispatch__ = plain(original)
    try:
        yield
    finally:
        for kind, original in originals:
            kind.__torch_dispatch__ = original


def _are_special(devices: set[torch.device]) -> bool:
    """Whether the caller is in inference mode or under autocast."""
    kinds = {"cpu", *(device.type for device in devices if device.type != "meta")}
    return torch.is_inference_mode_enabled() or any(map(torch.is_autocast_enabled, kinds))


@contextmanager
def _plain_numbers(devices: set[torch.device]) -> Iterator[None]:
    """Neither inference mode nor autocast."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device_type in {device.type for device in devices} - {"meta"} | {"cpu"}:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    if isinstance(module, torch.jit.ScriptModule):
        return list(module.parameters(recurse=False))
    return [p for p in module._parameters.values() if p is not None]


@contextmanager
def _eager() -> Iterator[None]:
    """Neither compiled graphs nor the fused encoder layers, both of which hide the tensors inside."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if "torch._dynamo" in sys.modules:  # Importing it takes a second; without it nothing is compiled.
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _modules_kept(modules: list[nn.Module], mode: Mode) -> Iterator[None]:
    """Every module works on copies of its buffers, and gets back the attributes that it had."""
    scripted = [m for m in modules if isinstance(m, torch.jit.ScriptModule)]
    plain = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)] if scripted else modules
    attributes = [(vars(m), dict(vars(m))) for m in plain]
    registers: list[tuple[Any, dict[str, Any]]] = [
        (register, dict(register)) for m in plain for register in (m._parameters, m._buffers, m._modules)
    ]
    with _scripted_kept(scripted, mode) if scripted else nullcontext():
        try:
            copies: dict[int, Tensor] = {}
            for module in plain:
                _lift_backward_hooks(module)
                if module._buffers:
                    _copy_buffers(module, copies)
                if mode == "eval":
                    _to_eval(module)
            yield
        finally:
            for register, before in registers:
                register.clear()
                register.update(before)
            for now, before in attributes:
                for name in now.keys() - before.keys():
                    del now[name]
                now.update(before)


def _lift_backward_hooks(module: nn.Module) -> None:
    """Empty dictionaries in place of the registered ones, which `attributes` brings back."""
    if module._backward_hooks:
        vars(module)["_backward_hooks"] = OrderedDict()
    if module._backward_pre_hooks:
        vars(module)["_backward_pre_hooks"] = OrderedDict()


def _copy_buffers(module: nn.Module, copies: dict[int, Tensor]) -> None:
    """Shared buffers stay shared. The originals are not written to, so graphs that saved them stay valid."""
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())


def _to_eval(module: nn.Module) -> None:
    # Set directly: a model may override `train` to do more than that.
    vars(module)["training"] = False
    if isinstance(module, nn.RNNBase):
        # cuDNN has no backward in eval mode; without dropout both modes compute the same.
        module.training, module.dropout = True, 0.0


@contextmanager
def _scripted_kept(modules: list[Any], mode: Mode) -> Iterator[None]:
    """Script modules keep their state in C++: it is written back where it changed."""
    training = [module.training for module in modules]
    buffers = [(b, b.detach().clone(), b._version) for module in modules for b in module.buffers(recurse=False)]
    try:
        if mode == "eval":
            for module in modules:
                module.training = False
        yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was
        with torch.no_grad():
            for buffer, copy, version in buffers:
                if buffer._version != version:
                    buffer.copy_(copy)


@contextmanager
def _only_these_require_grad(parameters: list[nn.Parameter], wanted: list[nn.Parameter]) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in parameters if p.is_leaf]
    ids = {id(p) for p in wanted}
    hooks = [(p, p._backward_hooks) for p in wanted]
    try:
        for p, was in flags:
            if was is not (id(p) in ids):
                p.requires_grad_(not was)
        for p in wanted:
            p._backward_hooks = None  # A hook that clips would clip the Jacobian.
        yield
    finally:
        for p, its in hooks:
            p._backward_hooks = its
        for p, was in flags:
            if p.requires_grad is not was:
                p.requires_grad_(was)
