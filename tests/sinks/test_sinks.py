"""Sinks: what each makes of frames, scalars, findings, Jacobian blocks and texts."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard_loaders import LOADERS, opened

from gradlab.errors import EventError, UsageError
from gradlab.events import EventWriter, diverging, png, read_events
from gradlab.finding import Finding
from gradlab.frame import ABSENT, Frame, JacobianBlock, Schema, Series
from gradlab.sinks import CallbackSink, CsvSink, JsonlSink, MemorySink, Sink, TensorBoardSink
from gradlab.sinks.finding_log import FindingLog

SITES = ("fc1.weight", "fc1.bias", "fc2.weight")
NAN, INF = float("nan"), float("inf")


def make_frame(step=0, sites=SITES, **metrics):
    """A frame of one series a metric; `weight_grad_norm` stands for `weight_grad.norm`, `_at_` for `@`."""
    series = {}
    for word, values in metrics.items():
        metric = word.replace("_norm", ".norm").replace("_at_", "@")
        series[metric] = Series(Schema(metric, sites), np.array(values, np.float32))
    return Frame(step, 1000.0 + step, series)


FIELDS = {
    "code": "",
    "name": "k",
    "sites": ["fc1"],
    "first_step": 4,
    "last_step": 4,
    "remedy": "a",
    "severity": "warning",
    "certainty": "exact",
    "explained_by": None,
    "key": "",
}
"""What a record of `finding(4)` has besides its message and its evidence."""


def finding(step, message="m", **evidence):
    return Finding(first_step=step, name="k", sites=("fc1",), message=message, evidence=evidence, remedy="a")


def block(values=None, **changes):
    values = np.array([[1.0, 0.0], [0.0, -1.0]]) if values is None else values
    fields = {
        "of": "output",
        "wrt": "input",
        "values": values,
        "row_names": ("r0", "r1"),
        "col_names": ("c0", "c1"),
        "engine": "vmap",
        "audit_error": 1e-7,
        "summaries": {"fro": 1.5},
    }
    return JacobianBlock(**(fields | changes))


@pytest.fixture
def sink(tmp_path):
    sink = TensorBoardSink(EventWriter(tmp_path / "tb"))
    yield sink
    sink.close()


def written(sink):
    sink.flush()
    return list(read_events(sink.writer.path))


def scalars_of(sink):
    return {one.tag: one.value for one in written(sink) if one.plugin_name == "scalars"}


def lines(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("make", [TensorBoardSink, JsonlSink, CsvSink, MemorySink, CallbackSink])
def test_every_sink_takes_everything_and_closes(make, tmp_path):
    place = {
        TensorBoardSink: lambda: EventWriter(tmp_path),
        JsonlSink: lambda: tmp_path / "m.jsonl",
        CsvSink: lambda: tmp_path / "m.csv",
        MemorySink: lambda: 10,
        CallbackSink: lambda: lambda scalars, step: None,
    }[make]()
    sink: Sink = make(place)
    assert sink.name
    sink.frame(make_frame(weight_grad_norm=[1, 2, 2]))
    sink.scalars({"x": 1.0}, 0, 0.0)
    sink.finding(finding(0), 0.0)
    sink.jacobian(block(), 0, 0.0)
    sink.text("t", "# x", 0, 0.0)
    sink.flush()
    sink.close()


# TensorBoard


def test_a_frame_becomes_one_vector_a_metric(sink):
    frame = make_frame(3, weight_grad_norm=[1, 2, 2], output_norm=[4, 5, NAN])
    sink.frame(frame)
    vectors = {one.tag: one for one in written(sink) if one.plugin_name == "gradlab"}
    assert set(vectors) == {series.schema.tag for series in frame.values()}
    for series in frame.values():
        one = vectors[series.schema.tag]
        np.testing.assert_array_equal(one.value, series.array)
        assert (one.step, one.wall_time, one.metadata["sites"]) == (3, 1003.0, list(SITES))


def test_the_global_gradient_norm_and_the_percentiles_are_scalars(sink):
    sink.frame(make_frame(weight_grad_norm=[1, 2, 2], weight_grad_norm_at_clipped=[0, 3, 4], output_norm=[9, 9, 9]))
    assert scalars_of(sink) == pytest.approx(
        {
            "gradlab/global/weight_grad.norm": 3,
            "gradlab/weight_grad.norm/p05": 1.1,
            "gradlab/weight_grad.norm/p50": 2,
            "gradlab/weight_grad.norm/p95": 2,
            "gradlab/global/weight_grad.norm@clipped": 5,
            "gradlab/weight_grad.norm@clipped/p05": 0.3,
            "gradlab/weight_grad.norm@clipped/p50": 3,
            "gradlab/weight_grad.norm@clipped/p95": 3.9,
        }
    )


@pytest.mark.parametrize("count", [1, 2, 3, 20, 21, 200])
def test_percentiles_are_numpys(count):
    values = np.random.default_rng(count).lognormal(0, 5, count).astype(np.float32)
    seen = {}
    CallbackSink(lambda scalars, step: seen.update(scalars)).frame(
        make_frame(sites=tuple(map(str, range(count))), weight_grad_norm=values)
    )
    expected = np.percentile(values.astype(np.float64), [5, 50, 95])
    np.testing.assert_allclose([seen[f"gradlab/weight_grad.norm/p{p}"] for p in ("05", "50", "95")], expected)


def test_a_site_that_did_not_run_is_left_out_of_the_scalars_and_a_nan_is_not(sink):
    sink.frame(make_frame(0, weight_grad_norm=[3, ABSENT, 4]))
    assert scalars_of(sink)["gradlab/global/weight_grad.norm"] == 5
    sink.frame(make_frame(1, weight_grad_norm=[3, NAN, 4]))
    assert math.isnan(scalars_of(sink)["gradlab/global/weight_grad.norm"])
    assert scalars_of(sink)["gradlab/weight_grad.norm/p50"] == 3.5
    sink.frame(make_frame(2, weight_grad_norm=[3, INF, 4]))
    assert scalars_of(sink)["gradlab/global/weight_grad.norm"] == INF
    assert scalars_of(sink)["gradlab/weight_grad.norm/p95"] == INF
    sink.frame(make_frame(3, weight_grad_norm=[ABSENT] * 3))
    assert max(one.step for one in written(sink) if one.plugin_name == "scalars") == 2


def test_a_global_norm_beyond_float32_squared_is_exact():
    seen = {}
    CallbackSink(lambda scalars, step: seen.update(scalars)).frame(make_frame(weight_grad_norm=[3e30, 4e30, 0]))
    assert seen["gradlab/global/weight_grad.norm"] == pytest.approx(5e30, rel=1e-6)


def test_all_scalars_name_every_site(tmp_path):
    sink = TensorBoardSink(EventWriter(tmp_path), scalars="all")
    sink.frame(make_frame(output_norm=[1, ABSENT, NAN]))
    found = scalars_of(sink)
    assert list(found) == ["output.norm/fc1.weight", "output.norm/fc2.weight"]
    assert found["output.norm/fc1.weight"] == 1 and math.isnan(found["output.norm/fc2.weight"])
    sink.close()


@pytest.mark.parametrize("make", [TensorBoardSink, CallbackSink])
def test_another_word_for_scalars_is_refused(make):
    with pytest.raises(UsageError, match=r"^scalars may be 'few' or 'all', got 'some'\.$"):
        make(None, scalars="some")


def findings_in(sink):
    found = [one for one in written(sink) if one.tag == "gradlab/findings/records"]
    assert {one.plugin_name for one in found} <= {"gradlab_findings"}
    return [(one.step, [json.loads(text)["message"] for text in one.value]) for one in found]


def test_findings_of_one_step_share_one_record_written_with_the_next_frame(sink):
    sink.finding(finding(4, "a", norm=INF), 1.0)
    sink.finding(finding(4, "b"), 1.0)
    sink.frame(make_frame(5, weight_grad_norm=[1, 1, 1]))
    (record,) = [one for one in read_events(sink.writer.path) if one.tag == "gradlab/findings/records"]
    assert json.loads(record.value[0]) == FIELDS | {
        "message": "a",
        "evidence": {"norm": None},
        "nonfinite": {"norm": "inf"},
    }
    assert findings_in(sink) == [(4, ["a", "b"])]


def test_findings_that_come_late_lose_none(sink):
    for step, message in ((4, "a"), (7, "b"), (5, "c")):
        sink.finding(finding(step, message), 1.0)
    assert findings_in(sink) == [(4, ["a"]), (7, ["b", "c"])]
    sink.finding(finding(6, "d"), 1.0)
    sink.finding(finding(9, "e"), 1.0)
    assert findings_in(sink)[2:] == [(7, ["b", "c", "d"]), (9, ["e"])]


def test_closing_writes_the_last_findings(sink):
    sink.finding(finding(1, "last words"), 1.0)
    sink.close()
    assert [one.tag for one in read_events(sink.writer.path)] == ["gradlab/findings/records", "gradlab/findings"]


def texts_in(sink):
    found = [one for one in read_events(sink.writer.path) if one.tag == "gradlab/findings"]
    return [(one.step, one.value.item().decode()) for one in found]


def test_findings_are_in_the_text_tab_ranked_when_it_is_flushed_and_again_where_something_is_new(sink):
    cause = Finding(code="GL2", name="cause", sites=("a|b",), first_step=5, message="<b> is off.", remedy="Mend it.")
    symptom = Finding(code="GL5", name="late", first_step=3, message="late.", explained_by="GL2", evidence={"x": 0.5})
    sink.finding(replace(symptom, explained_by=None), 1.0)
    sink.frame(make_frame(6, weight_grad_norm=[1, 1, 1]))
    assert texts_in(sink) == []
    sink.finding(cause, 1.0)
    sink.finding(symptom, 1.0)
    sink.flush()
    sink.flush()
    assert texts_in(sink) == [
        (
            6,
            "1. **GL2 cause** (warning) since step 5 at a&#124;b: &lt;b&gt; is off. *Mend it.*\n"
            "    - *explains* **GL5 late** (warning) since step 3: late. (x 0.5)\n",
        )
    ]
    sink.finding(replace(cause, last_step=9), 1.0)
    sink.close()
    assert [step for step, _ in texts_in(sink)] == [6, 9]


def test_a_log_gets_a_line_a_finding_and_another_where_it_is_worse():
    lines = []
    sink = FindingLog(lambda line, one: lines.append(line))
    for severity in ("info", "info", "error", "warning"):
        sink.finding(Finding(code="GL1", name="n", first_step=2, message="m.", remedy="r.", severity=severity), 0.0)
    assert lines == ["info GL1 since step 2: m. r.", "error GL1 since step 2: m. r."]


def test_a_spectrum_without_a_block_and_a_block_of_another_kind(sink):
    sink.jacobian(block(np.empty((0, 0)), singular_values=np.array([2.0, 1.0]), complete=False), 1, 9.0)
    sink.jacobian(block(np.zeros((2, 2)), wrt="input", kind="depth_growth"), 1, 9.0)
    found = {one.tag: one for one in written(sink)}
    assert "gradlab/jacobian/output__wrt__input" not in found
    spectrum = found["gradlab/jacobian/output__wrt__input/singular_values"]
    expected = {"version": 1, "of": "output", "wrt": "input", "label": "", "kind": "singular_values", "complete": False}
    assert spectrum.metadata == expected
    assert found["gradlab/jacobian/output__growth__input"].metadata["kind"] == "depth_growth"


def test_a_block_is_numbers_with_axes_and_a_picture_and_scalars(sink):
    values = np.array([[1.0, 0.0], [0.0, -1.0]])
    sink.jacobian(block(values, singular_values=np.array([1.0, 1.0]), notes=("n",)), 5, 9.0)
    found = {one.tag: one for one in written(sink)}
    matrix = found["gradlab/jacobian/output__wrt__input"]
    assert (matrix.plugin_name, matrix.step, matrix.wall_time) == ("gradlab_jacobian", 5, 9.0)
    np.testing.assert_array_equal(matrix.value, values)
    assert matrix.metadata == {
        "version": 1,
        "of": "output",
        "wrt": "input",
        "label": "",
        "kind": "block",
        "row_names": ["r0", "r1"],
        "col_names": ["c0", "c1"],
        "engine": "vmap",
        "notes": ["n"],
    }
    assert found["gradlab/jacobian/output__wrt__input/singular_values"].value.tolist() == [1, 1]
    assert found["jacobian/output__wrt__input"].value[2] == png(diverging(values))
    assert found["jacobian/output__wrt__input/fro"].value == 1.5
    assert found["jacobian/output__wrt__input/audit_error"].value == pytest.approx(1e-7)


def test_a_block_of_several_samples_keeps_them_and_pictures_their_mean(sink):
    values = np.stack([np.eye(2, dtype=np.float32), -3 * np.eye(2, dtype=np.float32)])
    sink.jacobian(block(values), 0, 0.0)
    found = {one.tag: one for one in written(sink)}
    assert found["gradlab/jacobian/output__wrt__input"].value.shape == (2, 2, 2)
    assert found["jacobian/output__wrt__input"].value[2] == png(diverging(-np.eye(2)))


def test_blocks_of_one_name_with_other_axes_do_not_share_a_series(sink):
    for step in range(2):
        sink.jacobian(block(), step, 0.0)
        sink.jacobian(block(np.ones((1, 2)), row_names=("r9",)), step, 0.0)
    matrices = [one for one in written(sink) if one.plugin_name == "gradlab_jacobian"]
    assert [one.metadata["row_names"] for one in matrices] == [["r0", "r1"], ["r9"]] * 2
    assert len({one.tag for one in matrices}) == 2
    assert len({one.tag for one in written(sink) if one.tag.endswith("/fro")}) == 2


@pytest.mark.parametrize("loader", LOADERS)
def test_tensorboard_sees_all_that_a_sink_took(tmp_path, loader):
    sink = TensorBoardSink(EventWriter(tmp_path / "run"))
    for step in range(30):
        sink.frame(make_frame(step, weight_grad_norm=[step, 0, 0], output_norm=[1, 2, 3]))
        sink.finding(finding(step, f"a{step}"), 1.0)
        sink.finding(finding(step, f"b{step}"), 1.0)
        if step % 10 == 0:
            sink.jacobian(block(), step, 0.0)
    sink.text("run/card", "# hello", 0, 0.0)
    sink.scalars({"end": 1}, 30, 0.0)
    sink.close()
    with opened(loader, tmp_path, {"run"}) as reader:
        findings = reader.read("tensors", "gradlab_findings", "run", "gradlab/findings/records")
        vectors = reader.list("tensors", "gradlab")["run"]
        norms = reader.read("scalars", "scalars", "run", "gradlab/global/weight_grad.norm")
        block_steps = reader.steps("tensors", "gradlab_jacobian", "run", "gradlab/jacobian/output__wrt__input")
        picture = reader.blobs("run", "jacobian/output__wrt__input")
        card = reader.read("tensors", "text", "run", "run/card")[-1].numpy.item()
        told = reader.read("tensors", "text", "run", "gradlab/findings")
    assert len(told) == 1 and b"a7" in told[0].numpy.item()
    assert [[json.loads(text)["message"] for text in datum.numpy] for datum in findings] == [
        [f"a{step}", f"b{step}"] for step in range(30)
    ]
    assert {json.loads(series.plugin_content)["metric"] for tag, series in vectors.items() if "/x" not in tag} == {
        "weight_grad.norm",
        "output.norm",
    }
    assert [datum.value for datum in norms] == list(range(30))
    assert block_steps == [0, 10, 20]
    assert picture[2] == png(diverging(block().values))
    assert card == b"# hello"


# JSON lines


def test_lines_hold_what_json_can_and_name_what_it_cannot(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.scalars({"loss": np.float32(0.5), "lr": NAN, "x": -INF}, 3, 9.5)
    sink.scalars({}, 4, 9.5)
    sink.frame(make_frame(4, weight_grad_norm=[3, 4, 0], output_norm=[1, 1, 1]))
    sink.finding(finding(4, norm=2.0), 9.5)
    sink.jacobian(block(), 5, 9.5)
    sink.text("card", "# Ü\nx", 6, 9.5)
    sink.close()
    assert lines(path) == [
        {
            "step": 3,
            "time": 9.5,
            "scalars": {"loss": 0.5, "lr": None, "x": None},
            "nonfinite": {"lr": "nan", "x": "-inf"},
        },
        {"step": 4, "time": 1004.0, "scalars": {"gradlab/global/weight_grad.norm": 5.0}},
        {
            "step": 4,
            "time": 9.5,
            "finding": FIELDS | {"message": "m", "evidence": {"norm": 2.0}},
        },
        {
            "step": 5,
            "time": 9.5,
            "scalars": {"jacobian/output__wrt__input/fro": 1.5, "jacobian/output__wrt__input/audit_error": 1e-7},
        },
        {"step": 6, "time": 9.5, "text": {"tag": "card", "markdown": "# Ü\nx"}},
    ]


def test_a_resumed_run_appends_and_a_cut_off_line_stays_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "sca')
    for step in (1, 2):
        sink = JsonlSink(path)
        sink.scalars({"x": 1}, step, 0.0)
        sink.close()
    kept = path.read_text().splitlines()
    assert [json.loads(kept[i])["step"] for i in (0, 2, 3)] == [0, 1, 2]
    assert kept[1] == '{"step": 1, "sca'


def test_a_finding_can_be_read_at_once(tmp_path):
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.finding(finding(0, "now"), 0.0)
    assert lines(tmp_path / "m.jsonl")[0]["finding"]["message"] == "now"
    sink.close()


# A table


def table(path):
    """The rows of a CSV file as {column: text}, without empty fields."""
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file, strict=True)]


def test_a_table_has_one_row_a_step_and_exact_numbers(tmp_path):
    sink = CsvSink(tmp_path / "new" / "m.csv")
    frame = make_frame(3, weight_grad_norm=[0.1, ABSENT, NAN], output_norm=[1, -INF, 3e30])
    sink.scalars({"loss": 0.1}, 3, 9.5)
    sink.frame(frame)
    sink.jacobian(block(), 4, 9.5)
    sink.close()
    sink.close()
    first, second = table(tmp_path / "new" / "m.csv")
    assert list(first)[:3] == ["step", "wall_time", "loss"] and first["step"] == "3" and first["wall_time"] == "9.5"
    assert float(first["loss"]) == 0.1
    assert np.float32(first["weight_grad.norm/fc1.weight"]) == np.float32(0.1)
    assert first["weight_grad.norm/fc2.weight"] == "nan" and "weight_grad.norm/fc1.bias" not in first
    assert first["output.norm/fc1.bias"] == "-inf" and float(first["output.norm/fc2.weight"]) == np.float32(3e30)
    assert second["step"] == "4" and float(second["jacobian/output__wrt__input/fro"]) == 1.5


def test_a_site_that_comes_later_has_a_column_on_the_right_and_nothing_is_lost(tmp_path):
    sink = CsvSink(tmp_path / "m.csv")
    for step in range(300):
        sites = SITES if step < 200 else (*SITES, 'odd,"name')
        sink.frame(make_frame(step, sites, weight_grad_norm=np.arange(len(sites)) + step))
    sink.frame(make_frame(10, ("late",), output_norm=[7]))  # its row has been written long ago
    sink.close()
    *rows, late = sorted(table(tmp_path / "m.csv"), key=lambda row: "output.norm/late" in row)
    assert [int(row["step"]) for row in rows] == list(range(300))
    assert all(float(row["weight_grad.norm/fc1.bias"]) == int(row["step"]) + 1 for row in rows)
    odd = [float(row['weight_grad.norm/odd,"name']) for row in rows[200:]]
    assert odd == [step + 3 for step in range(200, 300)]
    assert late == {"step": "10", "wall_time": "1010.0", "output.norm/late": "7"}
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]
    lengths = {len(row) for row in csv.reader((tmp_path / "m.csv").read_text().splitlines())}
    assert lengths == {2 + 3 + 1 + 1}


def test_a_table_is_gone_on_with_and_a_row_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("step,wall_time,x\n0,1.0,0.5\n1,2.0,0.2")
    for step, name in ((1, "x"), (2, "y")):
        sink = CsvSink(path)
        sink.scalars({name: 0.25}, step, 3.0)
        sink.close()
    assert path.read_text() == "step,wall_time,x,y\n0,1.0,0.5,\n1,3.0,0.25,\n2,3.0,,0.25\n"


def test_rows_can_be_read_after_a_flush_and_are_written_without_a_close(tmp_path):
    sink = CsvSink(tmp_path / "m.csv")
    sink.scalars({"x": 1.0}, 0, 0.0)
    sink.flush()
    assert len(table(tmp_path / "m.csv")) == 1
    sink.scalars({"x": 1.0}, 1, 0.0)
    del sink
    assert len(table(tmp_path / "m.csv")) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_event_error():
    sink = JsonlSink("/dev/full")
    sink.scalars({"x": 1}, 0, 0.0)
    with pytest.raises(EventError, match="cannot write to /dev/full: no space left on device"):
        sink.flush()
    sink.close()


# Memory and callbacks


def test_memory_keeps_the_last_of_each_kind():
    sink = MemorySink(last=2)
    for step in range(3):
        sink.frame(make_frame(step, output_norm=[1, 2, 3]))
        sink.scalars({"x": step}, step, 0.0)
        sink.finding(finding(step), 0.0)
        sink.jacobian(block(), step, 0.0)
        sink.text("t", "x", step, 0.0)
    sink.close()
    assert [frame.step for frame in sink.frames] == [1, 2]
    assert list(sink.logged) == [(1, {"x": 1}), (2, {"x": 2})]
    assert [one.step for one in sink.findings] == [1, 2]
    assert [step for step, _ in sink.blocks] == [1, 2]
    assert list(sink.texts) == [(1, "t", "x"), (2, "t", "x")]


def test_a_callback_gets_numbers_and_step_and_its_own_findings():
    calls, findings = [], []
    sink = CallbackSink(lambda scalars, step: calls.append((step, scalars)), on_finding=findings.append, scalars="all")
    sink.frame(make_frame(3, output_norm=[1, 2, ABSENT]))
    sink.scalars({"loss": 0.5}, 4, 0.0)
    sink.frame(make_frame(5))
    sink.finding(finding(6), 0.0)
    sink.jacobian(block(), 7, 0.0)
    assert calls == [
        (3, {"output.norm/fc1.weight": 1.0, "output.norm/fc1.bias": 2.0}),
        (4, {"loss": 0.5}),
        (7, {"jacobian/output__wrt__input/fro": 1.5, "jacobian/output__wrt__input/audit_error": 1e-7}),
    ]
    assert [one.step for one in findings] == [6]
