"""Several processes of one run: how many there are, and how each finds the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradlab.distributed import launched_rank
from gradlab.errors import UsageError
from gradlab.launch.processes import announced, announced_folder, followed, launched_devices, refuse_lonely_node
from gradlab.launch.rank_failures import note_failure
from gradlab.runs.folder import RunFolder

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher."""
    for name in [*TORCHRUN, "GRADLAB_RUN_FOLDER"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process on the second of two nodes."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


def test_alone_there_is_rank_zero_and_nothing_is_settled() -> None:
    assert launched_rank() == 0
    assert launched_devices({"devices": 4}) == {}


def test_torchrun_settles_the_devices(torchrun: None) -> None:
    assert launched_rank() == 3
    assert (
        launched_devices({}) == launched_devices({"devices": "auto", "num_nodes": 2}) == {"devices": 2, "num_nodes": 2}
    )


def test_another_number_than_torchruns_is_refused(torchrun: None) -> None:
    with pytest.raises(UsageError) as refused:
        launched_devices({"devices": 8})
    assert str(refused.value) == (
        "trainer.devices is 8, but torchrun has started 2 processes on each of 2 nodes. "
        "Leave trainer.devices out, or start as many."
    )


def test_a_rank_is_told_the_folder_by_its_environment(tmp_path: Path) -> None:
    with announced(RunFolder(tmp_path)):
        assert announced_folder().path == tmp_path.resolve()
    with pytest.raises(UsageError, match="Start the ranks with torchrun"):
        announced_folder()


def test_a_rank_whose_node_does_not_see_the_folder_works_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**TORCHRUN, "LOCAL_RANK": "0", "RANK": "2", "MASTER_ADDR": "first"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said: list[str] = []
    with followed(RunFolder(tmp_path / "not here"), said.append) as folder:
        assert folder.path.is_dir()
    assert said == [
        f"this node takes part in first:{tmp_path}/not here, which cannot be seen from here; "
        f"its logs are in {folder.path}"
    ]
    assert not folder.path.exists()
    with followed(RunFolder(tmp_path / "not here"), said.append) as folder:
        note_failure(folder, code=1, reason="it failed")
    assert folder.path.exists()


def test_a_node_that_nothing_tells_which_it_is_does_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/"})
    refuse_lonely_node({"num_nodes": 1})
    with pytest.raises(UsageError) as refused:
        refuse_lonely_node({"num_nodes": 2})
    assert str(refused.value) == (
        "trainer.num_nodes is 2, but nothing tells which node this is. Start on each of them: "
        "torchrun --nnodes 2 --node-rank N --master-addr HOST --nproc-per-node DEVICES -m gradlab run ..."
    )
    monkeypatch.setattr(os, "environ", {"NODE_RANK": "1"})
    refuse_lonely_node({"num_nodes": 2})
