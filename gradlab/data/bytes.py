"""Bytes: predict the next byte of real text that is on every machine with Python, its own standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from gradlab.data.in_memory import Samples, TensorData
from gradlab.errors import MachineError, UsageError


class Bytes(TensorData):
    """Windows of `context` bytes, and the bytes that follow them. Whole files are kept for validation."""

    def __init__(
        self,
        context: int = 64,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        max_bytes: int = 1_000_000,
        folder: str | None = None,
        pattern: str = "*.py",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Choose them.

        Args:
            context: bytes in a window.
            batch_size: windows in a batch.
            val_fraction: the share of all bytes, in whole files, that is kept for validation.
            max_bytes: files are taken in the order of their names until they are this long.
            folder: where the files are; Python's standard library where left out.
            pattern: which files of the folder, a glob.
            seed: decides which files are kept for validation, and the order of the windows.
            num_workers: processes that load batches; 0 is fastest, since all is in memory.
        Raises:
            UsageError: an argument that cannot be.
        """
        super().__init__(batch_size=batch_size, val_fraction=val_fraction, seed=seed, num_workers=num_workers)
        self.check_count("context", context)
        self.check_count("max_bytes", max_bytes)
        self.context = context
        self.max_bytes = max_bytes
        self.folder = folder
        self.pattern = pattern
        self.train_files: list[Path] = []
        """The files that are trained on, known once the data is loaded."""
        self.val_files: list[Path] = []
        """The files that are kept for validation."""

    def samples(self) -> tuple[Samples, Samples]:
        """Inputs and targets int64 [n, context]; the targets are one byte further."""
        text = self._read()
        self.train_files, self.val_files = self._split_files(text)
        train = b"".join(text[path] for path in self.train_files)
        val = b"".join(text[path] for path in self.val_files)
        return self._windows(train, "training"), self._windows(val, "validation")

    def _read(self) -> dict[Path, bytes]:
        """The files' contents in the order of their names, up to max_bytes in all; empty files are left out."""
        folder = Path(self.folder or sysconfig.get_path("stdlib"))
        text: dict[Path, bytes] = {}
        room = self.max_bytes
        for path in sorted(path for path in folder.glob(self.pattern) if path.is_file()):
            if room and (content := path.read_bytes()[:room]):
                text[path] = content
                room -= len(content)
        if len(text) < 2:
            problem = f"Bytes: {len(text)} files match {self.pattern!r} in {folder}; it takes two, one for validation."
            if self.folder is None:
                raise MachineError(f"{problem} This Python has no sources: give a folder of text files.")
            raise UsageError(f"{problem} Give another folder or pattern, or more max_bytes.")
        return text

    def _split_files(self, text: dict[Path, bytes]) -> tuple[list[Path], list[Path]]:
        """Training and validation files: by chance, as many for validation as fit into val_fraction of the bytes."""
        paths = list(text)
        room = self.val_fraction * sum(map(len, text.values()))
        val: set[Path] = set()
        for index in torch.randperm(len(paths), generator=torch.Generator().manual_seed(self.seed)).tolist():
            if len(text[paths[index]]) <= room:
                val.add(paths[index])
                room -= len(text[paths[index]])
        val = val or {min(paths, key=lambda path: len(text[path]))}
        return [path for path in paths if path not in val], [path for path in paths if path in val]

    def _windows(self, content: bytes, purpose: str) -> Samples:
        """Windows side by side over `content`; the end that fills none is left out."""
        if len(content) <= self.context:
            raise UsageError(
                f"Bytes: the {purpose} files hold {len(content)} bytes, too few for one window of context="
                f"{self.context}; the largest context is {len(content) - 1}. Or give more max_bytes."
            )
        data: Tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
        windows = data.unfold(0, self.context + 1, self.context)
        return windows[:, :-1], windows[:, 1:]
