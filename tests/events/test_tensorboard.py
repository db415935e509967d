"""What TensorBoard makes of our files, through both of its loaders."""

import json

import numpy as np
import pytest
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard_loaders import LOADERS, opened

from gradlab.events import EventWriter, png
from gradlab.frame import Schema

SCHEMA = Schema("weight_grad.norm", ("fc1.weight", "∂/relu"))
LATER = Schema("weight_grad.norm", ("fc1.weight", "∂/relu", "head"))
PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
STEPS = 300


def vector(step, schema=SCHEMA):
    values = np.full(len(schema.sites), step, np.float32)
    values[-1] = np.nan if step % 2 else np.inf
    return values


def write_everything(logdir):
    writer = EventWriter(logdir)
    for step in range(STEPS):
        schema = SCHEMA if step < 200 else LATER
        writer.vectors([(schema, vector(step, schema))], step, 1000.0 + step)
        writer.scalars({"train/loss": 1 / (1 + step), "epoch": step // 10}, step)
    writer.image("picture", PIXELS, 5)
    writer.text("card", "# Überschrift\n*text*", 5)
    writer.histogram("counts", np.array([0.0, 1.0, 4.0]), np.array([5, 6]), 5)
    writer.strings("words", ["a", "∂"], 5, plugin_name="gradlab_findings")
    writer.tensor("block", np.eye(3), 5, plugin_name="gradlab_jacobian", metadata={"row_names": ["r"]})
    writer.hparams({"lr": 0.5, "model": {"name": "mlp", "bias": True}})
    writer.scalars({"end": 1}, STEPS)
    writer.close()


def write_resumed(logdir):
    for first, last in ((0, 10), (6, 8)):
        writer = EventWriter(logdir, resumed_step=first or None)
        for step in range(first, last):
            writer.vectors([(SCHEMA, np.full(2, 100 * first + step, np.float32))], step)
            writer.scalars({"train/loss": 100 * first + step}, step)
        if first:
            writer.scalars({"end": 1}, last)
        writer.close()


def write_cut_off(logdir):
    writer = EventWriter(logdir)
    for step in range(3):
        writer.scalars({"train/loss": step, "end": 1}, step)
    writer.close()
    writer.path.write_bytes(writer.path.read_bytes()[:-7])


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("logdir")
    write_everything(logdir / "all")
    write_resumed(logdir / "resumed")
    write_cut_off(logdir / "cut")
    return logdir


@pytest.fixture(scope="module", params=LOADERS)
def reader(request, logdir):
    with opened(request.param, logdir, {"all", "resumed", "cut"}) as reader:
        yield reader


def test_vectors_arrive_whole_at_every_step(reader):
    data = reader.read("tensors", "gradlab", "all", SCHEMA.tag)
    assert [(datum.step, datum.wall_time) for datum in data] == [(step, 1000.0 + step) for step in range(200)]
    for datum in data:
        np.testing.assert_array_equal(datum.numpy, vector(datum.step))


def test_a_schema_that_changes_becomes_a_series_of_its_own_with_its_own_names(reader):
    listed = reader.list("tensors", "gradlab")["all"]
    assert {tag for tag in listed if "/x" not in tag} == {SCHEMA.tag, LATER.tag}
    for schema in (SCHEMA, LATER):
        assert json.loads(listed[schema.tag].plugin_content) == {
            "version": 1,
            "metric": "weight_grad.norm",
            "unit": "",
            "sites": list(schema.sites),
        }
    assert reader.steps("tensors", "gradlab", "all", LATER.tag) == list(range(200, STEPS))


def test_scalars_are_native(reader):
    assert {"train/loss", "epoch", "end"} <= set(reader.list("scalars", "scalars")["all"])
    data = reader.read("scalars", "scalars", "all", "train/loss")
    assert [datum.step for datum in data] == list(range(STEPS))
    np.testing.assert_allclose([datum.value for datum in data], 1 / np.arange(1.0, STEPS + 1), rtol=1e-7)


def test_a_picture_arrives_as_its_size_and_its_png(reader):
    assert reader.blobs("all", "picture") == [b"3", b"2", png(PIXELS)]


def test_texts_histograms_strings_and_tensors_reach_their_tabs(reader):
    def last(plugin, tag):
        return reader.read("tensors", plugin, "all", tag)[-1].numpy

    assert last("text", "card").item().decode() == "# Überschrift\n*text*"
    assert last("histograms", "counts").tolist() == [[0, 1, 5], [1, 4, 6]]
    assert [one.decode() for one in last("gradlab_findings", "words")] == ["a", "∂"]
    assert last("gradlab_jacobian", "block").tolist() == np.eye(3).tolist()
    listed = reader.list("tensors", "gradlab_jacobian")["all"]["block"]
    assert json.loads(listed.plugin_content) == {"row_names": ["r"]}


def test_the_hparams_tab_lists_the_run_with_its_settings_and_metrics(reader):
    backend = backend_context.Context(TBContext(data_provider=reader.provider))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING]
    )
    experiment = backend.experiment_from_metadata(
        reader._context,
        "",
        True,
        backend.hparams_metadata(reader._context, ""),
        backend.hparams_from_data_provider(reader._context, "", limit=100),
    )
    groups = list_session_groups.Handler(reader._context, backend, "", request).run().session_groups
    (group,) = groups
    settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}
    assert settings == {"lr": 0.5, "model.name": "mlp", "model.bias": True}
    assert {info.name for info in experiment.hparam_infos} == set(settings)
    assert "train/loss" in {info.name.tag for info in experiment.metric_infos}
    assert [session.name for session in group.sessions] == ["all"]


def test_a_resumed_run_goes_on_where_it_was_resumed(reader):
    expected = [*range(6), 606, 607]
    scalars = reader.read("scalars", "scalars", "resumed", "train/loss")
    vectors = reader.read("tensors", "gradlab", "resumed", SCHEMA.tag)
    assert [datum.step for datum in scalars] == list(range(8))
    assert [datum.value for datum in scalars] == expected
    assert [datum.numpy[0] for datum in vectors] == expected


def test_a_record_cut_off_at_the_end_costs_that_record_only(reader):
    assert reader.steps("scalars", "scalars", "cut", "train/loss") == [0, 1]
