"""Where values of parameters go without their history: followed through every torch function of a few passes.

A function mode sees each call between the end of a step and the next backward. Of each tensor it keeps two sets of
parameters: those that its values come from, and those that its history leads back to. `detach`, `.data`, `no_grad`,
`argmax` and NumPy take away the second and leave the first. So it is known of which parameters values reach the loss
without a history, what cut it, and which parameter got values of its own earlier results without a history.

The sets are integers with a bit for each parameter. No tensor is kept: weak references alone, until the backward.

Belongs here: following values, and the mode's coming and going. Does not: when it is on (`collection`).
"""

from __future__ import annotations

import os
import sys
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradlab.hooks.interpreter import must_not_record, pop_function_mode, push_function_mode

_MOST_CALLS = 30_000
"""After so many calls in one pass nothing more is followed."""
_MOST_ITEMS = 64
_PASSES = 4
_PASSES_FOR_SILENT = 8
_FOLLOWED_PROPERTIES = frozenset("data T mT H mH real imag".split())
_LEAVES_TORCH = frozenset("numpy __array__ tolist".split())
_NOT_FOLLOWED = frozenset(
    "backward grad requires_grad_ zero_ size stride dim numel item __len__ __bool__ __float__ __int__ __repr__ "
    "__format__ is_floating_point is_complex data_ptr register_hook retain_grad type_as zeros_like ones_like "
    "empty_like rand_like randn_like new_zeros new_ones new_empty new_full full_like".split()
)
_LAYERS_OVER_TIME = frozenset("gru lstm rnn_tanh rnn_relu".split())


@dataclass(slots=True)
class _Sources:
    """What a tensor, or all arguments of a call, comes from."""

    values: int = 0
    """The parameters that its numbers come from."""
    state: int = 0
    """The same, by real numbers and with gradients on: what a state is made of, and a sample or a token is not."""
    history: int = 0
    """The parameters that its history leads back to."""
    cut_by: str = ""
    """The function that took away history."""

    def add(self, other: _Sources) -> None:
        """Take in those of another tensor."""
        self.values |= other.values
        self.state |= other.state
        self.history |= other.history
        self.cut_by = self.cut_by or other.cut_by


@dataclass(slots=True)
class _Known:
    """What is known of one tensor."""

    ref: weakref.ref[Tensor]
    has_history: bool
    sources: _Sources


@dataclass
class Flow:
    """What the passes so far have shown, by id of a parameter."""

    used: set[int] = field(default_factory=set)
    """Those that a function was called with while gradients were on, or whose values one has used."""
    cut: dict[int, tuple[str, int | None]] = field(default_factory=dict)
    """Those whose values reached a loss, or another parameter, without history: by what, and which parameter."""
    detached_calls: dict[int, int] = field(default_factory=dict)
    """How often in one pass a parameter got values of its own earlier result, each time without history."""
    recurrent: set[int] = field(default_factory=set)
    """Those that got such values with history once at least."""
    num_passes: int = 0


