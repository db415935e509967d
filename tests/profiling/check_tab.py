"""Print as JSON what the PyTorch Profiler tab's own backend says of every trace below a folder while it reads them.

A program of its own, because the plugin changes logging for the whole process. By file: what it complains of, and the
steps in which it has found the optimizer.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

from torch_tb_profiler import consts
from torch_tb_profiler.profiler.data import RunProfileData
from torch_tb_profiler.profiler.node import ProfilerStepNode


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(folder: str) -> None:
    kept = Kept()
    logging.getLogger(consts.PLUGIN_NAME).addHandler(kept)
    found = {}
    for path in sorted(Path(folder).rglob("*.pt.trace.json*")):
        kept.lines = []
        with tempfile.TemporaryDirectory() as scratch:
            profile = RunProfileData.parse("rank0", 1, str(path), scratch)
        steps = {
            node.name: sum(child.name.startswith("Optimizer.step#") for child in _inside(node))
            for root in profile.tid2tree.values()
            for node in _inside(root)
            if isinstance(node, ProfilerStepNode)
        }
        found[str(path.relative_to(folder))] = {"complaints": kept.lines, "optimizers": steps}
    json.dump(found, sys.stdout)


def _inside(node):
    for child in node.children:
        yield child
        yield from _inside(child)


if __name__ == "__main__":
    main(sys.argv[1])
