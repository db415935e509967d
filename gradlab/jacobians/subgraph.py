"""One forward of a quiet model, cut at `wrt` and stopped at `of`: the piece of graph that a Jacobian is taken of.

What comes before `wrt` builds no graph, so integer inputs and frozen layers do no harm there. At `wrt` the tensor is
replaced by a leaf of our own, so the Jacobian is that of everything after it, in-place operations included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from gradlab.errors import JacobianError, did_you_mean, shortlist
from gradlab.sites.forward import forward_walk, forward_walk_at
from gradlab.sites.leaves import leaves, replace_leaves
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
class Region:
    """The graph between two tensors of one forward."""

    of: Tensor
    """[*out], with a graph that leads to `wrt`."""
    wrt: Tensor
    """[*in], a leaf: ours, or the model's parameter. On a live graph, with edges, both only tell shapes."""
    widest_bytes: int
    """Size of the largest tensor seen between them."""
    run: Callable[[Tensor], Tensor] | None
    """The tensor at `of` for another tensor in the place of `wrt`, by another forward; not for parameters."""
    layer: LinearCall | None = None
    """Where `wrt` is a parameter of a linear layer."""
    of_edge: GradientEdge | None = None
    wrt_edge: GradientEdge | None = None

    def with_widest(self, widest_bytes: int | None) -> Region:
        """The same, with what is known of it from another time."""
        return self if widest_bytes is None else replace(self, widest_bytes=widest_bytes)


