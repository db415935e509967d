"""The TensorBoard event format, written and read without torch, TensorFlow or protobuf.

Start at writer.py, one event file · templates.py, encode.py, hparams.py the bytes of a message · tfrecord.py,
output_file.py the bytes of the file · pyramid.py extremes over many steps · reader.py and decode.py the way back ·
image.py, markdown.py what a message shows.

Writing a frame of 200 sites by 5 statistics takes microseconds (`benchmarks/write.py`): a step is one record, its fixed
bytes are laid out once, and the checksum is computed in C.
"""

from __future__ import annotations

from gradlab.events.image import diverging, png
from gradlab.events.output_file import OutputFile
from gradlab.events.reader import EventValue, event_files, read_events
from gradlab.events.writer import EventWriter

__all__ = [
    "EventValue",
    "EventWriter",
    "OutputFile",
    "diverging",
    "event_files",
    "png",
    "read_events",
]
