"""TensorBoard's two ways of reading a logdir, as data providers: its Python multiplexer and its Rust data server."""

from __future__ import annotations

import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.data import provider, server_ingester
from tensorboard.util import grpc_util

LOADERS = ["python", "rust"]
KEEP_ALL = dict.fromkeys(["gradlab", "gradlab_findings", "gradlab_jacobian", "scalars", "text", "images"], 0)
_DEADLINE_SECONDS = 60.0


class Reader:
    """A data provider with short calls. It waits for the scalar `end`, which must be the last thing of every run."""

    def __init__(self, data_provider: Any, runs: set[str]) -> None:
        self.provider = data_provider
        self._context = context.RequestContext()
        self._wait_for(runs)

    def _wait_for(self, runs: set[str]) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while {run for run, tags in self.list("scalars", "scalars").items() if "end" in tags} != runs:
            assert time.monotonic() < deadline, f"TensorBoard did not read {runs}"
            time.sleep(0.02)

    def list(self, kind: str, plugin: str) -> Any:
        """{run: {tag: series}} of a plugin; `kind` is scalars, tensors or blob_sequences."""
        ask = getattr(self.provider, f"list_{kind}")
        return ask(self._context, experiment_id="", plugin_name=plugin)

    def read(self, kind: str, plugin: str, run: str, tag: str) -> Any:
        """All data of a series."""
        ask = getattr(self.provider, f"read_{kind}")
        wanted = provider.RunTagFilter(runs=[run], tags=[tag])
        return ask(self._context, experiment_id="", plugin_name=plugin, downsample=10**6, run_tag_filter=wanted)[run][
            tag
        ]

    def steps(self, kind: str, plugin: str, run: str, tag: str) -> list[int]:
        """The steps of a series."""
        return [datum.step for datum in self.read(kind, plugin, run, tag)]

    def blobs(self, run: str, tag: str) -> list[bytes]:
        """The blobs of the last datum of an image series: width, height, then PNG files."""
        last = self.read("blob_sequences", "images", run, tag)[-1]
        return [self.provider.read_blob(self._context, blob_key=one.blob_key) for one in last.values]


@contextmanager
def opened(loader: str, logdir: Path, runs: set[str]) -> Iterator[Reader]:
    """`logdir` as TensorBoard sees it, with every step kept. Leaves no process behind."""
    with _rust(logdir) if loader == "rust" else _python(logdir) as data_provider:
        yield Reader(data_provider, runs)


@contextmanager
def _python(logdir: Path) -> Iterator[Any]:
    multiplexer = EventMultiplexer(tensor_size_guidance=KEEP_ALL)
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    yield MultiplexerDataProvider(multiplexer, str(logdir))


@contextmanager
def _rust(logdir: Path) -> Iterator[Any]:
    try:
        binary = server_ingester.get_server_binary()
    except server_ingester.NoDataServerError as error:
        pytest.skip(f"TensorBoard's data server does not exist for this machine: {error}")
    started: list[subprocess.Popen[bytes]] = []

    def popen(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(*args, **kwargs))
        return started[-1]

    ingester = server_ingester.SubprocessServerDataIngester(
        server_binary=binary,
        logdir=str(logdir),
        reload_interval=0,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
        samples_per_plugin=KEEP_ALL,
    )
    # The ingester forgets its process, which could then not be waited for.
    popens = mock.patch.object(server_ingester, "subprocess", SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE))
    with popens, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves a temporary folder to the garbage collector
        ingester.start()
    try:
        yield ingester.data_provider
    finally:
        (process,) = started
        assert process.stdin is not None
        process.stdin.close()  # it dies with its standard input
        process.wait(timeout=_DEADLINE_SECONDS)
