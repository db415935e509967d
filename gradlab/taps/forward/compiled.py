"""Taps in compiled models: a forward that a tap wants to see runs eagerly, every other one runs its graph untouched.

A compiled graph calls no hooks that came after it, and hooks that it was traced with belong to it for ever. So gradlab
keeps out of graphs altogether: where a model, or a part of it, is entered through `torch.compile`, a gate stands at the
entrance for the steps on which a tap is due. A forward that is recorded passes it under
`torch.compiler.set_stance("force_eager")`; any other (evaluation, or taps on parameters alone, which need no hook in
the forward) runs compiled, without gradlab's hooks in place. Nothing is compiled again because of a tap.

The numbers of a due step are those of the eager model, which may differ from the compiled one's in the last bits, as
does the step itself; the other steps are what they are unwatched. The stance is the process's: other threads that call
compiled code at the same moment run eagerly too.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from gradlab.hooks.call_hooks import CALL_ATTRIBUTE, ORIGINAL_ATTRIBUTE, CallHook, without_call_hooks
from gradlab.identity import is_among
from gradlab.sites.names import all_modules, unwrapped

# Where a compiled callable stands in a module's own attributes: `module.compile()`, then the `forward` of what
# `torch.compile(module)` returns, then the methods that Lightning compiles one by one.
_ENTRANCES = (CALL_ATTRIBUTE, "forward", "training_step")
_MOST_SEARCHES = 3


class Gates:
    """The gates at the compiled entrances of one model."""

    def __init__(
        self,
        model: nn.Module,
        is_wanted: Callable[[], bool],
        run_compiled: Callable[[nn.Module, Callable[[], Any]], Any],
    ) -> None:
        """Gates that are not in place yet.

        Args:
            model: the model as it is watched.
            is_wanted: whether the call that now begins is one to be recorded.
            run_compiled: runs the compiled call of a module without gradlab's hooks on it and in it.
        """
        self._inner = unwrapped(model)
        self._outside: list[nn.Module] = []
        """Compiled wrappers that were found outside the model."""
        self.use(model)
        self._is_wanted = is_wanted
        self._run_compiled = run_compiled
        self._placed: list[tuple[nn.Module, str, Callable[..., Any]]] = []
        self._searches = 0

    def use(self, model: nn.Module) -> None:
        """Look for entrances in the modules that the model has now."""
        self._modules = [*all_modules(model), *self._outside]

    def are_none(self) -> bool:
        """Whether the model has no compiled entrance that is known."""
        return not any(True for _ in entrances(self._modules))

    def place(self) -> list[nn.Module]:
        """Put a gate at every entrance that has none: about 0.2 microseconds a module, in a process that compiles.

        Returns:
            The modules whose own call got one.
        """
        called: list[nn.Module] = []
        if not _has_compiled():
            return called
        for module, name in entrances(self._modules):
            original = vars(module)[name]
            if not isinstance(original, CallHook) and not hasattr(original, ORIGINAL_ATTRIBUTE):
                gate = vars(module)[name] = self._gate(module, original)
                self._placed.append((module, name, gate))
                if name == CALL_ATTRIBUTE:
                    called.append(module)
        return called

    def remove(self) -> None:
        """Put back what was there, unless somebody else has changed it since."""
        for module, name, gate in self._placed:
            if vars(module).get(name) is gate:
                vars(module)[name] = getattr(gate, ORIGINAL_ATTRIBUTE)
        self._placed.clear()

    def search(self) -> None:
        """Look outside the model for compiled wrappers of it: the user calls one, and gave the model inside to gradlab.

        Costs a walk over all objects of the process, tenths of a second at worst; done a few times at most, and only in
        a process that compiles at all.
        """
        if self._searches < _MOST_SEARCHES and _has_compiled():
            self._searches += 1
            found = [one for one in wrappers_of(self._inner) if not is_among(one, self._modules)]
            self._outside += found
            self._modules += found

    def _gate(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)  # keeps its mark of dynamo's too: a gate is traced as what it guards
        def gate(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            if not self._is_wanted() or _in_graph():
                return self._run_compiled(module, functools.partial(original, *args, **kwargs))
            with torch.compiler.set_stance("force_eager"):
                return original(*args, **kwargs)

        setattr(gate, ORIGINAL_ATTRIBUTE, original)
        return gate


def _in_graph() -> bool:
    """Whether a compiled function is under way, in a break of whose graph this runs: it cannot be made eager now."""
    return torch._C._dynamo.eval_frame.get_eval_frame_callback() not in (None, False)


def entrances(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """Every (module, attribute) that holds a callable made by `torch.compile`."""
    for module in modules:
        own = vars(module)
        for name in _ENTRANCES:
            if name in own and hasattr(without_call_hooks(own[name]), "_torchdynamo_orig_callable"):
                yield module, name


def wrappers_of(model: nn.Module) -> list[nn.Module]:
    """The live results of `torch.compile(model)`, wherever they are."""
    eval_frame = sys.modules.get("torch._dynamo.eval_frame")
    if eval_frame is None:
        return []
    kind = eval_frame.OptimizedModule
    return [one for one in gc.get_objects() if type(one) is kind and unwrapped(one) is model]


def _has_compiled() -> bool:
    """Whether `torch.compile` was called in this process."""
    eval_frame = sys.modules.get("torch._dynamo.eval_frame")
    if eval_frame is None:
        return False
    backends = getattr(eval_frame, "cached_backends", {0: True})
    return any(backend is not None for backend in backends.values())  # None is that of `torch._dynamo.disable`


def why_unseen(model: nn.Module) -> str:
    """The likely reason, as a sentence, why compilation hides tensors of `model` from taps; "" where it does not.

    Cost: that of `Gates.search`, in a process that compiles.
    """
    if not _has_compiled() or any(True for _ in entrances(all_modules(model))):
        return ""
    if wrappers_of(unwrapped(model)):
        return (
            "The model was compiled after gradlab.watch(model): the compiled graph hides its inside until the next due "
            "step. Call torch.compile first, or give the compiled model to gradlab.watch."
        )
    return (
        "This process uses torch.compile: tensors inside a compiled function cannot be seen. Where that function runs "
        "the model, compile the model instead (torch.compile(model) or model.compile()): then due steps run eagerly."
    )
