"""What runs first in an attached process: takes our folder off `sys.path` again, then waits for an import of torch.

Only the standard library is imported here; a process that never imports torch pays a millisecond.
"""

from __future__ import annotations

import atexit
import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def start(sitecustomize: str) -> None:
    """Called by our `sitecustomize`.

    Args:
        sitecustomize: its file.
    """
    _remove_from_path(os.path.dirname(sitecustomize))
    if "torch" in sys.modules:
        _begin_watching()
        return
    finder = _TorchFinder()
    sys.meta_path.insert(0, finder)
    atexit.register(_say_if_not_imported, finder)


def _remove_from_path(folder: str) -> None:
    """Take our folder off `sys.path`, and import the `sitecustomize` that it has hidden, if there is one."""
    sys.path[:] = [path for path in sys.path if path != folder]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if ours is not None:
            sys.modules["sitecustomize"] = ours


class _TorchFinder:
    """Finds torch as the other finders do, and begins to watch once it has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of torch, whose loader also begins to watch; None for everything else."""
        if name != "torch":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # the class's own again
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _begin_watching()

        loader.exec_module = exec_module


def _say_if_not_imported(finder: _TorchFinder) -> None:
    """At the end of the command's own process: say so where torch has not been imported."""
    if finder not in sys.meta_path:
        return
    from gradlab.attach.closing import close_command
    from gradlab.attach.options import AttachOptions

    options = AttachOptions.from_environment()
    if options.is_command:
        close_command(options, code=0, reason="done", nothing="this script has not imported torch.")


def _begin_watching() -> None:
    try:
        from gradlab.attach.watching import begin

        begin()
    except Exception as error:
        print(f"gradlab: this process is not watched: {type(error).__name__}: {error}", file=sys.stderr)
