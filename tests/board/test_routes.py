"""Every route, with both of TensorBoard's data providers: the numbers of the file, and a sentence for what is wrong."""

import gzip
import json

import numpy as np
import pytest
from board.conftest import HOSTILE, NAN_STEP, log_values, some_values
from board.windows import TRACE, summary
from tensorboard.backend import application
from tensorboard.plugins import base_plugin
from tensorboard_loaders import LOADERS, _python, _rust
from werkzeug.test import Client

from gradlab.board.file_source import FileSource
from gradlab.board.loader import GradlabLoader
from gradlab.board.plugin import GradientsPlugin
from gradlab.board.wire import unpack
from gradlab.events import EventWriter
from gradlab.frame import Schema
from gradlab.tags import KEPT_STEPS


class Flags:
    samples_per_plugin = dict(KEPT_STEPS)  # noqa: RUF012
    path_prefix = ""


class Page:
    """The application of TensorBoard with this plugin alone, as a browser would ask it."""

    def __init__(self, provider, logdir, prefix=""):
        context = base_plugin.TBContext(data_provider=provider, logdir=str(logdir), flags=Flags())
        app = application.TensorBoardWSGI([GradientsPlugin(context)], path_prefix=prefix)
        self.client, self.prefix = Client(app), prefix

    def get(self, name, /, **query):
        return self.client.get(f"{self.prefix}/data/plugin/gradlab/{name}", query_string=query)

    def json(self, name, /, **query):
        answer = self.get(name, **query)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return json.loads(answer.data)

    def packed(self, name, /, **query):
        answer = self.get(name, **query)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return unpack(answer.data)

    def error(self, name, /, **query):
        answer = self.get(name, **query)
        return answer.status_code, json.loads(answer.data)["error"]


def provider_of(loader, logdir):
    return _rust(logdir) if loader == "rust" else _python(logdir)


def wait_for(page, run, last_step):
    """The Rust loader reads in its own time."""
    import time

    deadline = time.monotonic() + 120
    while not any(one["name"] == run and one["last_step"] == last_step for one in page.json("index")["runs"]):
        assert time.monotonic() < deadline, page.json("index")["runs"]
        time.sleep(0.05)


@pytest.fixture(scope="module", params=LOADERS)
def page(request, logdir):
    with provider_of(request.param, logdir) as provider:
        found = Page(provider, logdir)
        for run, last in (("trained", 59), ("other", 49), ("hostile", 89)):
            wait_for(found, run, last)
        yield found


@pytest.fixture(scope="module")
def truth(logdir):
    return FileSource(logdir / "trained", "trained")


def test_the_index_has_every_run_and_what_it_holds(page):
    index = page.json("index")
    runs = {run["name"]: run for run in index["runs"]}
    assert set(runs) == {"trained", "other", "hostile"}
    assert index["others"] == ["plain"]
    trained = runs["trained"]
    assert {"weight_grad.norm", "update_ratio", "output_grad.zeros", "weight_grad.hist"} <= set(trained["metrics"])
    sites = index["sites"][trained["metrics"]["weight_grad.norm"]["sites"]]
    assert sites == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert trained["settings"] == {"optimizer.lr": 0.01, "seed": 0.0}
    assert [one["name"] for one in trained["jacobians"]] == ["2__wrt__0:in"]
    assert trained["notes"] == []


