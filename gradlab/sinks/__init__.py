"""Where results go: the Sink protocol, and sinks for TensorBoard, JSON lines, a table, memory and your function.

Start at protocol.py, what a sink can do · scalars.py a frame as a few named numbers, for those that hold no vectors.

Belongs here: whatever turns frames, scalars, findings and Jacobian blocks into a record. Does not: tensors.
A sink that fails raises; the Monitor then switches it off, says so once, and training goes on.
"""

from __future__ import annotations

from gradlab.sinks.callback import CallbackSink
from gradlab.sinks.csv import CsvSink
from gradlab.sinks.findings_file import FindingsFile
from gradlab.sinks.jsonl import JsonlSink
from gradlab.sinks.memory import MemorySink
from gradlab.sinks.protocol import Sink
from gradlab.sinks.tensorboard import TensorBoardSink
from gradlab.sinks.trackers import sinks_of_trackers

__all__ = [
    "CallbackSink",
    "CsvSink",
    "FindingsFile",
    "JsonlSink",
    "MemorySink",
    "Sink",
    "TensorBoardSink",
    "sinks_of_trackers",
]
