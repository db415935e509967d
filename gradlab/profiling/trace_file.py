"""The trace file, in the dialect that TensorBoard's PyTorch Profiler tab reads right.

That tab (torch-tb-profiler 0.4.3) was written for the category names of an older torch. With today's names it shows
no device time, no data wait, no module tree and no backward; with four names put back it shows all of them. It drops
ranges that do not nest: trace_nesting.py moves those of gradlab.

Belongs here: the document and the saved file. Does not: the folder that the file goes to (writer.py).
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

from gradlab.profiling.analysis.events import STEP, UNFINISHED_STEP
from gradlab.profiling.recording import RecordedWindow
from gradlab.profiling.trace_nesting import nest_ranges

_OLD_NAME = {
    b"fwdbwd": b"forward_backward",
    b"user_annotation": b"cpu_op",
    b"cuda_runtime": b"runtime",
    b"cuda_driver": b"runtime",
}
_CATEGORY = re.compile(rb'"cat":\s*"(fwdbwd|user_annotation|cuda_runtime|cuda_driver)"')
_EVENTS = b'"traceEvents": ['
TRACE, RAW = ".pt.trace.json.gz", ".kineto.json.gz"


def tensorboard_dialect(raw: bytes, *, unfinished: int | None = None) -> bytes:
    """A Chrome trace as kineto writes it, rewritten for TensorBoard's tab. Only gradlab's own ranges are moved.

    Args:
        raw: the whole JSON document.
        unfinished: a step of which only a part was recorded. Its range is renamed, so that nobody averages over it.
    Returns:
        The document with the old category names and with `traceEvents` as its last key: the tab appends the device's
        utilisation at the last bracket of the file.
    Cost: about 20 ms a megabyte, most of them for the nesting.
    """
    head, events = _split(raw)
    if unfinished is not None:
        name, renamed = (f'"{name}{unfinished}"'.encode() for name in (STEP, UNFINISHED_STEP))
        events = events.replace(name, renamed)
    events = nest_ranges(events)
    events = _CATEGORY.sub(lambda match: b'"cat": "' + _OLD_NAME[match[1]] + b'"', events)
    return b"".join((head, b"\n", _EVENTS, events, b"]}\n"))


def _split(raw: bytes) -> tuple[bytes, bytes]:
    """The document up to `traceEvents`, with the keys that followed it moved in front, and the events themselves."""
    start, end = raw.find(_EVENTS), raw.rfind(b"\n  ]")
    tail = raw[end + 4 :].strip().removeprefix(b",").removesuffix(b"}")
    try:
        if start < 0 or end < start:
            raise ValueError("another layout")
        after = json.loads(b"{" + tail + b"}", strict=False)
        return raw[:start] + _keys(after), raw[start + len(_EVENTS) : end]
    except ValueError:  # not the layout that kineto writes today: parse it all, ten times slower
        document = json.loads(raw, strict=False)
        events = json.dumps(document.pop("traceEvents"))
        return b"{" + _keys(document), events[1:-1].encode()


def _keys(document: dict[str, object]) -> bytes:
    """Key-value pairs, each with a comma behind it; without the name, which is that of a scratch file."""
    return "".join(
        f"{json.dumps(key)}: {json.dumps(document[key])},\n" for key in document if key != "traceName"
    ).encode()


def save_traces(
    recorded: RecordedWindow, folder: Path, *, rank: int, stamp: int, keep_raw: bool = False
) -> dict[str, Path]:
    """Save a window's trace, zipped, somewhere in `folder`.

    Returns:
        By the name that each file is to have: `rank0.<stamp>.pt.trace.json.gz` in the dialect, and where `keep_raw`
        asks for it `rank0.kineto.json.gz`, untouched.
    """
    raw, packed = folder / "raw", folder / "packed"
    recorded.results.save(str(raw))
    document = raw.read_bytes()
    raw.unlink()
    dialect = tensorboard_dialect(document, unfinished=recorded.unfinished)
    packed.write_bytes(_zipped(dialect))
    files = {f"rank{rank}.{stamp}{TRACE}": packed}
    if keep_raw:
        untouched = folder / "untouched"
        untouched.write_bytes(_zipped(document))
        files[f"rank{rank}{RAW}"] = untouched
    return files


def _zipped(document: bytes) -> bytes:
    return gzip.compress(document, compresslevel=1)  # level 9 is eight times slower, a third smaller
