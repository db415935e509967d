"""The calls of modules and of functional ops in a forward, by position: what there is to do at each is found once.

What has to be done at a site is worked out on its first coming and found again by position: the calls of a module by
their number, the functional ops inside a call by a tree of the ops that came before. No name is built on a step that
repeats another.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from gradlab.sites.names import input_site, numbered, op_site, output_site
from gradlab.sites.ops import op_of_site
from gradlab.taps.plan import Plan, Target


class OpNode:
    """A place in the sequence of functional ops of one call of a module: what comes next, and what is done with it."""

    __slots__ = ("counts", "module_site", "next", "target")

    def __init__(self, module_site: str, counts: Counter[str], target: Target | None = None) -> None:
        self.module_site = module_site
        self.counts = counts
        self.target = target
        self.next: dict[Any, OpNode] = {}

    def grow(self, function: Any, result: Any, plan: Plan) -> OpNode:
        """Follow an op that was not met here before. One that is no site leads back to where it is called."""
        op = op_of_site(function, result)
        if op is None:
            self.next[function] = self
            return self
        number = self.counts[op]
        site = op_site(self.module_site, op, number)
        target = plan.target(site) if type(result) is Tensor else SeveralTargets(site)
        child = self.next[function] = OpNode(self.module_site, self.counts + Counter((op,)), target)  # type: ignore[arg-type]
        return child


class SeveralTargets:
    """Stands for the targets of a result that is no single tensor: they are looked up by name."""

    __slots__ = ("site",)

    def __init__(self, site: str) -> None:
        self.site = site


class Call:
    """The first, second, ... call of a module in a pass."""

    __slots__ = ("known", "ops", "site", "target")

    def __init__(self, site: str) -> None:
        self.site = site
        self.ops = OpNode(site, Counter())
        self.known = False
        self.target: Target | None = None


class WatchedModule:
    """One module under one plan."""

    __slots__ = ("calls", "is_root", "name")

    def __init__(self, name: str, *, is_root: bool) -> None:
        self.name = name
        self.is_root = is_root
        self.calls: list[Call] = []

    def output_site(self, call: Call) -> str:
        """The site of what a call returns."""
        return output_site(call.site, is_root=self.is_root)

    def input_site(self, call: Call) -> str:
        """The site of what a call is given."""
        return input_site(call.site, is_root=self.is_root)


class CallCounts:
    """How often each module was called in a pass (or in the recomputation of a segment), as one thread has called it.

    The last few scopes are remembered: a recomputation inside a forward must not begin the forward's count anew.
    """

    __slots__ = ("_by_scope", "_now", "_scope")

    def __init__(self) -> None:
        self._scope: object = None
        self._now: dict[WatchedModule, int] = {}
        self._by_scope: dict[object, dict[WatchedModule, int]] = {}

    def call(self, module: WatchedModule, scope: object) -> Call:
        """The next call of a module in a scope."""
        if scope is not self._scope:
            self._turn_to(scope)
        number = self._now.get(module, 0)
        self._now[module] = number + 1
        if number == len(module.calls):
            module.calls.append(Call(numbered(module.name, number + 1)))
        return module.calls[number]

    def running(self, module: WatchedModule, scope: object) -> Call | None:
        """The call of a module that was entered last in a scope; None where it was not called there."""
        if scope is not self._scope:
            self._turn_to(scope)
        number = self._now.get(module, 0)
        return module.calls[number - 1] if number else None

    def _turn_to(self, scope: object) -> None:
        self._scope = scope
        self._now = self._by_scope.pop(scope, {})
        self._by_scope[scope] = self._now
        while len(self._by_scope) > _MOST_SCOPES:
            del self._by_scope[next(iter(self._by_scope))]


_MOST_SCOPES = 4