class FlowMode(TorchFunctionMode):
    """Follows one pass.

    Args:
        parameters: all that may be met.
        flow: gets what is seen.
    Cost: some 5 microseconds a torch function, while it is on.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], flow: Flow) -> None:
        super().__init__()
        self._ids = [id(p) for p in parameters]
        self._bits = {key: 1 << place for place, key in enumerate(self._ids)}
        self._flow = flow
        self._known: dict[int, _Known] = {}
        self._num_calls = 0
        self._is_following = True
        self._process = os.getpid()
        self._escaped = 0
        """What has gone to NumPy: any tensor that comes from nowhere after that may be made of it."""
        self._detached: Counter[int] = Counter()
        self._recurrent = 0
        self._used = 0

    # Coming and going.

    def put_on(self) -> bool:
        """Put it on, where no mode is on but the default device of the process; whether it is.

        Whoever leaves `with torch.device(...)` takes off the innermost mode, which has to be their own.
        """
        if _is_anything_compiled():
            return False
        default = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
        for place in range(torch._C._len_torch_function_stack()):
            if torch._C._get_function_stack_at(place) is not default:
                return False
        push_function_mode(self)
        return True

    def take_off(self) -> bool:
        """Take it off, from under any modes that were put on since; whether it was there.

        `Tensor.backward` itself is a torch function: while it runs the mode is off, and on again after it.
        """
        above: list[Any] = []
        found = False
        while torch._C._len_torch_function_stack() and not found:
            mode = pop_function_mode()
            found = mode is self
            if not found:
                above.append(mode)
        for mode in reversed(above):
            push_function_mode(mode)
        return found

    def finish(self, losses: Iterator[Tensor] | Sequence[Tensor] = ()) -> None:
        """Follow no more, and note what the pass has shown, given what a backward begins from."""
        if not self._is_following:
            return
        self._is_following = False
        flow = self._flow
        flow.num_passes += 1
        flow.used |= set(self._keys(self._used))
        for loss in losses:
            if (known := self._of(loss)) is not None:
                for key in self._keys(known.sources.values & ~known.sources.history):
                    flow.cut.setdefault(key, (known.sources.cut_by, None))
        flow.recurrent |= set(self._keys(self._recurrent))
        for key, count in self._detached.items():
            flow.detached_calls[key] = max(count, flow.detached_calls.get(key, 0))
        self._known.clear()

    def _keys(self, bits: int) -> Iterator[int]:
        return (self._ids[place] for place in range(bits.bit_length()) if bits >> place & 1)

    # Calls.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call the function, and follow what it makes of its arguments."""
        if torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if self._is_following:
            try:
                self._follow(func, args, kwargs or {}, result)
            except Exception:  # the user's own call must not fail for what is only noted about it
                self._is_following = False
        return result

    def _follow(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        self._num_calls += 1
        if self._num_calls > _MOST_CALLS or os.getpid() != self._process:
            self._is_following = False
            return
        name = _name_of(func)
        if name is None or must_not_record():
            return
        given = list(_tensors(args)) + list(_tensors(kwargs.values()))
        if not given:
            return
        with torch._C.DisableTorchFunction():
            self._note(name, args, given, result)

    def _note(self, name: str, args: Any, given: list[Tensor], result: Any) -> None:
        mine, merged, is_unknown = self._merged(given)
        has_grad = torch.is_grad_enabled()
        if mine:
            if has_grad or not _writes_in_place(name):
                self._used |= mine
            if has_grad and not is_unknown:
                self._note_call(name, args, mine, merged)
        if name in _LEAVES_TORCH:
            self._escaped |= merged.values | mine
            return
        outputs = list(_tensors((result,)))
        if _writes_in_place(name) and args and isinstance(args[0], Tensor):
            outputs.append(args[0])
        loses = (name if has_grad else "no_grad") if merged.history or mine else ""
        for one in outputs:
            if id(one) in self._bits:
                continue
            keeps = one.requires_grad
            sources = _Sources(
                values=merged.values | mine,
                state=merged.state | mine if has_grad and one.is_floating_point() else 0,
                history=merged.history | mine if keeps else 0,
                cut_by=merged.cut_by or ("" if keeps else loses),
            )
            self._known[id(one)] = _Known(weakref.ref(one), keeps, sources)

    def _merged(self, given: list[Tensor]) -> tuple[int, _Sources, bool]:
        """The parameters among some tensors; where the others come from; whether the history of one is not known."""
        mine, merged, is_unknown = 0, _Sources(), False
        for one in given:
            bit = self._bits.get(id(one))
            if bit is not None:
                mine |= bit if one.requires_grad else 0
                continue
            known = self._of(one)
            if known is not None and known.has_history == one.requires_grad:
                merged.add(known.sources)
            elif one.requires_grad and one.grad_fn is not None:
                is_unknown = True
            elif known is None and self._escaped and one.is_floating_point():
                merged.add(_Sources(values=self._escaped, cut_by="numpy"))
        return mine, merged, is_unknown

    def _of(self, tensor: Tensor) -> _Known | None:
        known = self._known.get(id(tensor))
        return known if known is not None and known.ref() is tensor else None

    def _note_call(self, name: str, args: Any, mine: int, merged: _Sources) -> None:
        """A function is called with parameters, and with tensors that values of parameters have gone into."""
        without = merged.values & ~merged.history & ~mine
        if without:
            first = next(self._keys(mine))
            for key in self._keys(without):
                self._flow.cut.setdefault(key, (merged.cut_by, first))
        if name in _LAYERS_OVER_TIME and not _is_one_step(args):
            return
        again = merged.state & mine
        if again:
            self._recurrent |= again & merged.history
            for key in self._keys(again & ~merged.history):
                self._detached[key] += 1


def _name_of(func: Any) -> str | None:
    """The name of a function to follow; None where its result is made of no values of its arguments."""
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":
        of = getattr(getattr(func, "__self__", None), "__name__", "")
        return of if of in _FOLLOWED_PROPERTIES else None
    if name in _NOT_FOLLOWED or name.startswith(("_foreach", "_fused", "_is_", "is_", "has_")):
        return None
    return name


def _writes_in_place(name: str) -> bool:
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE


_IN_PLACE = frozenset(f"__i{one}__" for one in "add sub mul truediv pow and or".split())


def _is_one_step(args: Any) -> bool:
    """Whether a recurrent layer of torch is called for one time step: its last argument says where time is."""
    if not args or not isinstance(args[0], Tensor) or args[0].dim() < 2:
        return False
    is_batch_first = isinstance(args[-1], bool) and args[-1] and args[0].dim() > 2
    return args[0].shape[1 if is_batch_first else 0] == 1


def _tensors(values: Any, depth: int = 0) -> Iterator[Tensor]:
    """The tensors among some values, in lists, tuples and dicts as well."""
    for _, value in zip(range(_MOST_ITEMS), values, strict=False):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple) and depth < 2:
            yield from _tensors(value, depth + 1)
        elif isinstance(value, dict) and depth < 2:
            yield from _tensors(value.values(), depth + 1)


