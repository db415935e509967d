"""The subgraph between `wrt` and `of`, by replay: one forward of an isolated model, from its inputs to `of`.

What comes before `wrt` builds no graph, so integer inputs and frozen layers do no harm there. At `wrt` the tensor is
replaced by a leaf of our own, so the Jacobian is that of everything after it, in-place operations included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gradlab.errors import JacobianError, did_you_mean, shortlist
from gradlab.jacobians.inputs import call, copied
from gradlab.sites.forward import forward_walk, forward_walk_at
from gradlab.sites.names import is_op, module_at, parameter_names, unwrapped


@dataclass(frozen=True)
class LinearCall:
    """The one call of the linear layer whose parameter is differentiated by."""

    input: Tensor
    """[*batch, in]: a copy."""
    output: Tensor
    """[*batch, out]: its shape counts; what it holds may have been changed in place since."""
    edge: GradientEdge
    """The output's place in the graph."""
    is_bias: bool
    """Whether the parameter is the bias."""


@dataclass(frozen=True)
class Subgraph:
    """The graph between two tensors of one forward: of a replay, or of the training step."""

    of: Tensor
    """[*out], with a graph that leads to `wrt`."""
    wrt: Tensor
    """[*in], a leaf: ours, or the model's parameter. On the training step's graph, where there are edges, only the
    shapes of both tensors count."""
    widest_bytes: int
    """Size of the largest tensor seen between them."""
    run: Callable[[Tensor], Tensor] | None
    """The tensor at `of` for another tensor in the place of `wrt`, by another forward; not for parameters."""
    layer: LinearCall | None = None
    """Where `wrt` is a parameter of a linear layer."""
    of_edge: GradientEdge | None = None
    """The place of `of` in the training step's graph, as its tensor may have been changed in place since."""
    wrt_edge: GradientEdge | None = None
    """The same of `wrt`."""

    def with_widest(self, widest_bytes: int | None) -> Subgraph:
        """The same, with what is known of it from another time."""
        return self if widest_bytes is None else replace(self, widest_bytes=widest_bytes)


