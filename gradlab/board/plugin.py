"""The TensorBoard plugin: routes, static files, and how a question of the page becomes an answer of `answers`."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from tensorboard.plugins.base_plugin import FrontendMetadata
from tensorboard.util import tb_logging
from werkzeug import wrappers

from gradlab.board import answers, profiles
from gradlab.board.assets import PLOTLY, plotly_script, static_files
from gradlab.board.query import Query
from gradlab.board.source import Cache, ProviderSource
from gradlab.errors import GradlabError, UnknownRunError
from gradlab.tags import KEPT_STEPS, SERIES_PLUGIN

log = tb_logging.get_logger()
App = Callable[..., Any]
_PLOTLY_SECONDS = 86400


class GradientsPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """The tab Gradients."""

    plugin_name = SERIES_PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        """Read the static files; everything else is read when it is asked for."""
        super().__init__(context)
        self._data = context.data_provider
        self._logdir = _local(context.logdir)
        kept = getattr(context.flags, "samples_per_plugin", None) or {}
        self._kept_steps = int(kept.get(SERIES_PLUGIN, KEPT_STEPS[SERIES_PLUGIN]))
        self._cache = Cache()

    def get_plugin_apps(self) -> Mapping[str, App]:
        """The routes below `/data/plugin/gradlab`. Static files are listed, so that no path can lead elsewhere."""
        apps: dict[str, App] = {f"/{name}": self._app(name) for name in answers.QUESTIONS}
        for name, content in static_files().items():
            apps[f"/static/{name}"] = _static(name, content)
        apps[f"/static/{PLOTLY}"] = _plotly
        apps["/trace"] = self._trace
        return apps

    def is_active(self) -> bool:
        """Whether the tab is shown without data of `data_plugin_names`."""
        return False

    def data_plugin_names(self) -> tuple[str, ...]:
        """The plugins whose series make the tab appear."""
        return tuple(KEPT_STEPS)

    def frontend_metadata(self) -> FrontendMetadata:
        """The page and the name of its tab."""
        return FrontendMetadata(es_module_path="/static/index.js", tab_name="Gradients", disable_reload=True)

    def _source(self, request: wrappers.Request) -> ProviderSource:
        return ProviderSource(
            self._data,
            plugin_util.context(request.environ),
            plugin_util.experiment_id(request.environ),
            self._logdir,
            self._kept_steps,
            self._cache,
        )

    def _app(self, name: str) -> App:
        question = answers.QUESTIONS[name]

        @wrappers.Request.application  # type: ignore[untyped-decorator]
        def app(request: wrappers.Request) -> Any:
            query = Query(dict(request.args.lists()))
            return _answered(request, name, lambda: question(self._source(request), query))

        return app

    @property
    def _trace(self) -> App:
        @wrappers.Request.application  # type: ignore[untyped-decorator]
        def app(request: wrappers.Request) -> Any:
            query = Query(dict(request.args.lists()))

            def file() -> bytes:
                folder = self._source(request).folder(answers.known_run(self._source(request), query.text("run")))
                return profiles.trace(folder, query.text("window"), query.text("name")).read_bytes()

            return _answered(request, "trace", file, as_file=query.optional_text("name") or "trace")

        return app


def _answered(
    request: wrappers.Request, name: str, answer: Callable[[], answers.Answer], *, as_file: str | None = None
) -> Any:
    """The response to a question; what goes wrong is a sentence that the page shows."""
    try:
        found = answer()
    except UnknownRunError as error:
        return _problem(request, str(error), 404)
    except GradlabError as error:
        return _problem(request, str(error), 400)
    except Exception as error:
        log.exception("gradlab: %s could not be answered", name)
        text = f"The board could not answer ({type(error).__name__}: {error}). TensorBoard's log has the details."
        return _problem(request, text, 500)
    if as_file is not None:
        disposition = [("Content-Disposition", f'attachment; filename="{as_file}"')]
        return http_util.Respond(request, found, "application/gzip", headers=disposition)
    if isinstance(found, bytes):
        return http_util.Respond(request, found, "application/octet-stream")
    return http_util.Respond(request, json.dumps(found, ensure_ascii=False, allow_nan=False), "application/json")


def _problem(request: wrappers.Request, text: str, code: int) -> Any:
    return http_util.Respond(request, json.dumps({"error": text}), "application/json", code=code)


def _static(name: str, content: bytes) -> App:
    kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0] or "application/octet-stream"

    @wrappers.Request.application  # type: ignore[untyped-decorator]
    def app(request: wrappers.Request) -> Any:
        return http_util.Respond(request, content, kind)

    return app


@wrappers.Request.application  # type: ignore[untyped-decorator]
def _plotly(request: wrappers.Request) -> Any:
    return http_util.Respond(request, plotly_script(), "text/javascript", expires=_PLOTLY_SECONDS)


def _local(logdir: str | None) -> Path | None:
    """The logdir, where it is a folder of this machine."""
    return Path(logdir) if logdir and "://" not in logdir and Path(logdir).is_dir() else None
