"""A metric is read at the level that suits the screen, and every level says the same."""

import numpy as np
import pytest
from board.conftest import log_values, some_values

from gradlab.board import metrics
from gradlab.board.file_source import FileSource
from gradlab.board.metrics import Metric
from gradlab.board.reader import Range, RunReader
from gradlab.board.source import Points

SITES = ("a", "b", "c")
NUM_STEPS = 2500


class Sampling:
    """A source that keeps a random part of the steps of a series, the last among them, as TensorBoard does."""

    def __init__(self, inner: FileSource, kept_steps: int) -> None:
        self._inner, self.kept_steps = inner, kept_steps
        self.asked: list[str] = []

    def list(self, plugin, run=None):
        return self._inner.list(plugin, run)

    def read(self, plugin, run, tag):
        self.asked.append(tag)
        found = self._inner.read(plugin, run, tag)
        if len(found.steps) <= self.kept_steps:
            return found
        chosen = np.sort(np.random.default_rng(0).choice(len(found.steps) - 1, self.kept_steps - 1, replace=False))
        chosen = np.append(chosen, len(found.steps) - 1)
        return Points(found.steps[chosen], found.times[chosen], found.values[chosen])


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    folder, values = tmp_path_factory.mktemp("long") / "run", some_values(NUM_STEPS, 3)
    values[1234, 2] = 1e6
    log_values(folder, values, SITES)
    return FileSource(folder, "run"), values


def metric_of(source) -> Metric:
    found, notes = metrics.metrics_of(source.list("gradlab")["run"])
    assert notes == []
    return found["weight_grad.norm"]


@pytest.mark.parametrize("columns", [20, 100, 5000])
@pytest.mark.parametrize("kept_steps", [200, 10**6])
def test_no_spike_and_nothing_unfinite_is_lost_however_few_steps_are_kept(logged, columns, kept_steps):
    inner, values = logged
    source = Sampling(inner, kept_steps)
    found = RunReader(source, "run").load(metric_of(source), Range(columns))
    assert len(found.cells) <= columns
    assert not found.sampled
    finite = np.where(np.isfinite(values), values, np.nan)
    low, high = (np.where(np.isfinite(one), one, np.nan) for one in (found.cells.low, found.cells.high))
    np.testing.assert_allclose(np.nanmax(high, 0), np.nanmax(finite, 0), rtol=1e-6)
    np.testing.assert_allclose(np.nanmin(low, 0), np.nanmin(finite, 0), rtol=1e-6)
    assert found.cells.bad.sum(0).tolist() == [1, 1, 0]
    assert found.cells.first[0] == 0
    assert found.cells.last[-1] == NUM_STEPS - 1


def test_all_steps_are_exact_where_all_are_kept_and_there_is_room(logged):
    source, values = logged
    found = RunReader(source, "run").load(metric_of(source), Range(5000))
    assert (found.block, found.cells.single) == (1, True)
    np.testing.assert_array_equal(found.cells.mean, values)


def test_an_overview_reads_blocks_and_not_the_steps(logged):
    inner, _ = logged
    source = Sampling(inner, 1000)
    metric = metric_of(source)
    found = RunReader(source, "run").load(metric, Range(60))
    assert found.block == 32
    assert metric.schemas[0].tag not in source.asked


def test_a_range_of_steps_is_read_finer(logged):
    source, values = logged
    found = RunReader(source, "run").load(metric_of(source), Range(500, 1200, 1300))
    assert found.block == 1
    np.testing.assert_array_equal(found.cells.mean, values[1200:1301])


def test_the_end_of_a_run_that_goes_on_is_read_from_below(tmp_path):
    from gradlab.events import EventWriter
    from gradlab.frame import Schema

    values = some_values(70, 3)
    writer = EventWriter(tmp_path / "run")
    for step, row in enumerate(values):
        writer.vectors([(Schema("weight_grad.norm", SITES), row)], step)
    writer.flush()
    source = FileSource(tmp_path / "run", "run")
    found = RunReader(Sampling(source, 40), "run").load(metric_of(source), Range(4))
    assert found.cells.last[-1] == 69
    writer.close()


def test_one_site_is_the_same_as_its_row(logged):
    source, values = logged
    found = RunReader(source, "run").load(metric_of(source), Range(5000), only="b")
    np.testing.assert_array_equal(found.cells.mean[:, 0], values[:, 1])


def test_metadata_that_is_not_ours_is_a_sentence():
    from gradlab.board.source import Listed

    listed = {
        "gradlab/x/1": Listed(b"not json", 3, 0.0),
        "gradlab/y/2": Listed(b'{"version": 9, "metric": "y", "sites": ["a"]}', 3, 0.0),
    }
    found, notes = metrics.metrics_of(listed)
    assert list(found) == ["y"]
    assert notes == [
        "This run was logged by a newer gradlab (format 9; this board knows 1). What it can read is shown; "
        "`pip install -U gradlab` brings the rest.",
        "gradlab/x/1 does not say which sites it holds, so it is not shown.",
    ]
