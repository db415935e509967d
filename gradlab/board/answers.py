"""What the page asks for: one function a question, from a source and a query to a plain dictionary or bytes.

Belongs here: questions and their answers. Does not: HTTP (`plugin`), reading (`reader`), arithmetic (`pooling`), one
run less another (`compare`).
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradlab.board import jacobians, profiles, settings
from gradlab.board.compare import difference
from gradlab.board.health import damage
from gradlab.board.metrics import Metric, metrics_of
from gradlab.board.pooling import Cells, pool, pool_sites
from gradlab.board.query import Query
from gradlab.board.reader import Loaded, Range, RunReader
from gradlab.board.source import Source
from gradlab.board.wire import pack
from gradlab.errors import UnknownRunError, UsageError, did_you_mean
from gradlab.finding import Finding, finding_of_record, finding_record
from gradlab.findings import causes, has_ended, identity, is_repeated, latest
from gradlab.tags import FINDINGS_PLUGIN, HPARAMS_PLUGIN, JACOBIAN_PLUGIN, SERIES_PLUGIN

MOST_RUNS = 20
MOST_ROWS = 4000
QUANTILES = 200
"""The colour range is chosen among so many equal shares of the values."""

Answer = dict[str, Any] | bytes


def index(source: Source, query: Query) -> Answer:
    """Every run with what it has. Names of sites are given once, under the number that a metric's `sites` has."""
    listed, found_blocks = source.list(SERIES_PLUGIN), source.list(JACOBIAN_PLUGIN)
    findings, scalars, hparams = source.list(FINDINGS_PLUGIN), source.list_scalars(), source.list(HPARAMS_PLUGIN)
    names: dict[tuple[str, ...], int] = {}
    runs, others = [], []
    for run in sorted(source.runs(), key=natural):
        windows = profiles.windows(source.folder(run))
        if run not in listed and run not in found_blocks and run not in findings and not windows:
            others.append(run)
            continue
        of_run, notes = metrics_of(listed.get(run, {}))
        session = hparams.get(run, {}).get(settings.session_tag())
        runs.append(
            {
                "name": run,
                "metrics": {name: _metric(metric, names) for name, metric in of_run.items()},
                "last_step": max((metric.last_step for metric in of_run.values()), default=0),
                "scalars": sorted(scalars.get(run, {})),
                "findings": max((one.last_step + 1 for one in findings.get(run, {}).values()), default=0),
                "jacobians": jacobians.names_of(found_blocks.get(run, {})),
                "profiles": [window.name for window in windows],
                "settings": settings.settings_of(session.content) if session else {},
                "notes": notes + _schema_notes(of_run),
            }
        )
    return {"runs": runs, "others": others, "sites": [list(one) for one in names], "kept_steps": source.kept_steps}


def heat(source: Source, query: Query) -> Answer:
    """A metric over sites and steps, pooled to pixels; less that of another run where `minus` names one."""
    run, columns = known_run(source, query.text("run")), query.number("columns", 1000, low=1, high=8192)
    reader, steps = RunReader(source, run), _range(query, columns)
    metric = reader.metric(query.text("metric"))
    header: dict[str, Any] = {"run": run, "metric": metric.name, "unit": metric.unit, "minus": None}
    if query.optional_text("minus"):
        header["minus"] = other = known_run(source, query.text("minus"))
        loaded, header["scale"] = difference(reader, RunReader(source, other), metric, steps)
    else:
        loaded = reader.load(metric, steps)
    loaded = _matching(loaded, query.optional_text("match"))
    cells, starts = pool_sites(loaded.cells, query.number("rows", MOST_ROWS, low=1, high=20_000))
    header |= {
        "sites": [loaded.sites[i] for i in starts],
        "sites_a_row": (len(loaded.sites) / len(starts)) if len(starts) else 1,
        "num_sites": len(loaded.sites),
        "block": loaded.block,
        "sampled": loaded.sampled,
        "last_step": metric.last_step,
        "quantiles": _quantiles(cells),
    }
    return pack(header, _cell_arrays(cells))


