"""Bytes: windows of real files, targets one byte further, whole files apart for validation."""

import sysconfig
from pathlib import Path

import pytest
import torch

from gradlab.data import Bytes
from gradlab.errors import MachineError, UsageError


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten files of a hundred bytes, each with a letter of its own, and one that no pattern should match."""
    for letter in "abcdefghij":
        (tmp_path / f"{letter}.py").write_bytes(letter.encode() * 100)
    (tmp_path / "notes.txt").write_bytes(b"z" * 100)
    return tmp_path


def letters(data) -> set[str]:
    return {chr(value) for value in data.inputs.unique().tolist()}


def test_reads_the_standard_library():
    data = Bytes(context=32, max_bytes=60_000)
    data.setup()
    stdlib = Path(sysconfig.get_path("stdlib"))
    assert all(path.parent == stdlib and path.suffix == ".py" for path in data.train_files + data.val_files)
    start = bytes(data.train_data.inputs[0].tolist())
    assert data.train_files[0].read_bytes().startswith(start)


def test_training_and_validation_share_no_file(folder):
    data = Bytes(context=9, folder=str(folder), val_fraction=0.3)
    data.setup()
    assert len(data.val_files) == 3
    assert len(data.train_files) == 7
    assert letters(data.train_data) == {path.stem for path in data.train_files}
    assert letters(data.val_data) == {path.stem for path in data.val_files}
    assert letters(data.train_data).isdisjoint(letters(data.val_data))


def test_targets_are_one_byte_further_and_windows_lie_side_by_side(tmp_path):
    (tmp_path / "a.py").write_bytes(bytes(range(50)))
    (tmp_path / "b.py").write_bytes(bytes(range(10)))
    train = Bytes(context=8, folder=str(tmp_path), batch_size=2).train_data
    assert train.inputs.tolist() == [list(range(i, i + 8)) for i in range(0, 48, 8)]
    assert torch.equal(train.targets, train.inputs + 1)
    assert train.inputs.dtype == torch.int64


def test_no_more_bytes_than_asked_for(folder):
    data = Bytes(context=9, folder=str(folder), max_bytes=350)
    data.setup()
    assert sorted(path.stem for path in data.train_files + data.val_files) == ["a", "b", "c", "d"]
    assert data.train_data.inputs.numel() + data.val_data.inputs.numel() <= 350


def test_a_file_larger_than_the_share_goes_to_training(tmp_path):
    (tmp_path / "large.py").write_bytes(b"l" * 1000)
    for letter in "abc":
        (tmp_path / f"{letter}.py").write_bytes(letter.encode() * 50)
    for seed in range(5):
        data = Bytes(context=9, folder=str(tmp_path), val_fraction=0.1, seed=seed)
        assert "l" in letters(data.train_data)


def test_another_pattern_reads_other_files(folder):
    (folder / "more.txt").write_bytes(b"y" * 100)
    data = Bytes(context=9, folder=str(folder), pattern="*.txt")
    assert letters(data.train_data) | letters(data.val_data) == {"y", "z"}


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"Bytes: 0 files match '\*\.py' in .*Give another folder or pattern"):
        Bytes(folder=str(tmp_path)).setup()


def test_a_python_without_sources_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(MachineError, match="This Python has no sources: give a folder of text files"):
        Bytes().setup()


def test_a_window_longer_than_the_text_is_refused_with_the_largest(folder):
    with pytest.raises(UsageError, match=r"validation files hold 200 bytes, .* the largest context is 199\."):
        Bytes(context=200, folder=str(folder), val_fraction=0.2).setup()
