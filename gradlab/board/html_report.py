"""The report: the board's views of one run in one HTML file that needs neither a server nor a network.

What the page would ask TensorBoard for is answered ahead, at a resolution that suits a screen, and put into the file
beside the page itself and plotly.js. The file forbids itself every connection by its content security policy.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.board import answers, jacobians
from gradlab.board.assets import plotly_script, static_files
from gradlab.board.file_source import FileSource
from gradlab.board.query import Query
from gradlab.board.source import Source
from gradlab.board.wire import pack
from gradlab.errors import GradlabError, RunError

COLUMNS = 1000
MOST_STEPS = 24
"""How many steps of a Jacobian a report holds at most, evenly chosen."""
_MOST_CAUSES = 3
POLICY = "default-src 'none'; script-src 'unsafe-inline' data: blob:; style-src 'unsafe-inline'; img-src data: blob:"


def report(folder: Path, name: str, about: str = "") -> str:
    """The HTML of a run.

    Args:
        folder: where its event files lie.
        name: what the report calls it.
        about: what was trained and for how long, in a sentence; by its steps where left out.
    Raises:
        RunError: where the run has nothing to show.
    """
    source = FileSource(folder, name)
    index: Any = answers.index(source, Query({}))
    if not index["runs"]:
        raise RunError(f"{name} holds nothing that a report could show: {folder} has no gradlab data.")
    found: Any = answers.findings(source, Query({"run": [name]}))
    about = about or f"{name} has {index['runs'][0]['last_step'] + 1} steps."
    return _page(name, _lead(about, found["findings"]), _packed(_answered(source, index, name)))


def _lead(about: str, findings: Sequence[Mapping[str, Any]]) -> str:
    """What was trained and what was found, in words."""
    causes = [one for one in findings if not one["symptom"]]
    if not causes:
        return f"{about} Nothing was found to be wrong."
    told = [f"{_since(one)}: {one['message']} {one['remedy']}".rstrip() for one in causes[:_MOST_CAUSES]]
    left = len(findings) - len(told)
    rest = [f"{left} more {'finding is' if left == 1 else 'findings are'} listed beside the picture."] if left else []
    return " ".join([about, "What was found:", *told, *rest])


def _since(finding: Mapping[str, Any]) -> str:
    code = f" ({finding['code']})" if finding["code"] else ""
    first, last = finding["first_step"], finding["last_step"]
    if not finding["ended"]:
        return f"Since step {first}{code}"
    return f"From step {first} to {last}{code}" if last > first else f"At step {first}{code}"


def _answered(source: Source, index: Any, name: str) -> dict[str, bytes]:
    """Every answer that the page may ask for, by question."""
    run = index["runs"][0]
    found: dict[str, bytes] = {"index": _json(index)}
    for plain in ("findings", "profile", "health"):
        found[plain] = _json(_ask(source, plain, run=name))
    for metric, about in run["metrics"].items():
        if not about["hist"]:
            found[f"heat {metric}"] = _bytes(_ask(source, "heat", run=name, metric=metric, columns=COLUMNS))
    for site in dict.fromkeys(s for about in run["metrics"].values() for s in index["sites"][about["sites"]]):
        found[f"layer {site}"] = _bytes(_ask(source, "layer", run=name, site=site, columns=COLUMNS // 4))
    for tag in run["scalars"]:
        found[f"scalar {tag}"] = _bytes(_ask(source, "scalars", run=name, tag=tag, columns=COLUMNS))
    for one in run["jacobians"]:
        found |= _jacobian(source, name, one["name"])
    return found


def _jacobian(source: Source, run: str, name: str) -> dict[str, bytes]:
    """The blocks of a Jacobian at some of its steps; the page is told of these only."""
    header, _ = jacobians.block_at(source, run, name, None)
    steps = header["steps"]
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps))).round().astype(int))
    kept = [steps[i] for i in chosen]
    found = {}
    for step in kept:
        header, arrays = jacobians.block_at(source, run, name, step)
        header |= {"steps": kept}
        found[f"jacobian {name} {step}"] = pack(header, arrays)
    return found


def _ask(source: Source, question: str, **query: Any) -> answers.Answer:
    try:
        return answers.QUESTIONS[question](source, Query({key: [str(value)] for key, value in query.items()}))
    except GradlabError as error:
        return {"error": str(error)}


def _bytes(answer: answers.Answer) -> bytes:
    return answer if isinstance(answer, bytes) else _json(answer)


def _json(answer: answers.Answer) -> bytes:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


def _packed(found: Mapping[str, bytes]) -> str:
    """All answers as one text: gzip of a table of places (JSON, its length first) and the answers, each at 8 bytes."""
    table, contents, at = {}, [], 0
    for key, content in found.items():
        padding = -len(content) % 8
        table[key] = [at, len(content)]
        contents += [content, bytes(padding)]
        at += len(content) + padding
    head = json.dumps(table, ensure_ascii=False).encode()
    head += b" " * (-(len(head) + 8) % 8)
    whole = len(head).to_bytes(8, "little") + head + b"".join(contents)
    return base64.b64encode(gzip.compress(whole, 6, mtime=0)).decode()


def _page(name: str, lead: str, data: str) -> str:
    """The file: style, modules by an import map of data addresses, plotly.js as text that is run when it is wanted."""
    files = static_files()
    modules = {f"gradlab/{file}": _module(content) for file, content in files.items() if file.endswith(".js")}
    plotly = base64.b64encode(gzip.compress(plotly_script(), 6, mtime=0)).decode()
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(name)}: gradients</title>",
            f"<style>{files['style.css'].decode()}</style>",
            f'<script type="importmap">{json.dumps({"imports": modules})}</script>',
            "</head><body>",
            f'<p class="about">{escape(lead)}</p>',
            f'<script type="application/octet-stream" id="gl-data">{data}</script>',
            f'<script type="application/octet-stream" id="gl-plotly">{plotly}</script>',
            f'<script type="module">import {{ open }} from "gradlab/report.js"; open({_script_text(name)});</script>',
            "<noscript>This report is drawn by scripts inside this file; it loads nothing.</noscript>",
            "</body></html>",
            "",
        )
    )


def _module(content: bytes) -> str:
    """A module as a data address, its imports by names that the import map knows."""
    text = re.sub(r'(from|import) "\./([a-z0-9_]+\.js)"', r'\1 "gradlab/\2"', content.decode())
    return "data:text/javascript;base64," + base64.b64encode(text.encode()).decode()


def _script_text(text: str) -> str:
    """A string literal that cannot end the script that it stands in."""
    return json.dumps(text).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