def parameter_named(model: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter of that qualified name, or None. A shared parameter has several names."""
    path, _, attribute = name.rpartition(".")
    owner = module_at(model, path)
    if owner is None:
        return None
    # Not by getattr: a parametrised weight would be computed, which may change buffers.
    if isinstance(owner, torch.jit.ScriptModule):
        return dict(owner.named_parameters(recurse=False)).get(attribute)
    return owner._parameters.get(attribute)


def replay(core: nn.Module, inputs: Any, *, of: str, wrt: str, known: bool = False, graph: bool = True) -> Subgraph:
    """Run an isolated model from its inputs to `of`, with a graph from `wrt` on.

    Args:
        core: the model, inside `isolated`.
        inputs: a tensor, a tuple of arguments or a mapping of keyword arguments. The model gets copies.
        of: the site at which the forward is stopped.
        wrt: the site or the parameter where the graph begins.
        known: whether both sites have been found before, so that few hooks will do. `widest_bytes` is then too low.
        graph: whether to build the graph; without, only `run` of the subgraph is of use.
    Raises:
        JacobianError: if there is no such site, it has no gradient, or `of` does not depend on `wrt`.
    Cost: at most one forward.
    """
    parameter = parameter_named(core, wrt)
    if parameter is not None and not parameter.is_floating_point():
        raise JacobianError(f"wrt={wrt!r} is {_dtype(parameter)}, which has no gradient.")
    inputs = copied(inputs)
    has_op = is_op(of) or is_op(wrt)
    for few_hooks in (True, False) if known and not has_op else (False,):
        calls = _LinearCalls(core, wrt)
        cut = _Cut(of, wrt, parameter, graph, calls=calls)
        if few_hooks:
            walk = forward_walk_at((of, wrt if parameter is None else calls.owner or of), core, cut)
        else:
            # Watching functional ops costs time and bars a few models; it is done only where a site is one.
            walk = forward_walk(core, cut, functional=has_op)
        with walk:
            if cut.run(core, inputs):
                return cut.subgraph(partial(_rerun, core, inputs, of, wrt))
    raise JacobianError(cut.explain_failure(core))


def _rerun(core: nn.Module, inputs: Any, of: str, wrt: str, value: Tensor) -> Tensor:
    """The tensor at `of` with `value` in the place of the one at the site `wrt`; for forward mode."""
    inputs = copied(inputs)
    cut = _Cut(of, wrt, None, graph=True, leaf=value)
    has_op = is_op(of) or is_op(wrt)
    with forward_walk(core, cut) if has_op else forward_walk_at((of, wrt), core, cut):
        cut.run(core, inputs)
    assert cut.value is not None
    return cut.value


class StopForward(BaseException):
    """Raised where `of` has been computed. Not an Exception, so that no `except Exception` of the model stops it."""


class _Cut:
    """The visitor of a forward that puts a leaf in the place of `wrt` and ends the forward at `of`."""

    def __init__(
        self,
        of: str,
        wrt: str,
        parameter: nn.Parameter | None,
        graph: bool,
        leaf: Tensor | None = None,
        calls: _LinearCalls | None = None,
    ) -> None:
        self.of, self.wrt = of, wrt
        self.parameter, self.given, self.graph = parameter, leaf, graph
        self.leaf: Tensor | None = parameter
        self.value: Tensor | None = None
        self.widest_bytes = 0
        self.seen: dict[str, None] = {}
        self.calls = calls

    def run(self, core: nn.Module, inputs: Any) -> bool:
        """Run a forward; whether it came to `of`, behind `wrt`."""
        with torch.set_grad_enabled(self.parameter is not None and self.graph):
            try:
                call(core, inputs)
            except StopForward:
                return True
        return False

    def __call__(self, site: str, value: Tensor) -> Tensor | None:
        self.seen.setdefault(site, None)
        if self.calls is not None and self.calls.owner:
            new = self.calls.note(site, value, self.of)
            if new is not None:
                return new
        if self.leaf is None:
            return self.begin(value) if site == self.wrt else None
        self.widest_bytes = max(self.widest_bytes, value.nbytes)
        if site == self.of:
            self.value = value
            raise StopForward
        return None

    def begin(self, value: Tensor) -> Tensor:
        """Begin the graph at `wrt`; the tensor that the forward goes on with."""
        if not value.is_floating_point():
            raise JacobianError(
                f"wrt={self.wrt!r} is {_dtype(value)}, which has no gradient; "
                "take a floating-point tensor behind it, such as the output of an embedding."
            )
        if self.given is not None:
            self.leaf = injected = self.given
        else:
            self.leaf = value.detach().clone().requires_grad_(self.graph)
            torch.set_grad_enabled(self.graph)
            injected = self.leaf.clone()  # A leaf that requires grad may not be changed in place; its copy may.
        self.widest_bytes = value.nbytes
        if self.of == self.wrt:
            self.value = injected
            raise StopForward
        return injected

    def subgraph(self, run: Callable[[Tensor], Tensor]) -> Subgraph:
        """What lies between the two, once the forward has come to `of`."""
        assert self.value is not None and self.leaf is not None
        if not self.value.is_floating_point():
            raise JacobianError(f"of={self.of!r} is {_dtype(self.value)}, which cannot be differentiated.")
        if self.graph and not self.value.requires_grad:
            raise JacobianError(independent(self.of, self.wrt))
        only_call = self.calls.only_call() if self.calls is not None else None
        return Subgraph(self.value, self.leaf, self.widest_bytes, run, only_call)

    def explain_failure(self, core: nn.Module) -> str:
        """The message for a forward that did not come to `of` behind `wrt`."""
        for role, site in (("of", self.of), ("wrt", self.wrt)):
            if role == "of" and parameter_named(core, site) is not None:
                return f"of={site!r} is a parameter, which depends on nothing in a forward; give a tensor's site."
            if site not in self.seen and not (role == "wrt" and parameter_named(core, site) is not None):
                return unknown(role, site, core, self.seen)
        return f"of={self.of!r} is computed before wrt={self.wrt!r}, so it cannot depend on it; swap the two."


class _LinearCalls:
    """The calls of the linear layer whose weight or bias `wrt` is, if it is that: input and output of each."""

    def __init__(self, core: nn.Module, wrt: str) -> None:
        path, _, attribute = wrt.rpartition(".")
        is_linear = path and type(module_at(core, path)) is nn.Linear and attribute in ("weight", "bias")
        self.owner = path if is_linear else ""
        """The layer's name; "" where there is none, or where it was called again."""
        self.is_bias = attribute == "bias"
        self.calls: list[tuple[Tensor, Tensor, GradientEdge]] = []
        self.input: Tensor | None = None

    def note(self, site: str, value: Tensor, of: str) -> Tensor | None:
        """Note a tensor where it is the layer's; the tensor that the forward goes on with, or None for the same."""
        if site == f"{self.owner}:in" or site.startswith(f"{self.owner}#"):
            self.input = value.detach().clone() if not self.calls and "#" not in site else None
            if "#" in site:
                self.owner = ""  # Called again: the weight's Jacobian is no longer that of one call.
                self.calls.clear()
        elif site == self.owner and self.input is not None and value.requires_grad and site != of:
            # After an in-place operation on a view, as a linear layer's output may be, its edge is no longer on the
            # path to `of`; that of a copy is.
            output = value.clone()
            self.calls.append((self.input, output, get_gradient_edge(output)))
            return output
        return None

    def only_call(self) -> LinearCall | None:
        """The call, where there was one only."""
        return LinearCall(*self.calls[0], self.is_bias) if len(self.calls) == 1 else None


def independent(of: str, wrt: str) -> str:
    """The message where `of` does not depend on `wrt`."""
    return (
        f"of={of!r} does not depend on wrt={wrt!r} in this forward; "
        "take a `wrt` on its path, and look for detach() or no_grad() between the two."
    )


def unknown(role: str, site: str, core: nn.Module, seen: Iterable[str]) -> str:
    """The message for a site that this forward does not have, with the nearest names."""
    known = [*seen, *(parameter_names(core) if role == "wrt" else ())]
    return (
        f"{role}={site!r} is no site in this forward of {type(unwrapped(core)).__name__}."
        f"{did_you_mean(site, known)} It has: {shortlist(known)}."
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
