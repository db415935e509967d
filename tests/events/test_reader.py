"""Files read back: ours, cut off ones, damaged ones, and those of other writers."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from gradlab.errors import EventError
from gradlab.events import EventWriter, event_files, read_events
from gradlab.events.tfrecord import read_records, record
from gradlab.frame import Schema


@pytest.fixture
def path(tmp_path):
    """A file with three steps of one vector."""
    writer = EventWriter(tmp_path)
    schema = Schema("weight.norm", ("a", "b"), unit="nats")
    for step in range(3):
        writer.vectors([(schema, np.array([step, np.nan], np.float32))], step, 1000.0 + step)
    writer.close()
    return writer.path


def test_values_come_back_with_the_names_that_only_the_first_record_has(path):
    values = list(read_events(path))
    assert [(one.step, one.wall_time) for one in values] == [(0, 1000.0), (1, 1001.0), (2, 1002.0)]
    assert {one.tag for one in values} == {Schema("weight.norm", ("a", "b")).tag}
    assert [one.value.tolist()[0] for one in values] == [0.0, 1.0, 2.0]
    for one in values:
        assert one.plugin_name == "gradlab"
        assert one.metadata == {"version": 1, "metric": "weight.norm", "unit": "nats", "sites": ["a", "b"]}


def test_a_file_cut_off_anywhere_gives_the_records_before(path, tmp_path):
    whole = path.read_bytes()
    ends = []
    for payload in read_records(path):
        ends.append((ends[-1] if ends else 0) + len(record(payload)))
    cut = tmp_path / "cut"
    for length in sorted({*range(0, len(whole), 7), *ends}):
        cut.write_bytes(whole[:length])
        assert len(list(read_records(cut))) == sum(end <= length for end in ends)


def test_a_damaged_record_is_named_by_its_byte_after_what_is_sound(path):
    last = sum(len(record(payload)) for payload in list(read_records(path))[:-1])
    damaged = bytearray(path.read_bytes())
    damaged[-10] ^= 1
    path.write_bytes(damaged)
    seen = []
    with pytest.raises(EventError) as caught:
        for one in read_events(path):
            seen.append(one.step)
    assert seen == [0, 1]
    assert str(caught.value) == (
        f"{path} is damaged at byte {last}: the checksum of the record's payload does not fit. "
        "What comes before it is sound; what comes after it cannot be read."
    )


def test_a_damaged_length_is_noticed_before_it_is_used(path):
    damaged = bytearray(path.read_bytes())
    damaged[3] ^= 0x80
    path.write_bytes(damaged)
    with pytest.raises(EventError, match="damaged at byte 0: the checksum of the record's length"):
        list(read_events(path))


def test_a_record_that_is_no_event_is_named(path):
    with path.open("ab") as file:
        file.write(record(b"\x2a\x05abc"))
    with pytest.raises(EventError, match="record 4 is not a TensorBoard event"):
        list(read_events(path))


def test_a_file_that_is_not_there_is_an_event_error(tmp_path):
    with pytest.raises(EventError, match=r"cannot read the event file .*nothing: No such file"):
        list(read_events(tmp_path / "nothing"))


@pytest.mark.filterwarnings("ignore")
def test_torch_files_are_read_too(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("old", 0.25, 3)
        writer.add_scalar("new", 0.5, 4, new_style=True)
        writer.add_text("text", "hello", 5)
        writer.add_image("picture", np.zeros((3, 2, 2), np.uint8), 6)
    (path,) = event_files(tmp_path)
    seen = {one.tag: one for one in read_events(path)}
    assert (seen["old"].plugin_name, seen["old"].value, seen["old"].step) == ("scalars", 0.25, 3)
    assert (seen["new"].plugin_name, seen["new"].value.item(), seen["new"].step) == ("scalars", 0.5, 4)
    assert list(seen["text/text_summary"].value) == [b"hello"]
    assert seen["picture"].plugin_name == "images" and seen["picture"].value.startswith(b"\x89PNG")


def test_tensorboards_own_loader_reads_our_records(path):
    events = list(EventFileLoader(str(path)).Load())
    assert events[0].file_version == "brain.Event:2"
    assert [event.step for event in events[1:]] == [0, 1, 2]


def test_event_files_are_those_of_one_folder_oldest_first(tmp_path):
    for name in ("events.out.tfevents.0000000002.h", "events.out.tfevents.0000000001.h", "metrics.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "rank1").mkdir()
    (tmp_path / "rank1" / "events.out.tfevents.0000000003.h").touch()
    assert [path.name[-3:] for path in event_files(tmp_path)] == ["1.h", "2.h"]
