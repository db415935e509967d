"""Class paths to classes: importing users' modules beside the experiment file, and saying what failed.

Belongs here: finding a class by its dotted path. Does not: its arguments (`signatures`) or what it must derive from
(`sections`).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gradlab.errors import ConfigError, GradlabError, did_you_mean

_OURS: dict[str, Path] = {}  # modules imported from an experiment's folder -> that folder


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """While open, modules in `folder` come first, as they do for a script in that folder.

    Modules of the same name that came from another experiment's folder are forgotten, so that two experiments of one
    process can each have a `model.py`.
    """
    entry = str(folder.resolve())
    for name, home in list(_OURS.items()):
        if home != folder.resolve() and name.partition(".")[0] in _names_in(folder):
            sys.modules.pop(name, None)
            del _OURS[name]
    before = {name.partition(".")[0] for name in sys.modules}
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and name.partition(".")[0] not in before and _beside(file, folder):
                _OURS[name] = folder.resolve()


def find_class(path: str, folder: Path) -> type:
    """The class at a dotted path.

    Raises:
        ConfigError: with a sentence, if a module or a name on the path does not exist, if importing it fails (with the
            file and line in the user's code), or if it is no class.
    """
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{path!r} is no class path; one looks like my_module.MyClass.")
    value: Any = _import(parts[0], folder, whole=path)
    for done, part in enumerate(parts[1:], start=1):
        value = _member(value, parts[:done], part, folder)
    if not isinstance(value, type):
        raise ConfigError(f"{path} is {_kind(value)}, not a class.")
    return value


def told(error: BaseException, folder: Path) -> str:
    """How an exception continues a sentence: `: text` for gradlab's own, else ` at file:line: Type: text`.

    The line is the innermost one in code beside the experiment; without such code there is none.
    """
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    if isinstance(error, GradlabError):
        return f": {text}"
    return f"{_line_of(error, folder)}: {type(error).__name__}{f': {text}' if text else ''}"


def _line_of(error: BaseException, folder: Path) -> str:
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    beside = [(Path(file), line) for file, line in places if _beside(file, folder)]
    if not beside:
        return ""
    file, line = beside[-1]
    return f" at {file.relative_to(folder.resolve())}:{line}"


def _beside(file: str, folder: Path) -> bool:
    """Whether a source file is the user's: in the experiment's folder, but not in an environment that lies there."""
    path = Path(file)
    return path.is_relative_to(folder.resolve()) and "site-packages" not in path.parts


def _member(owner: Any, path: list[str], part: str, folder: Path) -> Any:
    """`owner.part`: an attribute, or a submodule that nobody imported yet."""
    try:
        return getattr(owner, part)
    except AttributeError:
        pass
    except Exception as error:
        raise _failed(".".join(path), error, folder) from error
    whole = ".".join(path)
    if isinstance(owner, ModuleType) and hasattr(owner, "__path__"):
        try:
            return _import(f"{whole}.{part}", folder, whole=f"{whole}.{part}")
        except ModuleNotFoundError:
            pass
    raise ConfigError(f"{whole} has no {part!r}.{did_you_mean(part, _members(owner), most=1)}")


def _import(name: str, folder: Path, *, whole: str) -> ModuleType:
    """A module.

    Raises:
        ModuleNotFoundError: if `name` is a submodule that does not exist.
        ConfigError: if it is a top-level module that does not exist, or any module that fails.
    """
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == name):
            raise _failed(name, error, folder) from error
        if "." in name:
            raise
    near = did_you_mean(name, {module.name for module in pkgutil.iter_modules()}, most=1)
    raise ConfigError(
        f"there is no module {name!r} (for {whole}), neither beside the experiment file nor installed.{near}"
    ) from None


def _failed(name: str, error: BaseException, folder: Path) -> ConfigError:
    return ConfigError(f"importing {name} failed{told(error, folder)}")


def _members(owner: Any) -> set[str]:
    """The public names in a module or class, submodules that nobody imported yet included."""
    names = {name for name in dir(owner) if not name.startswith("_")}
    if isinstance(owner, ModuleType):
        names |= {module.name for module in pkgutil.iter_modules(getattr(owner, "__path__", []))}
    return names


def _names_in(folder: Path) -> set[str]:
    return {module.name for module in pkgutil.iter_modules([str(folder)])}


def _kind(value: Any) -> str:
    if inspect.ismodule(value):
        return "a module"
    return "a function" if inspect.isroutine(value) else f"a value of type {type(value).__name__}"