def layer(source: Source, query: Query) -> Answer:
    """Every metric of one site over steps; without its histograms where `hist` is 0."""
    run, site = known_run(source, query.text("run")), query.text("site")
    columns = query.number("columns", 1000, low=1, high=8192)
    reader, steps = RunReader(source, run), _range(query, columns)
    of_run = reader.metrics()
    with_hist = query.number("hist", 1, low=0, high=1)
    header: dict[str, Any] = {"run": run, "site": site, "metrics": []}
    arrays: dict[str, np.ndarray] = {}
    for _, metric in sorted(of_run.items()):
        if site not in metric.sites or (metric.edges and not with_hist):
            continue
        number = len(header["metrics"])
        entry = {"metric": metric.name, "unit": metric.unit, "edges": list(metric.edges), "last_step": metric.last_step}
        if metric.edges:
            first, counts = reader.histogram(metric, site, min(columns, 400))
            arrays |= _prefixed(number, {"first": first.astype(np.float64), "counts": counts})
        else:
            loaded = reader.load(metric, steps, only=site)
            entry |= {"block": loaded.block, "sampled": loaded.sampled}
            arrays |= _prefixed(number, {n: a.reshape(-1) for n, a in _cell_arrays(loaded.cells).items()})
        header["metrics"].append(entry)
    if not header["metrics"]:
        known = dict.fromkeys(name for metric in of_run.values() for name in metric.sites)
        raise UsageError(f"{run} has no site {site!r}.{did_you_mean(site, known)}")
    return pack(header, arrays)


def scalars(source: Source, query: Query) -> Answer:
    """Native scalars of a run: loss, learning rate, whatever was logged beside."""
    run = known_run(source, query.text("run"))
    tags = query.texts("tag")
    columns = query.number("columns", 1000, low=1, high=8192)
    arrays: dict[str, np.ndarray] = {}
    for number, tag in enumerate(tags):
        found = source.read_scalar(run, tag)
        steps, values = found.steps, np.asarray(found.values, np.float64).reshape(-1, 1)
        if len(steps) > columns:
            single = Cells(steps, steps, values, values, values, (~np.isfinite(values)).astype(np.uint32))
            pooled = pool(single, columns)
            steps, values = pooled.last, pooled.mean
        arrays |= _prefixed(
            number, {"steps": steps.astype(np.float64), "values": values.reshape(-1).astype(np.float64)}
        )
    return pack({"run": run, "tags": tags}, arrays)


def findings(source: Source, query: Query) -> Answer:
    """The findings of a run in their newest states: causes in the order in which to look at them, symptoms after each.

    A state that says no more than the one before it tells that the finding has ended, or how long it went on.
    """
    run = known_run(source, query.text("run"))
    states, broken = _states(source, run)
    of_run, _ = metrics_of(source.list(SERIES_PLUGIN).get(run, {}))
    num_steps = 1 + max((metric.last_step for metric in of_run.values()), default=0)
    before: dict[tuple[object, ...], Finding] = {}
    closed = set()
    for one in states:
        if (earlier := before.get(identity(one))) is not None and is_repeated(earlier, one):
            closed.add(identity(one))
        else:
            closed.discard(identity(one))
        before[identity(one)] = one
    found = []
    for cause in causes(latest(states)):
        for one in (cause.finding, *cause.symptoms):
            about = {
                "ended": identity(one) in closed and has_ended(one, num_steps),
                "symptom": one is not cause.finding,
            }
            found.append(finding_record(one) | about)
    return {"run": run, "findings": found, "broken": broken}


def _states(source: Source, run: str) -> tuple[list[Finding], int]:
    """Every state of every finding, oldest first, and how many could not be read."""
    found, broken = [], 0
    tags = source.list(FINDINGS_PLUGIN, run).get(run, {})
    for one in (value for tag in tags for value in source.read(FINDINGS_PLUGIN, run, tag).values):
        for text in np.asarray(one).reshape(-1):
            try:
                found.append(finding_of_record(json.loads(text)))
            except (ValueError, TypeError, KeyError, AttributeError):
                broken += 1
    return found, broken


def jacobian(source: Source, query: Query) -> Answer:
    """A Jacobian block at one step, with its singular values and its summaries over steps."""
    run = known_run(source, query.text("run"))
    return pack(*jacobians.block_at(source, run, query.text("name"), query.optional_number("step")))


