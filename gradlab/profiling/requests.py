"""Windows on demand: how `gradlab profile RUN` asks a run in another process, through files in its profile folder.

No signal, no port, nothing that a container or a shared disk would stop. Without torch.

    request.json    what is asked for, with an id; rank zero adds the step at which all ranks begin
    answer.json     the id, and the window's directory or a sentence that says why there is none
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradlab.profiling.options import Reason, ReasonKind

REQUEST, ANSWER = "request.json", "answer.json"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Request:
    """What somebody asks for."""

    id: str
    active: int
    step: int | None = None
    """The step at which all ranks begin; None before rank zero has chosen it."""
    kind: ReasonKind = "demand"
    detail: str = ""

    @property
    def reason(self) -> Reason:
        """Why the window is opened."""
        return Reason(self.kind, self.detail)


def ask(folder: Path, *, active: int) -> str:
    """Ask the run whose profiles are in `folder` for a window of `active` steps; returns the id of the request."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANSWER).unlink(missing_ok=True)
    request = uuid.uuid4().hex[:8]
    _write(folder / REQUEST, {"id": request, "active": active})
    return request


def ask_ranks(folder: Path, reason: Reason, *, active: int) -> None:
    """Rank zero has a reason for a window, which all ranks are to open at the same step."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / REQUEST).exists():
        request = {"id": uuid.uuid4().hex[:8], "active": active, "kind": reason.kind, "detail": reason.detail}
        _write(folder / REQUEST, request)


def withdraw(folder: Path, request: str) -> None:
    """Take a request back that nobody has answered."""
    if (read := read_request(folder)) is not None and read.id == request:
        (folder / REQUEST).unlink(missing_ok=True)


def answer_to(folder: Path, request: str) -> dict[str, Any] | None:
    """What the run has answered to a request: {"window": name} or {"error": sentence}; None as long as it has not."""
    found = _read(folder / ANSWER)
    return found if found is not None and found.get("id") == request else None


def read_request(folder: Path) -> Request | None:
    """The request that lies in a folder, if any."""
    found = _read(folder / REQUEST)
    try:
        return Request(**found) if found and isinstance(found["active"], int) and found["active"] > 0 else None
    except (KeyError, TypeError):
        return None


class Inbox:
    """The run's side: looks for a request once a second at most. Cost: 0.1 microseconds a step."""

    def __init__(self, folder: Path, *, rank: int, world_size: int) -> None:
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._seen = ""
        self._next_look = 0.0
        self._waiting: Request | None = None

    def due(self, step: int, step_seconds: float) -> Request | None:
        """The request whose window begins at `step`, the one that is about to run."""
        if self._waiting is None:
            now = time.monotonic()
            if now < self._next_look:
                return None
            self._next_look = now + _POLL_SECONDS
            self._waiting = self._look(step, step_seconds)
        request = self._waiting
        if request is None or request.step is None or step < request.step:
            return None
        self._waiting = None
        self._seen = request.id
        return request

    def answer(self, request: str, **answer: str) -> None:
        """Rank zero says what has become of a request, and takes it away."""
        if self._rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self._folder / ANSWER, {"id": request, **answer})
            withdraw(self._folder, request)

    def _look(self, step: int, step_seconds: float) -> Request | None:
        request = read_request(self._folder)
        if request is None or request.id == self._seen:
            return None
        if request.step is None and self._rank == 0:
            # Far enough ahead that every other rank has looked by then.
            ahead = 0 if self._world_size == 1 else 2 + int(3 * _POLL_SECONDS / max(step_seconds, 1e-4))
            request = replace(request, step=step + ahead)
            if ahead:
                _write(self._folder / REQUEST, vars(request))
        return request if request.step is not None else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value) + "\n", encoding="utf-8")
    os.replace(draft, path)
