"""Bytes made by hand against protobuf's own parser, on random input."""

import math
import random

import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.util import tensor_util

from gradlab.errors import EventError
from gradlab.events import decode, encode
from gradlab.events.encode import DataClass
from gradlab.events.templates import ScalarTemplate, VectorTemplate
from gradlab.frame import Schema

WORDS = ["fc1.weight", "層.0/relu", "a b\tc", "loss", "🙂", "x" * 300, "encoder.0[1]", "∂L/∂x", "q" * 127, "r" * 128]
STEPS = [0, 1, 127, 128, 300, 2**31, 2**62, -1]


def parse(payload):
    return event_pb2.Event.FromString(payload)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 16383, 16384, 2**32, 2**63 - 1, -1, -(2**63)])
def test_varints_are_protobufs(number):
    if number:  # protobuf leaves zeros out
        assert encode.integer(2, number) == event_pb2.Event(step=number).SerializeToString()
    assert parse(encode.integer(2, number)).step == number


@pytest.mark.parametrize("seed", range(20))
def test_random_vectors_are_what_protobuf_reads(seed):
    draw = random.Random(seed)
    rng = np.random.default_rng(seed)
    schemas, arrays = [], []
    for metric in draw.sample(WORDS, draw.randint(1, 6)):
        sites = tuple(f"{draw.choice(WORDS)}.{i}" for i in range(draw.choice([0, 1, 2, 31, 200])))
        schemas.append(Schema(metric, sites))
        array = rng.standard_normal(len(sites)).astype(np.float32)
        array[rng.random(len(sites)) < 0.2] = draw.choice([np.nan, np.inf, -np.inf, -0.0, 1e-45])
        arrays.append(array)
    heads = {schemas[0].tag: encode.metadata("gradlab", b"{}", DataClass.TENSOR)}
    step, wall_time = draw.choice(STEPS), draw.random() * 2e9
    event = parse(VectorTemplate(schemas, heads).encode(arrays, step, wall_time))
    assert (event.step, event.wall_time) == (step, wall_time)
    assert [value.tag for value in event.summary.value] == [schema.tag for schema in schemas]
    assert [value.HasField("metadata") for value in event.summary.value] == [True] + [False] * (len(schemas) - 1)
    for value, array in zip(event.summary.value, arrays, strict=True):
        np.testing.assert_array_equal(tensor_util.make_ndarray(value.tensor), array)
        assert value.tensor.tensor_content == array.tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_random_scalars_are_what_protobuf_reads(seed):
    draw = random.Random(seed)
    tags = draw.sample(WORDS, draw.randint(1, len(WORDS)))
    values = [draw.choice([0.0, -1.5, math.nan, math.inf, 1e300, 1e-60, draw.gauss(0, 1)]) for _ in tags]
    event = parse(ScalarTemplate(tags).encode(values, draw.choice(STEPS), 1.5))
    with np.errstate(over="ignore"):
        expected = np.array(values).astype(np.float32)
    assert [value.tag for value in event.summary.value] == tags
    np.testing.assert_array_equal([value.simple_value for value in event.summary.value], expected)


def test_a_template_keeps_nothing_of_the_step_before():
    schema = Schema("m", ("a", "b"))
    template, scalars = VectorTemplate([schema], {}), ScalarTemplate(["x"])
    first = template.encode(template.contents([np.ones(2, np.float32)]), 1, 1.0), scalars.encode([1.0], 1, 1.0)
    template.encode(template.contents([np.zeros(2, np.float32)]), 300, 2.0)
    scalars.encode([0.0], 300, 2.0)
    assert (
        template.encode(template.contents([np.ones(2, np.float32)]), 1, 1.0),
        scalars.encode([1.0], 1, 1.0),
    ) == first


def test_a_vector_of_the_wrong_length_is_refused_by_name():
    template = VectorTemplate([Schema("weight.norm", ("a",)), Schema("output.norm", ("a", "b"))], {})
    with pytest.raises(EventError, match=r"^output.norm has 2 sites but 3 values were given\.$"):
        template.contents([np.ones(1, np.float32), np.ones(3, np.float32)])


@pytest.mark.parametrize("dtype", [*encode.DATA_TYPES, ">f4"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 3, 4)])
def test_arrays_of_every_type_and_shape(dtype, shape):
    array = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    head = encode.metadata("näme", b"\x00\xff", DataClass.BLOB_SEQUENCE)
    (value,) = parse(encode.event(3, 1.5, encode.tensor_value("t", array, head))).summary.value
    assert value.metadata == summary_pb2.SummaryMetadata(
        plugin_data={"plugin_name": "näme", "content": b"\x00\xff"}, data_class=3
    )
    if array.size or dtype not in ("uint32", "uint64"):  # TensorBoard cannot read these where they are empty
        seen = tensor_util.make_ndarray(value.tensor)
        assert seen.dtype == array.dtype.newbyteorder("=") and seen.shape == shape
        np.testing.assert_array_equal(seen, array)
    (ours,) = decode.event(encode.event(3, 1.5, encode.tensor_value("t", array, head))).values
    np.testing.assert_array_equal(ours.value, array)


def test_an_array_that_the_format_cannot_hold_is_refused():
    with pytest.raises(EventError, match=r"^t: cannot store an array of complex64\. It may be one of float32, "):
        encode.tensor_value("t", np.zeros(2, np.complex64))


@pytest.mark.parametrize("strings", [[], [b""], [b"a", b"\x00\xff", b"x" * 1000]])
def test_strings(strings):
    payload = encode.event(0, 0.0, encode.string_value("t", strings, [len(strings)]))
    (value,) = parse(payload).summary.value
    assert list(value.tensor.string_val) == strings
    assert tensor_util.make_ndarray(value.tensor).shape == (len(strings),)
    assert list(decode.event(payload).values[0].value) == strings


def test_the_first_event_and_the_restart():
    assert parse(encode.first_event(7.5)) == event_pb2.Event(
        wall_time=7.5, file_version="brain.Event:2", source_metadata={"writer": "gradlab.events"}
    )
    restart = parse(encode.restart_event(40, 7.5))
    assert (restart.step, restart.session_log.status) == (40, event_pb2.SessionLog.START)


@pytest.mark.parametrize(
    ("field", "dtype", "numbers"),
    [
        ("float_val", "float32", [1.5, -2.0]),
        ("double_val", "float64", [1.5, -2.0]),
        ("int_val", "int32", [1, -2]),
        ("int64_val", "int64", [2**40, -2]),
        ("bool_val", "bool", [True, False]),
        ("uint32_val", "uint32", [1, 2**31]),
    ],
)
def test_numbers_that_other_writers_put_in_repeated_fields_are_read(field, dtype, numbers):
    event = event_pb2.Event(step=1)
    tensor = event.summary.value.add(tag="t").tensor
    tensor.dtype = encode.DATA_TYPES[dtype]
    tensor.tensor_shape.dim.add(size=2)
    getattr(tensor, field).extend(numbers)
    (value,) = decode.event(event.SerializeToString()).values
    assert value.value.dtype == dtype and value.value.tolist() == numbers


@pytest.mark.parametrize("payload", [b"\x80", b"\x2a\x05abc", b"\x2a\xff\xff", b"\xff" * 12, b"\x03", b"\x28\x01"])
def test_bytes_that_are_no_message_are_a_value_error(payload):
    with pytest.raises(ValueError):
        decode.event(payload)