def parameter_named(model: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter of that qualified name, or None. A shared parameter answers to each of its names."""
    path, _, attribute = name.rpartition(".")
    owner = module_at(model, path)
    if owner is None:
        return None
    # Not by getattr: a parametrised weight would be computed, which may change buffers.
    if isinstance(owner, torch.jit.ScriptModule):
        return dict(owner.named_parameters(recurse=False)).get(attribute)
    return owner._parameters.get(attribute)


def replay(core: nn.Module, inputs: Any, *, of: str, wrt: str, known: bool = False, graph: bool = True) -> Region:
    """Run a quiet model from its inputs to `of`, with a graph from `wrt` on.

    Args:
        core: the model, inside `quiet`.
        inputs: a tensor, a tuple of arguments or a mapping of keyword arguments. The model gets copies.
        of: the site at which the forward is stopped.
        wrt: the site or the parameter where the graph begins.
        known: whether both sites have been found before, so that few hooks will do. `widest_bytes` is then too low.
        graph: whether to build the graph; without, only `run` of the region is of use.
    Raises:
        JacobianError: if there is no such site, it has no gradient, or `of` does not depend on `wrt`.
    Cost: at most one forward.
    """
    parameter = parameter_named(core, wrt)
    if parameter is not None and not parameter.is_floating_point():
        raise JacobianError(f"wrt={wrt!r} is {_dtype(parameter)}, which has no gradient.")
    inputs = _copied(inputs)
    cut = _Cut(of, wrt, parameter, graph)
    cut.look_for_layer(core)
    if known and not (is_op(of) or is_op(wrt)):
        with forward_walk_at((of, wrt if parameter is None else cut.owner or of), core, cut):
            if cut.run(core, inputs):
                return cut.region(partial(_rerun, core, inputs, of, wrt))
        cut = _Cut(of, wrt, parameter, graph)
        cut.look_for_layer(core)
    # Watching functional ops costs time and bars a few models; it is done only where a site is one.
    with forward_walk(core, cut, functional=is_op(of) or is_op(wrt)):
        if cut.run(core, inputs):
            return cut.region(partial(_rerun, core, inputs, of, wrt))
    raise JacobianError(cut.why_not_reached(core))


def _rerun(core: nn.Module, inputs: Any, of: str, wrt: str, value: Tensor) -> Tensor:
    """The tensor at `of` where `value` stands in the place of the one at `wrt`, a site; for forward mode."""
    inputs = _copied(inputs)
    cut = _Cut(of, wrt, None, graph=True, leaf=value)
    has_op = is_op(of) or is_op(wrt)
    with forward_walk(core, cut) if has_op else forward_walk_at((of, wrt), core, cut):
        cut.run(core, inputs)
    assert cut.value is not None
    return cut.value


def _copied(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.detach().clone()
    return replace_leaves(inputs, {suffix: tensor.detach().clone() for suffix, tensor in leaves(inputs)})


class _Reached(BaseException):
    """`of` has been computed. Not an Exception, so that no `except Exception` of the model stops it."""


class _Cut:
    """The visitor that puts a leaf in the place of `wrt` and ends the forward at `of`."""

    def __init__(
        self, of: str, wrt: str, parameter: nn.Parameter | None, graph: bool, leaf: Tensor | None = None
    ) -> None:
        self.of, self.wrt = of, wrt
        self.parameter, self.given, self.graph = parameter, leaf, graph
        self.leaf: Tensor | None = parameter
        self.value: Tensor | None = None
        self.widest_bytes = 0
        self.seen: dict[str, Tensor | None] = {}
        self.owner = ""
        """The linear layer whose parameter is differentiated by, if any."""
        self.calls: list[tuple[Tensor, Tensor, GradientEdge]] = []
        self.layer_input: Tensor | None = None

    def run(self, core: nn.Module, inputs: Any) -> bool:
        """Whether a forward has come to `of`, behind `wrt`."""
        with torch.set_grad_enabled(self.parameter is not None and self.graph):
            try:
                _call(core, inputs)
            except _Reached:
                return True
        return False

    def __call__(self, site: str, value: Tensor) -> Tensor | None:
        self.seen.setdefault(site, None)
        if self.owner:
            new = self.see_layer(site, value)
            if new is not None:
                return new
        if self.leaf is None:
            return self.begin(value) if site == self.wrt else None
        self.widest_bytes = max(self.widest_bytes, value.nbytes)
        if site == self.of:
            self.value = value
            raise _Reached
        return None

    def look_for_layer(self, core: nn.Module) -> None:
        """Note the calls of the layer, where the parameter is one of an ordinary linear layer."""
        path, _, attribute = self.wrt.rpartition(".")
        layer = module_at(core, path)
        if path and type(layer) is nn.Linear and attribute in ("weight", "bias"):
            self.owner = path

    def see_layer(self, site: str, value: Tensor) -> Tensor | None:
        if site == f"{self.owner}:in" or site.startswith(f"{self.owner}#"):
            self.layer_input = value.detach().clone() if not self.calls and "#" not in site else None
            if "#" in site:
                self.owner = ""  # Called again: the weight's Jacobian is no longer that of one call.
                self.calls.clear()
        elif site == self.owner and self.layer_input is not None and value.requires_grad and site != self.of:
            # An in-place operation on a view, as a linear layer's output may be, would leave its edge aside.
            output = value.clone()
            self.calls.append((self.layer_input, output, get_gradient_edge(output)))
            return output
        return None

    def layer(self) -> LinearCall | None:
        return LinearCall(*self.calls[0], self.wrt.endswith(".bias")) if len(self.calls) == 1 else None

    def begin(self, value: Tensor) -> Tensor:
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
            raise _Reached
        return injected

    def region(self, run: Callable[[Tensor], Tensor]) -> Region:
        assert self.value is not None and self.leaf is not None
        if not self.value.is_floating_point():
            raise JacobianError(f"of={self.of!r} is {_dtype(self.value)}, which cannot be differentiated.")
        if self.graph and not self.value.requires_grad:
            raise JacobianError(independent(self.of, self.wrt))
        return Region(self.value, self.leaf, self.widest_bytes, run, self.layer())

    def why_not_reached(self, core: nn.Module) -> str:
        for role, site in (("of", self.of), ("wrt", self.wrt)):
            if role == "of" and parameter_named(core, site) is not None:
                return f"of={site!r} is a parameter, which depends on nothing in a forward; give a tensor's site."
            if site not in self.seen and not (role == "wrt" and parameter_named(core, site) is not None):
                return unknown(role, site, core, self.seen)
        return f"of={self.of!r} is computed before wrt={self.wrt!r}, so it cannot depend on it; swap the two."


def independent(of: str, wrt: str) -> str:
    """The text of the commonest mistake."""
    return (
        f"of={of!r} does not depend on wrt={wrt!r} in this forward; "
        "take a `wrt` on its path, and look for detach() or no_grad() between the two."
    )


def unknown(role: str, site: str, core: nn.Module, seen: Mapping[str, Any]) -> str:
    """The text for a site that this forward does not have, with the nearest names."""
    known = [*seen, *(parameter_names(core) if role == "wrt" else ())]
    return (
        f"{role}={site!r} is no site in this forward of {type(unwrapped(core)).__name__}."
        f"{did_you_mean(site, known)} It has: {shortlist(known)}."
    )


def _call(core: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return core(**inputs)
    return core(*inputs) if isinstance(inputs, tuple) else core(inputs)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
