"""What is put on all modules of a process: a call before each of their calls, and a count of when they were built.

Belongs here: the two methods of `nn.Module` that are replaced. Does not: what is made of it (`watching`,
`model_search`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class ModuleCalls:
    """Calls a function before each call of any module, from `begin` to `end`.

    `Module.__call__` has a line more meanwhile; torch's global module hooks would be too late, since a module's call is
    under way when they run, and the model may still be moved, sharded or wrapped until then.
    """

    def __init__(self, before_call: Callable[[nn.Module], None]) -> None:
        self._before_call = before_call
        self._original: Any = None
        self._ours: Any = None

    def begin(self) -> None:
        """From now on."""
        if self._ours is not None:
            return
        original = self._original = nn.Module.__call__
        before_call = self._before_call

        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            before_call(module)
            return original(module, *args, **kwargs)

        self._ours = __call__
        nn.Module.__call__ = __call__  # type: ignore[method-assign]

    def end(self) -> None:
        """No longer. What somebody has put on top of ours meanwhile stays."""
        if self._ours is not None and nn.Module.__call__ is self._ours:
            nn.Module.__call__ = self._original  # type: ignore[method-assign]
            self._ours = None


class ModuleAges:
    """Which modules were built after which moment; moments are counted by modules that are built.

    A module that was copied or unpickled, or built before `install`, counts as old.
    """

    def __init__(self) -> None:
        self.now = 0
        """The moment: how many modules have been built since `install`."""
        self._born: dict[int, int] = {}  # by id: that of a module that is gone is overwritten by the next one there
        self._is_installed = False

    def install(self) -> None:
        """Count the modules that are built from now on."""
        if self._is_installed:
            return
        self._is_installed = True
        build = nn.Module.__init__

        @functools.wraps(build)
        def __init__(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            if not torch.compiler.is_compiling():
                self.now += 1
                self._born[id(module)] = self.now
            build(module, *args, **kwargs)

        nn.Module.__init__ = __init__  # type: ignore[assignment, method-assign]

    def is_younger(self, module: nn.Module, than: int) -> bool:
        """Whether a module was built after a moment, which is a value of `now`."""
        return self._born.get(id(module), 0) > than