class ValueFlow:
    """Has a few passes followed: four of the first steps, and eight more where parameters stay without gradient."""

    def __init__(self) -> None:
        self.flow = Flow()
        self.is_told = False
        """Whether passes were followed while it was known which parameters are silent."""
        self._mode: FlowMode | None = None
        self._num_begun = 0
        self._num_begun_for_silent = 0

    def wants_pass(self, *, has_silent: bool) -> bool:
        """Whether one more pass is to be followed."""
        if self._mode is not None:
            return False
        return self._num_begun < _PASSES or (has_silent and self._num_begun_for_silent < _PASSES_FOR_SILENT)

    def begin(self, parameters: Sequence[nn.Parameter], *, has_silent: bool) -> None:
        """Follow what is called from now on, outside of all modes and of ops of gradlab's own."""
        if _has_compiled() or must_not_record():
            self._num_begun, self._num_begun_for_silent = _PASSES, _PASSES_FOR_SILENT
            return
        mode = FlowMode(parameters, self.flow)
        if mode.put_on():
            self._mode = mode
            self.is_told |= has_silent
        self._num_begun += 1
        self._num_begun_for_silent += has_silent

    def backward_begins(self, losses: Sequence[Tensor]) -> None:
        """The pass has ended with these losses."""
        if self._mode is not None:
            self._mode.finish(losses)
            self.remove()

    def remove(self) -> None:
        """Take the mode off, where one is on."""
        if self._mode is not None:
            self._mode.finish()
            if self._mode.take_off():
                self._mode = None


def _has_compiled() -> bool:
    """Whether Dynamo has compiled anything: it would compile again for the mode."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters.get("frames"))


def _is_anything_compiled() -> bool:
    """Whether anybody has asked for `torch.compile`: a mode would be traced, and be a part of what guards a graph."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return any(backend is not None for backend in getattr(frames, "cached_backends", {}).values())
