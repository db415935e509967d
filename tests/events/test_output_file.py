"""The growing file: when bytes reach the disk, and what happens when they cannot."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from gradlab.errors import EventError, MachineError
from gradlab.events import OutputFile
from gradlab.events import output_file as file_module


def test_bytes_wait_until_flush(tmp_path):
    file = OutputFile(tmp_path / "deep" / "out")
    file.write(b"abc")
    assert file.path.read_bytes() == b""
    file.flush()
    assert file.path.read_bytes() == b"abc"
    file.write(b"def")
    file.close()
    file.close()
    assert file.path.read_bytes() == b"abcdef"
    assert file.closed


def test_a_full_buffer_is_written(tmp_path):
    file = OutputFile(tmp_path / "out", buffer_bytes=4)
    file.write(b"abc")
    assert file.path.read_bytes() == b""
    file.write(b"de")
    assert file.path.read_bytes() == b"abcde"
    file.close()


def test_an_interval_that_has_passed_is_noticed_by_the_next_write(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(file_module.time, "monotonic", lambda: now)
    file = OutputFile(tmp_path / "out", flush_seconds=5)
    now = 104.9
    file.write(b"a")
    assert file.path.read_bytes() == b""
    now = 105.0
    file.write(b"b")
    assert file.path.read_bytes() == b"ab"
    now = 109.0
    file.write(b"c")
    assert file.path.read_bytes() == b"ab"
    file.close()


def test_a_file_that_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "out").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        OutputFile(tmp_path / "out")
    file = OutputFile(tmp_path / "out", append=True)
    file.write(b"!")
    file.close()
    assert (tmp_path / "out").read_bytes() == b"precious!"


def test_partial_writes_are_completed(tmp_path):
    file = OutputFile(tmp_path / "out")
    raw = file._raw

    class Slow:
        def write(self, data):
            return raw.write(data[:3])

        def close(self):
            raw.close()

    file._raw = Slow()
    file.write(b"0123456789")
    file.close()
    assert file.path.read_bytes() == b"0123456789"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_clear_error_and_then_the_file_is_closed():
    file = OutputFile(Path("/dev/full"), append=True)
    file.write(b"abc")
    with pytest.raises(EventError) as caught:
        file.flush()
    assert str(caught.value) == (
        "cannot write to /dev/full: no space left on device. The file is closed; what it holds up to here can be read."
    )
    assert file.closed
    file.close()
    with pytest.raises(EventError, match=r"^/dev/full is closed; nothing more can be written to it\.$"):
        file.write(b"abc")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_place_that_cannot_be_written_to_is_the_machines_fault(tmp_path, monkeypatch, number):
    def refuse(self, **kwargs):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    words = os.strerror(number)[:1].lower() + os.strerror(number)[1:]
    with pytest.raises(MachineError) as caught:
        OutputFile(tmp_path / "new" / "out")
    assert str(caught.value) == f"cannot create {tmp_path}/new: {words}. Choose a folder that can be written to."


def test_a_file_in_the_place_of_the_folder_is_an_event_error(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(EventError, match=r"cannot create .*taken: file exists"):
        OutputFile(tmp_path / "taken" / "out")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_writes_nothing(tmp_path):
    file = OutputFile(tmp_path / "out")
    file.write(b"parent")

    def child(answers):
        try:
            file.write(b"child")
        except EventError as error:
            answers.put(str(error))
        file.close()

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    assert answers.get().startswith(f"{file.path} belongs to process {os.getpid()}.")
    process.join()
    assert file.path.read_bytes() == b""
    file.close()
    assert file.path.read_bytes() == b"parent"
