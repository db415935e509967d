"""EventWriter: what each call puts into the file, once and in order, and what it refuses."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from tensorboard.plugins.hparams import plugin_data_pb2

from gradlab.errors import EventError
from gradlab.events import EventWriter, read_events
from gradlab.events.tfrecord import read_records
from gradlab.frame import Schema


@pytest.fixture
def writer(tmp_path):
    writer = EventWriter(tmp_path)
    yield writer
    writer.close()


def written(writer):
    writer.flush()
    return list(read_events(writer.path))


def floats(*values):
    return np.array(values, np.float32)


def test_the_file_is_named_so_that_tensorboard_finds_it_and_is_readable_at_once(writer):
    parts = writer.path.name.split(".")
    assert parts[:3] == ["events", "out", "tfevents"]
    assert parts[3].isdigit() and parts[-3:] == [str(os.getpid()), "0", "gradlab"]
    assert len(list(read_records(writer.path))) == 1


def test_writers_of_one_second_in_one_folder_do_not_overwrite_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr("gradlab.events.writer.time.time", lambda: 1.8e9)
    writers = [EventWriter(tmp_path) for _ in range(3)]
    for number, writer in enumerate(writers):
        writer.scalars({"x": number}, 0)
        writer.close()
    assert [next(read_events(writer.path)).value for writer in writers] == [0.0, 1.0, 2.0]


def test_other_ranks_get_a_folder_of_their_own(tmp_path):
    writer = EventWriter(tmp_path, rank=3)
    writer.close()
    assert writer.path.parent == tmp_path / "rank3"


def test_names_are_written_once_and_again_when_the_sites_change(writer):
    few, many = Schema("weight.norm", ("a",)), Schema("weight.norm", ("a", "b"))
    for step, schema in enumerate([few, few, many, few, many]):
        writer.vectors([(schema, np.full(len(schema.sites), step, np.float32))], step)
    values = written(writer)
    assert [one.tag for one in values] == [few.tag, few.tag, many.tag, few.tag, many.tag]
    assert [len(one.value) for one in values] == [1, 1, 2, 1, 2]
    assert values[-1].metadata["sites"] == ["a", "b"]
    assert sum(b'"sites"' in payload for payload in read_records(writer.path)) == 2


def test_schemas_made_anew_each_step_are_recognised(writer):
    for step in range(200):
        sites = tuple(f"s{step % 2}.{i}" for i in range(3))
        writer.vectors([(Schema("weight.norm", sites), floats(step, 0, 0))], step)
    vectors = [one for one in written(writer) if "sites" in one.metadata]
    assert [(one.step, one.value[0], one.metadata["sites"][0]) for one in vectors] == [
        (step, step, f"s{step % 2}.0") for step in range(200)
    ]
    assert len(writer._vector_templates) <= 64


@pytest.mark.parametrize("sites", [0, 1, 10_000])
def test_vectors_of_any_length(writer, sites):
    schema = Schema("output.norm", tuple(f"layer.{i}" for i in range(sites)))
    values = np.random.default_rng(0).random(sites, np.float32)
    for step in range(2):
        writer.vectors([(schema, values)], step)
    for one in written(writer):
        np.testing.assert_array_equal(one.value, values)
        assert len(one.metadata["sites"]) == sites


def test_nothing_to_write_is_no_record(writer):
    writer.vectors([], 0)
    writer.scalars({}, 0)
    assert written(writer) == []


def test_a_vector_keeps_the_very_bits_of_its_nans(writer):
    bits = np.array([0x7FC00ABE, 0x7FC00000, 0xFF800000], np.uint32)
    writer.vectors([(Schema("m", ("a", "b", "c")), bits.view(np.float32))], 0)
    assert written(writer)[0].value.view(np.uint32).tolist() == bits.tolist()


def test_strided_and_wide_arrays_are_taken_by_value(writer):
    schema = Schema("m", ("a", "b"))
    writer.vectors([(schema, floats(1, 9, 2, 9)[::2])], 0)
    writer.vectors([(schema, np.array([1.0, 2.0]))], 1)
    assert [one.value.tolist() for one in written(writer)] == [[1, 2], [1, 2]]


def test_scalars_are_one_record_a_call(writer):
    writer.scalars({"loss": 0.5, "lr": 1e-3}, 4, 12.5)
    writer.scalars({"loss": float("nan")}, 5)
    values = written(writer)
    assert [(one.tag, one.plugin_name, one.step) for one in values] == [
        ("loss", "scalars", 4),
        ("lr", "scalars", 4),
        ("loss", "scalars", 5),
    ]
    assert values[0].value == 0.5 and values[0].wall_time == 12.5 and np.isnan(values[2].value)
    assert len(list(read_records(writer.path))) == 3


@pytest.mark.parametrize("first", ["scalars", "vectors", "text"])
def test_a_step_that_goes_back_is_refused_and_the_writer_stays_usable(writer, first):
    schema = Schema("m", ("a",))
    calls = {
        "scalars": (lambda step: writer.scalars({"other": 0, "x": 0}, step), "x"),
        "vectors": (lambda step: writer.vectors([(schema, floats(0))], step), schema.tag),
        "text": (lambda step: writer.text("note", "hello", step), "note"),
    }
    call, tag = calls[first]
    call(9)
    writer.scalars({"elsewhere": 0}, 2)
    with pytest.raises(EventError, match=r"step 8 comes after step 9; TensorBoard would drop what it has from 8 on"):
        call(8)
    call(9)
    call(10)
    assert [one.step for one in written(writer) if one.tag == tag] == [9, 9, 10]
    assert writer.last_step(tag) == 10 and writer.last_step("unknown") is None


def test_a_picture_is_a_png_in_the_images_tab(writer):
    writer.image("p", np.zeros((2, 3, 3), np.uint8), 1)
    (one,) = written(writer)
    assert one.plugin_name == "images" and one.value[:2].tolist() == [b"3", b"2"]
    assert one.value[2].startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("pixels", [np.zeros((2, 3, 3)), np.zeros((2, 3), np.uint8), np.zeros((3, 2, 4), np.uint8)])
def test_what_is_no_picture_is_refused(writer, pixels):
    with pytest.raises(EventError, match=r"p: a picture is an array \[height, width, 3\] of uint8, got \["):
        writer.image("p", pixels, 1)


def test_a_histogram_is_left_right_count(writer):
    writer.histogram("h", np.array([0.0, 1.0, 4.0]), np.array([5, 6]), 1)
    (one,) = written(writer)
    assert one.plugin_name == "histograms" and one.value.tolist() == [[0, 1, 5], [1, 4, 6]]
    with pytest.raises(
        EventError, match=r"counts \[bins\] between edges \[bins \+ 1\], got edges \[2\] and counts \[2\]"
    ):
        writer.histogram("h", np.zeros(2), np.zeros(2), 2)


def test_tensors_and_strings_carry_their_plugin_and_metadata(writer):
    writer.tensor("t", np.eye(2), 1, plugin_name="mine", metadata={"row_names": ["a", "∂"]})
    writer.strings("s", ["x", "Ünicode"], 1, plugin_name="words")
    tensor, strings = written(writer)
    assert tensor.plugin_name == "mine" and tensor.metadata == {"row_names": ["a", "∂"]}
    assert tensor.value.dtype == np.float64 and tensor.value.tolist() == [[1, 0], [0, 1]]
    assert strings.plugin_name == "words" and [s.decode() for s in strings.value] == ["x", "Ünicode"]


def test_settings_are_flat_typed_and_written_once(writer):
    writer.hparams(
        {"model": {"widths": [64, 32], "bias": True, "none": None}, "lr": np.float64(1e-3), "seed": 7}, ["val/loss"]
    )
    experiment, session = written(writer)
    started = plugin_data_pb2.HParamsPluginData.FromString(session.content).session_start_info
    read = {name: getattr(value, value.WhichOneof("kind")) for name, value in started.hparams.items()}
    assert read == {"model.widths": "[64, 32]", "model.bias": True, "model.none": "None", "lr": 1e-3, "seed": 7.0}
    shown = plugin_data_pb2.HParamsPluginData.FromString(experiment.content).experiment
    assert {info.name: info.type for info in shown.hparam_infos} == {
        "model.widths": 1,
        "model.none": 1,
        "model.bias": 2,
        "lr": 3,
        "seed": 3,
    }
    assert [info.name.tag for info in shown.metric_infos] == ["val/loss"]
    with pytest.raises(EventError, match=r"has settings already, and TensorBoard keeps the first\. Use text\(\)"):
        writer.hparams({"lr": 1})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_one_error_at_the_flush_and_closes_the_writer(writer):
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._file._raw.fileno())
    os.close(full)
    writer.scalars({"x": 1}, 0)
    with pytest.raises(EventError, match="no space left on device"):
        writer.flush()
    assert writer.closed
    with pytest.raises(EventError, match="is closed; nothing more can be written"):
        writer.scalars({"x": 1}, 1)
    writer.close()


def test_what_was_written_is_there_when_the_process_ends_without_close(tmp_path):
    script = f"""
        from gradlab.events import EventWriter
        kept = EventWriter({str(tmp_path / "kept")!r})
        kept.scalars({{"x": 1}}, 0)
        EventWriter({str(tmp_path / "dropped")!r}).scalars({{"x": 2}}, 0)
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(script)], check=True)
    files = [*(tmp_path / "kept").iterdir(), *(tmp_path / "dropped").iterdir()]
    assert [next(read_events(path)).value for path in files] == [1.0, 2.0]


def test_writing_needs_neither_torch_nor_tensorboard_nor_protobuf():
    heavy = ["torch", "tensorboard", "google.protobuf", "PIL", "pytorch_lightning"]
    script = f"import sys, gradlab.events, gradlab.sinks; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
