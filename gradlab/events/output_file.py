"""A file that only grows: buffered, flushed at intervals without a thread, safe across fork, clear when it fails."""

from __future__ import annotations

import errno
import io
import os
import time
from pathlib import Path

from gradlab.errors import EventError, GradlabError, MachineError

_MACHINE_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


class OutputFile:
    """Collects bytes and writes them at `buffer_bytes`, every `flush_seconds` (looked at in `write`), and on `flush`.

    A child process that inherits it by fork writes nothing: not what the parent has collected, and nothing of its own.
    Once a write fails the file is closed and what it had collected is gone: `closed` is true and `write` raises.
    One thread at a time may use it. (Above 64 KiB a buffer costs more: the allocator maps its pages anew each time.)

    Raises:
        MachineError: from the constructor, if the place cannot be written to (permission, read-only, full).
        FileExistsError: from the constructor, if the file is there and `append` is false. Nothing is ever overwritten.
        EventError: from the constructor for any other reason, and from `write` and `flush`.
    """

    def __init__(
        self, path: Path, *, append: bool = False, flush_seconds: float = 5.0, buffer_bytes: int = 1 << 16
    ) -> None:
        self.path = path
        self._raw: io.RawIOBase | None = _open(path, "ab" if append else "xb")
        self._pid = os.getpid()
        self._flush_seconds = flush_seconds
        self._buffer_bytes = buffer_bytes
        self._chunks: list[bytes] = []
        self._pending_bytes = 0
        self._due = time.monotonic() + flush_seconds

    @property
    def closed(self) -> bool:
        """Whether it was closed, by `close` or by a failed write."""
        return self._raw is None

    def write(self, data: bytes) -> None:
        """Take `data`, whole or (if it raises) not at all."""
        self._check_usable()
        self._chunks.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= self._buffer_bytes or time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system, so that another process can read it."""
        raw = self._check_usable()
        pending = memoryview(b"".join(self._chunks))
        self._chunks.clear()
        self._pending_bytes = 0
        try:
            while pending:
                pending = pending[raw.write(pending) :]
        except OSError as error:
            self._let_go()
            raise EventError(
                f"cannot write to {self.path}: {reason(error)}. "
                "The file is closed; what it holds up to here can be read."
            ) from error
        self._due = time.monotonic() + self._flush_seconds

    def close(self) -> None:
        """Flush and close; in a forked child, close without writing. May be called twice."""
        if self._raw is None:
            return
        if os.getpid() == self._pid:
            self.flush()
        self._let_go()

    def _check_usable(self) -> io.RawIOBase:
        if self._raw is None:
            raise EventError(f"{self.path} is closed; nothing more can be written to it.")
        if os.getpid() != self._pid:
            raise EventError(f"{self.path} belongs to process {self._pid}. Open a file of its own in a child process.")
        return self._raw

    def _let_go(self) -> None:
        raw, self._raw = self._raw, None
        self._chunks.clear()
        if raw is not None:
            raw.close()


def _open(path: Path, mode: str) -> io.RawIOBase:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_create(path.parent, error) from error
    try:
        return open(path, mode, buffering=0)  # type: ignore[return-value]
    except FileExistsError:
        raise
    except OSError as error:
        raise cannot_create(path, error) from error


def cannot_create(path: Path, error: OSError) -> GradlabError:
    """The error to raise when `path` cannot be made: MachineError where the machine forbids it."""
    kind = MachineError if error.errno in _MACHINE_ERRNOS else EventError
    return kind(f"cannot create {path}: {reason(error)}. Choose a folder that can be written to.")


def reason(error: OSError) -> str:
    """The operating system's words for `error`, beginning with a small letter."""
    words = error.strerror or str(error)
    return words[:1].lower() + words[1:]
