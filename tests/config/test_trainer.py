"""Arguments of the Trainer that contradict each other or lie out of range: found by building one, without a trace."""

# ruff: noqa: E501  sentences as they are shown

import logging
import os

import pytest
import torch

from gradlab.config.trainer_trial import refusal_of

GOOD = "name: x\nmodel: {class_path: mine.Net, init_args: {widths: [3]}}\ndata: mine.Data\n"

WRONG = {
    "val_check_interval: 1.5": "trainer.val_check_interval must be a number from 0 to 1, not 1.5.",
    "val_check_interval: 0": "trainer.val_check_interval is 0; to validate never, set limit_val_batches to 0.",
    "accumulate_grad_batches: 0": "trainer.accumulate_grad_batches must be a whole number from 1, not 0.",
    "max_epochs: -5": "trainer.max_epochs must be a whole number from -1, not -5.",
    "barebones: true": "trainer.barebones is without a log and checkpoints, which a run has. For less of both take `taps: []`, `trainer.enable_checkpointing: false` and `trainer.log_every_n_steps`.",
    "devices: 0": "the Trainer refused: `Trainer(devices=0)` value is not a valid input using cpu accelerator.",
    "fast_dev_run: -2": "the Trainer refused: fast_dev_run=-2 is not a valid configuration. It should be >= 0.",
    "max_time: soon": "the Trainer refused: `Timer(duration='soon')` is not a valid duration. Expected a string in the format DD:HH:MM:SS.",
    "strategy: fsdp": "the Trainer refused: The strategy `fsdp` requires a GPU accelerator, but received `accelerator='cpu'`. ",
    "strategy: dpd": "trainer.strategy may not be 'dpd'. Did you mean 'ddp'? ",
    "val_check_interval: 00:00:10": "the Trainer refused: Invalid time format for `val_check_interval`: '00:00:10'. Expected 'DD:HH:MM:SS'.",
}


@pytest.mark.parametrize("written", WRONG)
def test_what_is_wrong_is_told_at_its_line(refused, written):
    said = refused(GOOD + f"trainer:\n  accelerator: cpu\n  {written}\n", deep=True)
    line = said.splitlines()[0]
    assert line.startswith(("experiment.yaml:6:3: ", f"experiment.yaml:6:{len(written.split()[0]) + 4}: "))
    assert line.split(": ", 1)[1].startswith(WRONG[written])
    assert said.endswith("\n1 problem; nothing was run.")


def test_contradictions_are_all_told_at_once(refused):
    trainer = (
        "{accelerator: cpu, min_epochs: 5, max_epochs: 2, check_val_every_n_epoch: null, val_check_interval: 0.5, "
        "fast_dev_run: -1, devices: [0]}"
    )
    said = refused(GOOD + f"trainer: {trainer}\n", deep=True)
    found = [line.split(": ", 1)[1] for line in said.splitlines() if line.startswith("experiment.yaml")]
    assert found[0] == "trainer.min_epochs is 5, more than trainer.max_epochs, 2, after which training ends."
    assert "val_check_interval" in found[1] and "fast_dev_run=-1" in found[2] and "`devices`" in found[3]
    assert len(found) == 4


def test_a_contradiction_in_an_override_is_told_at_the_argument(refused):
    said = refused(GOOD, "trainer.accelerator=cpu", "trainer.devices=0", deep=True)
    assert said.startswith("argument 2: the Trainer refused: `Trainer(devices=0)`")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_epochs": -1, "max_steps": 10, "min_steps": 3},
        {"accelerator": "cpu", "devices": 3, "strategy": "ddp", "num_nodes": 2},
        {"deterministic": True, "benchmark": True},
        {"max_time": {"hours": 1}, "fast_dev_run": 2},
        {"enable_checkpointing": False, "overfit_batches": 1},
        {"accelerator": "cpu", "precision": "16-true"},
    ],
)
def test_what_the_trainer_takes_is_taken_without_a_trace(arguments, monkeypatch, caplog, tmp_path):
    """Nor does a launcher's environment count: what it settles is asked for later."""
    monkeypatch.chdir(tmp_path)
    launched = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "x",
        "SLURM_NTASKS": "7",
        "SLURM_JOB_NAME": "x",
    }
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with caplog.at_level(logging.INFO):
        assert refusal_of(arguments) is None
    after = dict(os.environ), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    assert after == before
    assert not caplog.records and [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("arguments", "is_of_machine"),
    [
        ({"accelerator": "gpu"}, True),
        ({"accelerator": "gpu", "val_check_interval": 1.5}, False),
        ({"accelerator": "gpu", "devices": 0}, False),
        ({"strategy": "fsdp"}, True),
        ({"strategy": "fsdp", "accelerator": "cpu"}, False),
        ({"devices": [0, 1]}, True),
        ({"devices": -1}, True),
        ({"devices": [0], "accelerator": "cpu"}, False),
        ({"precision": "transformer-engine"}, True),
    ],
)
def test_what_another_machine_could_do_is_told_apart(arguments, is_of_machine):
    assert refusal_of(arguments).is_of_machine is is_of_machine
