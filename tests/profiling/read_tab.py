"""Print as JSON what the PyTorch Profiler tab answers about the one run in a log directory.

A program of its own, because the plugin starts processes, and threads that never end.
"""

import gzip
import json
import sys
import time

from tensorboard.plugins.base_plugin import TBContext
from torch_tb_profiler.plugin import TorchProfilerPlugin
from werkzeug.test import Client
from werkzeug.wrappers import Response

ROUTES = [
    "/overview",
    "/operation",
    "/operation/table",
    "/module",
    "/tree",
    "/memory",
    "/memory_curve",
    "/memory_events",
]


def main(logdir: str) -> None:
    apps = TorchProfilerPlugin(TBContext(logdir=logdir)).get_plugin_apps()

    def get(route: str, **query: str) -> object:
        response = Client(apps[route], Response).get(route, query_string=query)
        assert response.status_code == 200, (route, response.status_code, response.get_data()[:200])
        body = response.get_data()
        return json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)

    deadline = time.monotonic() + 60
    while (listed := get("/runs"))["loading"] or not listed["runs"]:
        assert time.monotonic() < deadline, "the tab lists no run"
        time.sleep(0.02)
    (run,) = listed["runs"]
    found = {"runs": listed["runs"], "views": get("/views", run=run)}
    found["workers"] = get("/workers", run=run, view="Overview")
    query = {"run": run, "worker": "rank0", "span": "1", "group_by": "Operation", "view": "Lightning"}
    for route in ROUTES:
        if "Lightning" in found["views"] or route.startswith(("/overview", "/operation")):
            found[route] = get(route, **query)
    found["/trace"] = get("/trace", **query)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
