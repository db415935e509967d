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
def importable(folder: Path, *more: Path) -> Iterator[None]:
    """While open, modules in `folder` come first, as they do for a script in that folder; then those in `more`.

    Open for as long as a run lasts: what is imported late, in a training step or in a loader's worker that is spawned
    (which is given `sys.path` as it is then), has to be found too. It may be opened again while it is open.

    Modules of the same name that came from another experiment's folder are forgotten, so that two experiments of one
    process can each have a `model.py`.
    """
    folders = [place.resolve() for place in (folder, *more)]
    names = {path.stem for place in folders for path in _inside(place)}
    for name, home in list(_OURS.items()):
        if home not in folders and name.partition(".")[0] in names:
            sys.modules.pop(name, None)
            del _OURS[name]
    before = {name.partition(".")[0] for name in sys.modules}
    entries = [str(place) for place in folders]
    sys.path[:0] = entries
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for entry in entries:
            if entry in sys.path:
                sys.path.remove(entry)
        for name, module in list(sys.modules.items()):
            file = _home_of(module) if name.partition(".")[0] not in before else None
            for place in folders:
                if file and _beside(file, place):
                    _OURS.setdefault(name, place)


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
        try:
            value = _member(value, parts[:done], part, folder)
        except _NoMember as error:
            raise ConfigError(f"{error}{where_found(path, folder)}") from None
    if not isinstance(value, type):
        raise ConfigError(f"{path} is {_kind(value)}, not a class.")
    return value


def where_found(path: str, folder: Path) -> str:
    """Which file the module of a class path is, as a sentence led by a space, where it may not be the one meant.

    That is one of Python's own, or one that hides a module beside the experiment. "" for any other.
    """
    top = path.partition(".")[0]
    file = _home_of(sys.modules.get(top))
    if file and _beside(file, folder):
        return ""
    found = file or "built into Python"
    hidden = _names_in(folder).get(top)
    if hidden is not None:
        return f" The module {top} that was found is {found}, not {hidden.name} beside the experiment: rename that one."
    return f" The module {top} that was found is {found}." if top in sys.stdlib_module_names else ""


def reason_clause(error: BaseException, folder: Path) -> str:
    """Why something failed, as the rest of a sentence: `: text` for gradlab's own, else ` at file:line: Type: text`.

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


class _NoMember(Exception):
    """A name that does not exist; its text is the sentence for that."""


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
    raise _NoMember(f"{whole} has no {part!r}.{did_you_mean(part, _members(owner), most=1)}")


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
    gone = "" if folder.is_dir() else f" The experiment's folder, {folder}, is not there any more."
    raise ConfigError(
        f"there is no module {name!r} (for {whole}), neither beside the experiment file nor installed.{near}{gone}"
    ) from None


def _failed(name: str, error: BaseException, folder: Path) -> ConfigError:
    return ConfigError(f"importing {name} failed{reason_clause(error, folder)}")


def _members(owner: Any) -> set[str]:
    """The public names in a module or class, submodules that nobody imported yet included."""
    names = {name for name in dir(owner) if not name.startswith("_")}
    if isinstance(owner, ModuleType):
        names |= {module.name for module in pkgutil.iter_modules(getattr(owner, "__path__", []))}
    return names


def _names_in(folder: Path) -> dict[str, Path]:
    """The modules and packages in a folder, by name; not folders that are packages only by lying there."""
    inside = _inside(folder)
    modules = {path.stem: path for path in inside if path.suffix == ".py"}
    return modules | {path.name: path for path in inside if (path / "__init__.py").is_file()}


def _inside(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where that cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _home_of(module: object) -> str | None:
    """The file of a module; of a package without one, its folder."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    try:
        return next(iter(module.__path__), None)  # type: ignore[attr-defined]
    except Exception:  # no package, or an object that somebody has put there
        return None


def _kind(value: Any) -> str:
    if inspect.ismodule(value):
        return "a module"
    return "a function" if inspect.isroutine(value) else f"a value of type {type(value).__name__}"
