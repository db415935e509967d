"""Where a run began, for those who go on with it from somewhere else.

A run's `resolved.yaml` lies in the run folder, and it is resumed from any folder. Its modules still lie beside the
experiment file, or where else the first attempt could import from, and its relative paths still mean what they meant in
the folder in which the first attempt was started. Modules are looked for where the first attempt found them. The
working directory is left alone: what a script may do to it, gradlab does not; where a path may mean another file now,
that is said, with the folder to resume from.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlab.config.class_paths import importable
from gradlab.errors import ConfigError
from gradlab.runs.folder import RunFolder, read_json

_ABSENT_WORDS = ("not found", "no such", "does not exist", "doesn't exist", "not exist", "cannot find")


@dataclass(frozen=True)
class Origin:
    """The start of the first attempt."""

    experiment: Path
    """The experiment file."""
    folder: Path
    """The working directory."""
    imports: tuple[Path, ...] = ()
    """Folders that came before Python's own in `sys.path`: PYTHONPATH, or the working directory with `python -m`."""

    @classmethod
    def here(cls, experiment: Path) -> Origin:
        """Of a run that starts now."""
        return cls(experiment.absolute(), Path.cwd(), tuple(_before_python()))

    @classmethod
    def of(cls, run: RunFolder) -> Origin:
        """Of a run that has a folder; what its record lacks is as it is here."""
        record = read_json(run.record) or {}
        imports = tuple(Path(entry) for entry in record.get("imports", ()))
        return cls(Path(record.get("experiment", run.resolved)), Path(record.get("folder", Path.cwd())), imports)

    @property
    def home(self) -> Path:
        """The folder beside whose files the modules of the experiment are looked for first."""
        return self.experiment.parent

    @property
    def is_elsewhere(self) -> bool:
        """Whether the run began in another folder than this process."""
        return self.folder.resolve() != Path.cwd().resolve()

    def record(self) -> dict[str, Any]:
        """What `record.json` keeps of it."""
        return {
            "experiment": str(self.experiment),
            "folder": str(self.folder),
            "imports": [str(entry) for entry in self.imports],
        }

    def importing(self) -> AbstractContextManager[None]:
        """While open, what the first attempt could import can be imported."""
        return importable(self.home, *self.imports)

    @contextmanager
    def naming_folder(self) -> Iterator[None]:
        """Let an error about a file that is not there name the folder in which the run began."""
        try:
            yield
        except Exception as error:
            self.explain(error)
            raise

    def explain(self, error: BaseException) -> None:
        """Add the folder in which the run began to an error that may come from a relative path."""
        if self.is_elsewhere and _may_be_about_a_file(error):
            error.add_note(f"The run began in {self.folder}; a relative path means another file here. Resume it there.")

    def moved_paths(self, settings: Any) -> Iterator[str]:
        """A sentence for each relative path among the settings that was something where the run began."""
        if not self.is_elsewhere:
            return
        for name, text in _texts(settings):
            if text and not os.path.isabs(text) and "\0" not in text and (self.folder / text).exists():
                absent = "" if Path(text).exists() else ", which does not exist"
                yield (
                    f"the run began in {self.folder}, where {name} names {text!r}; from here that is "
                    f"{Path(text).absolute()}{absent}. Resume it there to read the same files."
                )


def _before_python() -> Iterator[Path]:
    """The entries of `sys.path` before the standard library, without the folder of the program itself."""
    program = Path(sys.argv[0]).absolute().parent if os.path.basename(sys.argv[0]).startswith("gradlab") else None
    library = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platstdlib")}
    for entry in sys.path:
        if entry in library or entry.endswith(".zip"):
            return
        folder = Path(entry).absolute()
        if folder.is_dir() and folder != program:
            yield folder


def _may_be_about_a_file(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a file is not there."""
    while error is not None:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            return True
        text = str(error).lower()
        if not isinstance(error, ConfigError) and any(words in text for words in _ABSENT_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text among nested settings, with its name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, f"{name}.{index}")
    elif isinstance(value, str | os.PathLike):
        yield name, os.fspath(value)
