"""One forward of a quiet model, cut at `wrt` and stopped at `of`: the piece of graph that a Jacobian is taken of.

What comes before `wrt` builds no graph, so integer inputs and frozen layers do no harm there. At `wrt` the tensor is
replaced by a leaf of our own, so the Jacobian is that of everything after it, in-place operations included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.errors import JacobianError, did_you_mean
from gradlab.taps.sites import leaves, module_names, parameter_names, replace_leaves, shortlist, unwrapped
from gradlab.taps.visit import visiting


@dataclass(frozen=True)
class Region:
    """The graph between two tensors of one forward."""

    of: Tensor
    """[*out], with a graph that leads to `wrt`."""
    wrt: Tensor
    """[*in], a leaf: ours, or the model's parameter."""
    widest_bytes: int
    """Size of the largest tensor seen between them."""


def parameter_named(model: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter of that qualified name, or None. A shared parameter answers to each of its names."""
    path, _, attribute = name.rpartition(".")
    owners = [module for module, its_path in module_names(model).items() if its_path == path]
    return owners[0]._parameters.get(attribute) if owners else None


def replay(core: nn.Module, inputs: Any, *, of: str, wrt: str) -> Region:
    """Run a quiet model from its inputs to `of`, with a graph from `wrt` on.

    Args:
        core: the model, inside `quiet`.
        inputs: a tensor, a tuple of arguments or a mapping of keyword arguments. The model gets copies.
        of: the site at which the forward is stopped.
        wrt: the site or the parameter where the graph begins.
    Raises:
        JacobianError: if there is no such site, it has no gradient, or `of` does not depend on `wrt`.
    Cost: at most one forward.
    """
    parameter = parameter_named(core, wrt)
    if parameter is not None and not parameter.is_floating_point():
        raise JacobianError(f"wrt={wrt!r} is {_dtype(parameter)}, which has no gradient.")
    cut = _Cut(of, wrt, parameter)
    inputs = replace_leaves(inputs, {suffix: tensor.detach().clone() for suffix, tensor in leaves(inputs)})
    # Watching functional ops costs time and bars a few models; it is done only where a site is one.
    with visiting(core, cut, functional="/" in of + wrt), torch.set_grad_enabled(parameter is not None):
        try:
            _call(core, inputs)
        except _Reached:
            return cut.region()
    raise JacobianError(cut.why_not_reached(core))


class _Reached(BaseException):
    """`of` has been computed. Not an Exception, so that no `except Exception` of the model stops it."""


class _Cut:
    """The visitor that puts a leaf in the place of `wrt` and ends the forward at `of`."""

    def __init__(self, of: str, wrt: str, parameter: nn.Parameter | None) -> None:
        self.of, self.wrt = of, wrt
        self.leaf: Tensor | None = parameter
        self.value: Tensor | None = None
        self.widest_bytes = 0
        self.seen: dict[str, Tensor | None] = {}

    def __call__(self, site: str, value: Tensor) -> Tensor | None:
        self.seen.setdefault(site, None)
        if self.leaf is None:
            return self.begin(value) if site == self.wrt else None
        self.widest_bytes = max(self.widest_bytes, value.nbytes)
        if site == self.of:
            self.value = value
            raise _Reached
        return None

    def begin(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            raise JacobianError(
                f"wrt={self.wrt!r} is {_dtype(value)}, which has no gradient; "
                "take a floating-point tensor behind it, such as the output of an embedding."
            )
        self.leaf = value.detach().clone().requires_grad_()
        self.widest_bytes = value.nbytes
        torch.set_grad_enabled(True)
        injected = self.leaf.clone()  # A leaf that requires grad may not be changed in place; its copy may.
        if self.of == self.wrt:
            self.value = injected
            raise _Reached
        return injected

    def region(self) -> Region:
        assert self.value is not None and self.leaf is not None
        if not self.value.is_floating_point():
            raise JacobianError(f"of={self.of!r} is {_dtype(self.value)}, which cannot be differentiated.")
        if not self.value.requires_grad:
            raise JacobianError(independent(self.of, self.wrt))
        return Region(self.value, self.leaf, self.widest_bytes)

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
