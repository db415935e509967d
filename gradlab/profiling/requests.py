"""Requests for a window from outside the training loop: files in the run's profile folder. Without torch.

Belongs here: both sides of it. `gradlab profile RUN` writes a request and reads the answer; the run polls for requests
and answers them. Rank zero also writes one to make all ranks open a window at the same step. Files, because no signal
and no port passes every container and every shared disk.

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

from gradlab.profiling.window import Reason, ReasonKind

REQUEST, ANSWER = "request.json", "answer.json"
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Request:
    """A window that is asked for."""

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


def request_window(folder: Path, *, active: int) -> str:
    """Ask the run whose profiles are in `folder` for a window of `active` steps; returns the id of the request."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANSWER).unlink(missing_ok=True)
    request_id = uuid.uuid4().hex[:8]
    _write(folder / REQUEST, {"id": request_id, "active": active})
    return request_id


def request_from_all_ranks(folder: Path, reason: Reason, *, active: int) -> None:
    """Ask all ranks, as rank zero, to open a window at the same step."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / REQUEST).exists():
        request = {"id": uuid.uuid4().hex[:8], "active": active, "kind": reason.kind, "detail": reason.detail}
        _write(folder / REQUEST, request)


def withdraw_request(folder: Path, request_id: str) -> None:
    """Take a request back that nobody has answered."""
    if (read := read_request(folder)) is not None and read.id == request_id:
        (folder / REQUEST).unlink(missing_ok=True)


def read_answer(folder: Path, request_id: str) -> dict[str, Any] | None:
    """The run's answer to a request, {"window": name} or {"error": sentence}; None as long as there is none."""
    found = _read(folder / ANSWER)
    return found if found is not None and found.get("id") == request_id else None


def read_request(folder: Path) -> Request | None:
    """The request that lies in a folder, if any."""
    found = _read(folder / REQUEST)
    try:
        return Request(**found) if found and isinstance(found["active"], int) and found["active"] > 0 else None
    except (KeyError, TypeError):
        return None


class RequestPoller:
    """The run's side: looks for a request once a second at most. Cost: 0.1 microseconds a step."""

    def __init__(self, folder: Path, *, rank: int, world_size: int) -> None:
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._last_id = ""  # of the last request that was due
        self._next_poll = 0.0
        self._pending: Request | None = None

    def due(self, step: int, step_seconds: float) -> Request | None:
        """The request whose window begins at `step`, the one that is about to run."""
        if self._pending is None:
            now = time.monotonic()
            if now < self._next_poll:
                return None
            self._next_poll = now + _POLL_SECONDS
            self._pending = self._poll(step, step_seconds)
        request = self._pending
        if request is None or request.step is None or step < request.step:
            return None
        self._pending = None
        self._last_id = request.id
        return request

    def answer(self, request_id: str, **answer: str) -> None:
        """Write, as rank zero, what has become of a request, and remove the request."""
        if self._rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self._folder / ANSWER, {"id": request_id, **answer})
            withdraw_request(self._folder, request_id)

    def _poll(self, step: int, step_seconds: float) -> Request | None:
        request = read_request(self._folder)
        if request is None or request.id == self._last_id:
            return None
        if request.step is None and self._rank == 0:
            # Far enough ahead that every other rank has polled by then.
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
