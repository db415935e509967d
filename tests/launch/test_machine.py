"""What an experiment asks of the machine, and the sentence where the machine lacks it."""

import errno
from types import SimpleNamespace

import pytest
import torch

from gradlab.errors import MachineError, UsageError
from gradlab.launch.machine import device_options, machine_fault


@pytest.fixture
def gpus(monkeypatch):
    def have(number):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    return have


def ask(trainer=None, gpus="auto", nodes=1):
    return device_options(trainer or {}, SimpleNamespace(gpus=gpus, nodes=nodes))


def test_nothing_asked_is_left_to_lightning(gpus):
    gpus(0)
    assert ask() == {}
    assert ask({"accelerator": "auto", "max_epochs": 3}) == {"accelerator": "auto"}


@pytest.mark.parametrize(
    "asked", [{"trainer": {"accelerator": "gpu"}}, {"trainer": {"accelerator": "cuda"}}, {"gpus": 1}]
)
def test_a_gpu_where_there_is_none_is_the_machines_fault(gpus, asked):
    gpus(0)
    with pytest.raises(
        MachineError, match=r"asks for a GPU, but torch .* sees none here\. Use trainer\.accelerator=auto"
    ):
        ask(**asked)


@pytest.mark.parametrize("devices", [3, "3", [0, 2], "0,2"])
def test_more_gpus_than_there_are_is_the_machines_fault(gpus, devices):
    gpus(2)
    with pytest.raises(MachineError, match="asks for 3 GPUs, but this machine has 2"):
        ask({"accelerator": "gpu", "devices": devices})


@pytest.mark.parametrize("devices", [1, 2, "2", [0, 1], "0,1", -1, "-1", "auto"])
def test_gpus_that_are_there_are_used(gpus, devices):
    gpus(2)
    assert ask({"accelerator": "gpu", "devices": devices}) == {"accelerator": "gpu", "devices": devices}


def test_resources_say_it_in_lightnings_words(gpus):
    gpus(2)
    assert ask(gpus=2) == {"accelerator": "gpu", "devices": 2}
    assert ask(gpus=2, nodes=4) == {"accelerator": "gpu", "devices": 2, "num_nodes": 4}
    assert ask(gpus=0) == {"accelerator": "cpu"}


@pytest.mark.parametrize(("gpus", "accelerator"), [(0, "gpu"), (0, "cuda"), (1, "cpu"), (1, "mps")])
def test_a_contradiction_is_refused(gpus, accelerator):
    with pytest.raises(UsageError, match=rf"resources\.gpus is {gpus}, but trainer\.accelerator is '{accelerator}'"):
        ask({"accelerator": accelerator}, gpus=gpus)


def test_a_full_disk_is_the_machines_fault_and_a_missing_file_is_not():
    full = machine_fault(OSError(errno.ENOSPC, "No space left on device", "last.ckpt"))
    assert isinstance(full, MachineError)
    assert str(full).startswith("No space left on device (last.ckpt). Free some space")
    assert machine_fault(FileNotFoundError(errno.ENOENT, "No such file", "data.csv")) is None
    assert machine_fault(ValueError("no")) is None
