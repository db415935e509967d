"""Which optimizers are counted: those that were given, and those that take their place or join them later.

Belongs here: who owns which of the model's parameters, and whom to follow. Does not: when a step begins and ends
(`steps`), and what kinds of optimizers there are (`optimizers`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradlab.errors import TapError
from gradlab.optimizers import UnknownOptimizer, has_hooks, optimizer_list, optimizers_inside, parameters_of, runs_hooks


class CountedOptimizers:
    """The optimizers whose steps are counted. They are held weakly: their state is large.

    Args:
        given: optimizers of torch or of any kind that has a `step`; where left out, any of torch's that owns some of
            the parameters is counted.
        parameters: gives the parameters that the model has now.
    Raises:
        TapError: a given optimizer owns none of the model's parameters.
    """

    def __init__(self, given: Any, parameters: Callable[[], Mapping[str, nn.Parameter]]) -> None:
        self._parameters = parameters
        each = [real for one in optimizer_list(given) for real in self._in_place_of(one)]
        hooked = [one for one in each if runs_hooks(one)]
        self.without_hooks = [(one, self._known_as(one)) for one in each if not runs_hooks(one)]
        """Given objects whose `step` runs no hooks of torch's, each with the object that the listener gets for it."""
        known = [*hooked, *(known_as for _, known_as in self.without_hooks)]
        self.given_names = [_name(one) for one in known]
        """The class names of what was given."""
        self._refs: tuple[weakref.ref[Any], ...] = tuple(map(weakref.ref, known))
        self._with_hooks = tuple(map(weakref.ref, hooked))
        self._given_ids = {id(p) for one in known for p in parameters_of(one)}
        """Ids of the parameters of those that were given."""
        trained = [p for p in parameters().values() if p.requires_grad]
        self._left_out = [weakref.ref(p) for p in trained if id(p) not in self._given_ids]
        """Parameters that were to be trained from the beginning, and that nobody who was given owns."""
        self._followed: dict[int, tuple[Any, ...]] = {}
        for one in hooked:
            if not self.owned(one):
                raise TapError(
                    f"the optimizer {type(one).__name__} owns none of the model's parameters. Where it steps copies of "
                    f"them, leave it out and put the update into `with monitor.stepping():`."
                )

    def _in_place_of(self, given: Any) -> list[Any]:
        """What steps for a given optimizer: those inside of a dummy that has no parameter of the model itself."""
        inside = [] if self.owned(given) else [one for one in optimizers_inside(given) if self.owned(one)]
        return inside if runs_hooks(given) and inside else [given]

    def _known_as(self, given: Any) -> Any:
        """What the listener gets for an object without hooks: itself, or another where its parameters are unknown."""
        unknown = UnknownOptimizer(type(given).__name__, self._parameters)
        known_as = given if has_hooks(given) or self.owned(given) else unknown
        try:
            weakref.ref(known_as)
        except TypeError:
            return unknown
        return known_as

    @property
    def alive(self) -> list[Any]:
        """All that are counted and still there."""
        return [one for ref in self._refs if (one := ref()) is not None]

    @property
    def with_hooks(self) -> list[Optimizer]:
        """The given ones, as far as they are still there, on which hooks of their own are put."""
        return [one for ref in self._with_hooks if (one := ref()) is not None]

    def has_own_hooks(self, optimizer: Any) -> bool:
        """Whether an optimizer is one of `with_hooks`."""
        return any(ref() is optimizer for ref in self._with_hooks)

    def is_counted(self, optimizer: Any) -> bool:
        """Whether an optimizer is counted now."""
        return any(ref() is optimizer for ref in self._refs)

    def owned(self, optimizer: Any) -> list[Tensor]:
        """The model's parameters among those of an optimizer."""
        ours = {id(p) for p in self._parameters().values()}
        return [p for p in parameters_of(optimizer) if id(p) in ours]

    def is_to_be_followed(self, optimizer: Any) -> bool:
        """Whether to count an optimizer that nobody has given; looked up anew where its or the model's parameters are
        others by now."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        now = self._parameters()
        known = self._followed.get(id(optimizer))
        if known is None or known[0]() is not optimizer or known[1] != size or known[2] is not now:
            owned = {id(p) for p in self.owned(optimizer)}
            left_out = {id(p) for ref in self._left_out if (p := ref()) is not None}
            follow = bool(owned and (not self._given_ids or owned & self._given_ids or owned - left_out))
            known = self._followed[id(optimizer)] = (weakref.ref(optimizer), size, now, follow)
        return bool(known[3])

    def add(self, optimizer: Any, *, beside_all: bool = False) -> None:
        """Count one more. It takes the place of those that own some of the same parameters, unless `beside_all`."""
        others = [one for one in self.alive if beside_all or not _share(one, optimizer)]
        others = [one for one in others if one is not optimizer and self.owned(one)]
        self._refs = tuple(map(weakref.ref, [*others, optimizer]))
        self._given_ids |= {id(p) for p in parameters_of(optimizer)} if self._given_ids else set()

    def parameters_changed(self) -> None:
        """Those whose parameters are all gone from the model are waited for no longer, where others are left."""
        left: Sequence[Any] = [one for one in self.alive if self.owned(one)]
        if left:
            self._refs = tuple(map(weakref.ref, left))


def _share(one: Any, other: Any) -> bool:
    """Whether two optimizers own some of the same parameters."""
    mine = {id(p) for p in parameters_of(other)}
    return one is not other and any(id(p) in mine for p in parameters_of(one))


def _name(optimizer: Any) -> str:
    return optimizer.name if isinstance(optimizer, UnknownOptimizer) else type(optimizer).__name__
