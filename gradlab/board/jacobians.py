"""The Jacobians of a run: their tags, what their metadata says, one block at one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradlab.board.metrics import VERSION, newer_note, parsed
from gradlab.board.source import Listed, Source
from gradlab.errors import UsageError
from gradlab.tags import JACOBIAN_PLUGIN, JACOBIAN_PREFIX, SPECTRUM_SUFFIX

MOST_CELLS = 1_000_000
"""How many numbers of a block the page gets at most; beyond, neighbours are pooled by the largest magnitude."""


def names_of(listed: Mapping[str, Listed]) -> list[dict[str, Any]]:
    """What there is, each with its metadata: blocks, growths over depth, eigenvalues; slices without a block too."""
    found: dict[str, dict[str, Any]] = {}
    for tag, series in listed.items():
        if not tag.startswith(JACOBIAN_PREFIX):
            continue
        about = parsed(series.content)
        is_spectrum = tag.endswith(SPECTRUM_SUFFIX)
        name = (
            tag.removeprefix(JACOBIAN_PREFIX).removesuffix(SPECTRUM_SUFFIX)
            if is_spectrum
            else tag.removeprefix(JACOBIAN_PREFIX)
        )
        entry = found.setdefault(name, {"name": name, "kind": "block", "block": False, "spectrum": False})
        entry["spectrum" if is_spectrum else "block"] = True
        entry["last_step"] = max(series.last_step, entry.get("last_step", series.last_step))
        of, _, wrt = name.partition("__wrt__")
        entry.setdefault("of", of)
        entry.setdefault("wrt", wrt)
        kept = ("of", "wrt", "label", "engine", "notes", "complete")
        entry |= {key: about[key] for key in kept if key in about and (not is_spectrum or key not in entry)}
        if not is_spectrum:
            entry["kind"] = about.get("kind", "block")
        if about.get("version", 0) > VERSION:
            entry["note"] = newer_note(about["version"])
    return sorted(found.values(), key=lambda entry: entry["name"])


def block_at(source: Source, run: str, name: str, step: int | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A block at the logged step nearest to `step` (the last where it is None), with names, spectrum and summaries.

    Raises:
        UsageError: where there is none of that name.
    """
    listed = source.list(JACOBIAN_PLUGIN, run).get(run, {})
    known = {entry["name"]: entry for entry in names_of(listed)}
    if name not in known:
        raise UsageError(f"{run} has no Jacobian {name!r}. It has: {', '.join(known) or 'none'}.")
    header: dict[str, Any] = {"run": run, **known[name]}
    arrays: dict[str, np.ndarray] = {}
    tag = JACOBIAN_PREFIX + name
    spectra = source.read(JACOBIAN_PLUGIN, run, tag + SPECTRUM_SUFFIX)
    blocks = source.read(JACOBIAN_PLUGIN, run, tag)
    steps = blocks.steps if len(blocks.steps) else spectra.steps
    header["steps"] = steps.tolist()
    if len(blocks.steps):
        at = _nearest(blocks.steps, step)
        about = parsed(listed[tag].content)
        matrix, rows, cols = _fitted(np.asarray(blocks.values[at]))
        header |= {"step": int(blocks.steps[at]), "samples": _samples(blocks.values[at])}
        header |= {"row_names": _named(about.get("row_names"), rows), "col_names": _named(about.get("col_names"), cols)}
        header |= {"size": list(np.shape(blocks.values[at])[-2:])}
        arrays["block"] = matrix.astype(np.float32)
    if len(spectra.steps):
        at = _nearest(spectra.steps, header.get("step", step))
        header["step"] = header.get("step", int(spectra.steps[at]))
        arrays["singular_values"] = _mean_spectrum(spectra.values[at])
        arrays["spectrum_steps"] = spectra.steps.astype(np.float64)
        arrays["spectra"] = _aligned([_mean_spectrum(one) for one in spectra.values])
    header["summaries"] = []
    for index, (scalar, kind) in enumerate(_summaries(source, run, name)):
        series = source.read_scalar(run, scalar)
        header["summaries"].append(kind)
        arrays[f"summary{index}.steps"] = series.steps.astype(np.float64)
        arrays[f"summary{index}"] = np.asarray(series.values, np.float64).reshape(-1)
    return header, arrays


def _nearest(steps: np.ndarray, step: int | None) -> int:
    return len(steps) - 1 if step is None else int(np.abs(steps - step).argmin())


def _samples(values: Any) -> int:
    return int(np.shape(values)[0]) if np.ndim(values) == 3 else 0


def _fitted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrix to show, and which rows and columns of the block its own begin at. Samples are averaged."""
    matrix = values.mean(0, dtype=np.float64) if values.ndim == 3 else values
    matrix = matrix.reshape(matrix.shape[0], -1) if matrix.ndim != 2 else matrix
    rows, cols = (np.arange(size) for size in matrix.shape)
    while matrix.size > MOST_CELLS:
        axis = int(matrix.shape[1] >= matrix.shape[0])
        starts = np.arange(0, matrix.shape[axis], 2)
        low, high = np.minimum.reduceat(matrix, starts, axis), np.maximum.reduceat(matrix, starts, axis)
        matrix = np.where(np.abs(low) > np.abs(high), low, high)
        rows, cols = (rows[starts], cols) if axis == 0 else (rows, cols[starts])
    return matrix, rows, cols


def _named(names: Any, which: np.ndarray) -> list[str]:
    known = names if isinstance(names, list) else []
    return [str(known[i]) if i < len(known) else str(i) for i in which.tolist()]


def _mean_spectrum(values: Any) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values.mean(0) if values.ndim == 2 else values.reshape(-1)


def _aligned(rows: list[np.ndarray]) -> np.ndarray:
    """[steps, k] with NaN where a spectrum is shorter."""
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row)), constant_values=np.nan) for row in rows])


def _summaries(source: Source, run: str, name: str) -> list[tuple[str, str]]:
    """The scalars of a block, and the last word of each."""
    prefix = f"jacobian/{name}/"
    tags = source.list_scalars(run).get(run, {})
    return [(tag, tag.removeprefix(prefix)) for tag in tags if tag.startswith(prefix)]