def profile(source: Source, query: Query) -> Answer:
    """The profiler's windows of a run."""
    run = known_run(source, query.text("run"))
    return {"run": run, "windows": [_finite(profiles.describe(one)) for one in profiles.windows(source.folder(run))]}


def health(source: Source, query: Query) -> Answer:
    """What is wrong with the files of a run. Slow: it reads them."""
    run = known_run(source, query.text("run"))
    return {"run": run, "notes": damage(source.folder(run))}


QUESTIONS: Mapping[str, Callable[[Source, Query], Answer]] = {
    one.__name__: one for one in (index, heat, layer, scalars, findings, jacobian, profile, health)
}


def natural(name: str) -> list[tuple[int, int | str]]:
    """A key that puts run 2 before run 10."""
    parts: list[tuple[int, int | str]] = []
    digits = ""
    for letter in name + "\0":
        if letter.isdigit() and letter.isascii():
            digits += letter
            continue
        if digits:
            parts.append((0, int(digits)))
            digits = ""
        parts.append((1, letter))
    return parts


def _metric(metric: Metric, names: dict[tuple[str, ...], int]) -> dict[str, Any]:
    sites = names.setdefault(metric.sites, len(names))
    return {"unit": metric.unit, "sites": sites, "last_step": metric.last_step, "hist": bool(metric.edges)}


def _schema_notes(metrics: Mapping[str, Metric]) -> list[str]:
    """A sentence where a metric's sites are not what they were: a resumed run with another model."""
    for metric in metrics.values():
        sets = [set(schema.sites) for schema in metric.schemas]
        if any(a - b and b - a for a in sets for b in sets):
            return [
                f"{metric.name} was logged with {len(sets)} different sets of sites, as after layers were renamed; "
                "rows without a value at a step are left empty."
            ]
    return []


def known_run(source: Source, name: str) -> str:
    """`name`, where there is such a run."""
    known = source.runs()
    if name not in known:
        raise UnknownRunError(f"no run {name!r}.{did_you_mean(name, known)} TensorBoard has {len(known)}.")
    return name


def _range(query: Query, num_columns: int) -> Range:
    return Range(num_columns, query.optional_number("start"), query.optional_number("end"))


def _matching(loaded: Loaded, glob: str | None) -> Loaded:
    if not glob:
        return loaded
    pattern = glob if any(sign in glob for sign in "*?[") else f"*{glob}*"
    which = [i for i, site in enumerate(loaded.sites) if fnmatch.fnmatchcase(site, pattern)]
    return replace(loaded, sites=tuple(loaded.sites[i] for i in which), cells=loaded.cells.sites(which))


def _cell_arrays(cells: Cells) -> dict[str, np.ndarray]:
    """The arrays of cells for the page: [sites, columns], `low` and `high` only where they say more than `mean`."""
    arrays = {"first": cells.first.astype(np.float64), "last": cells.last.astype(np.float64), "mean": cells.mean.T}
    if not cells.single:
        arrays |= {"low": cells.low.T, "high": cells.high.T}
    if cells.bad.any():
        arrays["bad"] = np.minimum(cells.bad, 65535).astype(np.uint16).T
    return arrays


def _prefixed(number: int, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{number}.{name}": array for name, array in arrays.items()}


def _quantiles(cells: Cells) -> dict[str, Any]:
    """The finite values in `QUANTILES` equal shares, all of them and the positive ones; from at most 200,000."""
    values = (cells.high if not cells.single else cells.mean).reshape(-1)
    values = values[:: max(1, len(values) // 200_000)]
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    return {"all": _shares(values), "positive": _shares(positive), "negative": bool((values < 0).any())}


def _shares(values: np.ndarray) -> list[float]:
    if not len(values):
        return []
    ordered = np.sort(values)
    at = np.linspace(0, len(ordered) - 1, QUANTILES + 1).round().astype(np.int64)
    return [float(f"{value:.6g}") for value in ordered[at].tolist()]


def _finite(value: Any) -> Any:
    """A JSON value with null for what JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