def test_the_flow_has_the_logged_values_bit_for_bit(page, truth):
    header, arrays = page.packed("heat", run="trained", metric="weight_grad.norm", columns=1000)
    tag = next(tag for tag in truth.list("gradlab")["trained"] if "weight_grad.norm" in tag and "/x" not in tag)
    logged = truth.read("gradlab", "trained", tag)
    assert header["sites"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    np.testing.assert_array_equal(arrays["first"], logged.steps)
    np.testing.assert_array_equal(arrays["mean"].view(np.uint32), logged.values.T.view(np.uint32))
    assert arrays["bad"].nonzero()[1].tolist() == [NAN_STEP] * 4


@pytest.mark.parametrize("columns", [1, 7, 30])
def test_pooling_keeps_the_step_that_was_not_finite(page, columns):
    _, arrays = page.packed("heat", run="trained", metric="weight_grad.norm", columns=columns)
    assert arrays["mean"].shape == (4, columns)
    assert arrays["bad"].sum(1).tolist() == [1] * 4
    at = int(arrays["bad"][0].argmax())
    assert arrays["first"][at] <= NAN_STEP <= arrays["last"][at]


def test_a_range_of_steps_and_a_pattern(page):
    header, arrays = page.packed("heat", run="trained", metric="weight_grad.norm", start=10, end=19, match="*.bias")
    assert header["sites"] == ["0.bias", "2.bias"]
    assert arrays["first"].tolist() == list(range(10, 20))


def test_the_difference_of_two_runs_is_the_ratio_of_what_both_logged(page):
    ours = page.packed("heat", run="trained", metric="weight_grad.norm")[1]["mean"][:, :50].astype(np.float64)
    theirs = page.packed("heat", run="other", metric="weight_grad.norm")[1]["mean"].astype(np.float64)
    header, arrays = page.packed("heat", run="trained", metric="weight_grad.norm", minus="other")
    assert header["scale"] == "log2 ratio"
    assert arrays["first"].tolist() == list(range(50))
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.log2(ours / theirs)
    sound = np.isfinite(expected)
    np.testing.assert_allclose(arrays["mean"][sound], expected[sound], rtol=1e-4, atol=1e-5)
    assert arrays["bad"][0, NAN_STEP] == 2


def test_a_run_less_itself_is_nothing(page):
    _, arrays = page.packed("heat", run="trained", metric="weight_grad.norm", minus="trained", columns=10)
    assert np.nanmax(np.abs(arrays["mean"])) == 0


def test_a_layer_has_every_stat_of_its_site(page):
    header, arrays = page.packed("layer", run="trained", site="0.weight", columns=1000)
    metrics = [one["metric"] for one in header["metrics"]]
    assert set(metrics) == {"weight_grad.norm", "weight_grad.hist", "weight.norm", "update.norm", "update_ratio"}
    flow = page.packed("heat", run="trained", metric="weight_grad.norm")[1]["mean"][0]
    np.testing.assert_array_equal(arrays[f"{metrics.index('weight_grad.norm')}.mean"], flow)
    hist = metrics.index("weight_grad.hist")
    counts = arrays[f"{hist}.counts"]
    assert counts.shape[1] == len(header["metrics"][hist]["edges"]) - 1
    assert counts[0].sum() == 48
    assert arrays[f"{metrics.index('weight.norm')}.first"].tolist() == list(range(0, 60, 5))


def test_scalars_findings_and_settings(page):
    header, arrays = page.packed("scalars", run="trained", tag=["train/loss", "lr"])
    assert header["tags"] == ["train/loss", "lr"]
    assert arrays["0.steps"].tolist() == list(range(60))
    np.testing.assert_allclose(arrays["1.values"], 0.01, rtol=1e-6)
    found = page.json("findings", run="trained")["findings"]
    (nonfinite,) = [one for one in found if one["code"] == "GL702"]
    assert (nonfinite["name"], nonfinite["first_step"]) == ("nonfinite", NAN_STEP)
    assert "2.bias" in nonfinite["sites"]


def test_a_jacobian_at_a_step_is_the_one_in_the_file(page, truth):
    logged = truth.read("gradlab_jacobian", "trained", "gradlab/jacobian/2__wrt__0:in")
    header, arrays = page.packed("jacobian", run="trained", name="2__wrt__0:in", step=21)
    assert (header["steps"], header["step"]) == (logged.steps.tolist(), 20)
    assert len(header["row_names"]) == arrays["block"].shape[0] == 3
    np.testing.assert_allclose(arrays["block"], logged.values[1], rtol=1e-6)
    sigma = np.linalg.svd(logged.values[1].astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(arrays["singular_values"], sigma, rtol=1e-4)
    assert "fro" in header["summaries"]


def test_a_run_without_a_profile_has_no_windows(page):
    assert page.json("profile", run="trained")["windows"] == []


def test_windows_of_the_profiler_and_what_is_wrong_with_them(page):
    found = {one["name"]: one for one in page.json("profile", run="hostile")["windows"]}
    assert found["step_000003"]["summary"] == summary()
    assert [trace["name"] for trace in found["step_000003"]["traces"]] == [TRACE]
    assert found["step_000010"]["problem"] == (
        "This window was written by a newer gradlab (schema 99; this board knows 2). Its trace can still be opened."
    )
    assert found["step_000020"]["problem"].startswith("The summary of this window cannot be read (JSONDecodeError: ")
    assert found["step_000030"]["problem"].startswith("This window has a trace but no summary.json")


def test_a_trace_can_be_saved(page):
    answer = page.get("trace", run="hostile", window="step_000003", name=TRACE)
    assert answer.status_code == 200
    assert gzip.decompress(answer.data) == b'{"traceEvents": []}'
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{TRACE}"'


@pytest.mark.parametrize(
    ("name", "query", "code", "text"),
    [
        (
            "heat",
            {"run": "trainde", "metric": "x"},
            404,
            "no run 'trainde'. Did you mean 'trained'? TensorBoard has 4.",
        ),
        ("heat", {"metric": "x"}, 400, "the address lacks 'run'."),
        ("heat", {"run": "plain", "metric": "x"}, 400, "plain has no metric 'x'. It has: none."),
        (
            "layer",
            {"run": "trained", "site": "0.weigth"},
            400,
            "trained has no site '0.weigth'. Did you mean '0.weight' or '2.weight'?",
        ),
        ("jacobian", {"run": "plain", "name": "a"}, 400, "plain has no Jacobian 'a'. It has: none."),
        (
            "heat",
            {"run": "trained", "metric": "weight_grad.norm", "start": "x"},
            400,
            "start in the address has to be a number, not 'x'.",
        ),
        (
            "heat",
            {"run": "trained", "metric": "weight_grad.hist"},
            400,
            "weight_grad.hist holds histograms, which have no place in the flow; choose a site to see them.",
        ),
        (
            "trace",
            {"run": "trained", "window": "..", "name": "../x"},
            400,
            "there is no trace '../x' in a window '..' of this run.",
        ),
    ],
)
def test_what_is_wrong_is_a_sentence(page, name, query, code, text):
    assert page.error(name, **query) == (code, text)


def test_a_hostile_name_is_text_in_json(page):
    index = page.json("index")
    assert any(f"blocks.1.{HOSTILE}" in sites for sites in index["sites"])
    answer = page.get("index")
    assert answer.content_type.startswith("application/json")


def test_static_files_are_served_and_nothing_else(page):
    answer = page.get("static/index.js")
    assert (answer.status_code, answer.content_type.split(";")[0]) == (200, "text/javascript")
    assert page.get("static/style.css").content_type.startswith("text/css")
    for path in ("static/../plugin.py", "static/..%2fplugin.py", "static/nothing.js"):
        assert page.get(path).status_code == 404


def test_it_works_below_a_path_prefix(logdir):
    with _python(logdir) as provider:
        page = Page(provider, logdir, prefix="/foo/tb")
        assert page.get("index").status_code == 200
        assert page.client.get("/data/plugin/gradlab/index").status_code == 404


# Bad files


@pytest.mark.parametrize("loader", LOADERS)
def test_a_damaged_file_is_shown_as_far_as_it_goes_and_said(tmp_path, loader):
    sink = log_values(tmp_path / "logs" / "run", some_values(30, 2), ("a", "b"))
    raw = bytearray(sink.writer.path.read_bytes())
    raw[len(raw) * 2 // 3] ^= 0xFF
    sink.writer.path.write_bytes(raw)
    with provider_of(loader, tmp_path / "logs") as provider:
        page = Page(provider, tmp_path / "logs")
        wait_until_runs(page)
        _, arrays = page.packed("heat", run="run", metric="weight_grad.norm")
        assert 0 < arrays["mean"].shape[1] < 30
        (note,) = page.json("health", run="run")["notes"]
    assert f"{sink.writer.path.name} is damaged at byte" in note
    assert "What comes before it is sound" in note


@pytest.mark.parametrize("loader", LOADERS)
def test_a_file_that_is_cut_off_is_shown_without_its_last_record(tmp_path, loader):
    sink = log_values(tmp_path / "logs" / "run", some_values(20, 2), ("a", "b"))
    raw = sink.writer.path.read_bytes()
    sink.writer.path.write_bytes(raw[: len(raw) * 2 // 3])
    with provider_of(loader, tmp_path / "logs") as provider:
        page = Page(provider, tmp_path / "logs")
        wait_until_runs(page)
        _, arrays = page.packed("heat", run="run", metric="weight_grad.norm")
        assert 0 < arrays["mean"].shape[1] < 20
        assert page.json("health", run="run")["notes"] == []


@pytest.mark.parametrize("loader", LOADERS)
def test_layers_renamed_at_resume_are_rows_of_their_own_and_said(tmp_path, loader):
    log_values(tmp_path / "logs" / "run", np.ones((10, 2)), ("a", "b"))
    writer = EventWriter(tmp_path / "logs" / "run", resumed_step=10)
    for step in range(10, 15):
        writer.vectors([(Schema("weight_grad.norm", ("a", "c")), np.full(2, 2.0))], step)
    writer.close()
    with provider_of(loader, tmp_path / "logs") as provider:
        page = Page(provider, tmp_path / "logs")
        wait_for(page, "run", 14)
        header, arrays = page.packed("heat", run="run", metric="weight_grad.norm")
        (run,) = page.json("index")["runs"]
    assert run["notes"] == [
        "weight_grad.norm was logged with 2 different sets of sites, as after layers were renamed; "
        "rows without a value at a step are left empty."
    ]
    rows = dict(zip(header["sites"], arrays["mean"].tolist(), strict=True))
    assert rows["a"] == [1.0] * 10 + [2.0] * 5
    assert np.isnan(rows["b"][10:]).all()
    assert np.isnan(rows["c"][:10]).all()


def wait_until_runs(page):
    import time

    deadline = time.monotonic() + 120
    while not page.json("index")["runs"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# The loader


def test_caps_are_raised_unless_the_user_has_set_them():
    class Given:
        samples_per_plugin = {"gradlab": 50}  # noqa: RUF012

    GradlabLoader().fix_flags(Given)
    assert Given.samples_per_plugin == {"gradlab": 50, "gradlab_findings": 0, "gradlab_jacobian": 500}


def test_the_loader_survives_whatever_is_missing(monkeypatch, caplog):
    import sys

    GradlabLoader().fix_flags(object())
    monkeypatch.setitem(sys.modules, "gradlab.board.plugin", None)
    assert GradlabLoader().load(base_plugin.TBContext()) is None
    assert [record.message.partition(":")[0] for record in caplog.records] == ["gradlab", "gradlab"]
    assert "the Gradients tab is off" in caplog.records[-1].message


def test_the_loader_imports_neither_torch_nor_numpy_before_it_is_asked():
    import subprocess
    import sys

    code = "import sys, gradlab.board.loader; print([m for m in ('torch', 'plotly', 'pandas') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
